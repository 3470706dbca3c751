"""Writes files and folders so that they are there under their name as a whole, or not at all.

Everything is written into a temporary folder beside its place, synchronised with the disk and then renamed: a rename
is atomic, but after a crash of the machine only what was synchronised before is there. A run that was killed leaves
its temporary folder behind; the next one that writes under the same name deletes it, and brings back an earlier result
that was set aside when the run was killed.
"""

import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .disk import disk_errors

__all__ = [
    "RECORD_FILE",
    "REQUEST_FILE",
    "check_replaceable",
    "is_partial",
    "lock_path",
    "parts_folder",
    "read_token",
    "recover",
    "recover_all",
    "remove_folder",
    "rename_folder",
    "replaced_folder",
    "synchronise",
    "whole_file",
    "whole_folder",
    "write_json",
]

RECORD_FILE = "settings.json"
REQUEST_FILE = "request.json"  # of the parts of a folder
_PARTIAL, _PREVIOUS = ".partial", ".previous"


def is_partial(path: Path) -> bool:
    """Tell whether a path is, or lies in, a temporary folder of something that was not written to its end."""
    return any(part.startswith(".") and part.endswith(_PARTIAL) for part in (path.name, path.parent.name))


def recover(path: str | os.PathLike) -> None:
    """Tidy up what killed runs have left beside a path: bring back an earlier result, and delete what is partial.

    The parts of a folder are kept, unless the folder has been made of them.

    What another run is writing at this moment is left alone.

    Args:
        path: file or folder that those runs were writing.
    """
    path = Path(path)
    with suppress(OSError):  # an unwritable folder is reported by whoever writes there
        previous = path.with_name(f".{path.name}{_PREVIOUS}")
        if previous.exists() and path.exists():
            shutil.rmtree(previous)
        elif previous.exists():
            previous.rename(path)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
            _remove_if_abandoned(leftover)
        parts = parts_folder(path)
        for leftover in parts.parent.glob(f".{glob.escape(parts.name)}.*{_PARTIAL}"):
            _remove_if_abandoned(leftover)
        token = read_token(parts / REQUEST_FILE)
        if token is not None and token == read_token(path / RECORD_FILE):
            remove_folder(parts)


def parts_folder(path: Path) -> Path:
    """Return the folder that the parts of a folder are kept in until all of them are made."""
    path = path.absolute()
    return path.with_name(f".{path.name}.part")


def read_token(path: Path) -> str | None:
    """Read the token in the record of a run; `None` where there is none."""
    try:
        return str(json.loads(path.read_text())["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recover_all(folder: str | os.PathLike) -> None:
    """Recover everything in a folder; to be called by the only run that writes there."""
    for previous in Path(folder).glob(f".*{_PREVIOUS}"):
        recover(previous.with_name(previous.name[1:].removesuffix(_PREVIOUS)))
    for leftover in Path(folder).glob(f".*{_PARTIAL}"):
        _remove_if_abandoned(leftover)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path, whose file takes the name `path` when the block is left in order.

    On any exception, an interrupt included, the temporary file is deleted and what was at `path` before stays.

    Args:
        path: file to write; the folders that it lies in are made.

    Yields:
        The temporary path, a file of the same name, by whose ending some libraries choose the format.

    Raises:
        DiskError: the file cannot be written; the message names it and the way out.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(path) as folder:
            partial = folder / path.name
            yield partial
            synchronise(partial)
            partial.replace(path)
            synchronise(path.parent)


def write_json(path: str | os.PathLike, content: Any, indent: int = 2) -> None:
    """Write a JSON file as a whole or not at all; what JSON does not know is written by `str`."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=indent, default=str) + "\n", encoding="utf-8")


def check_replaceable(
    path: Path,
    overwrite: bool,
    *,
    name: str = "output",
    record: str = RECORD_FILE,
    written: Sequence[str] | None = None,
    inputs: Iterable[str | Path] = (),
) -> None:
    """Refuse an output path before any work is done.

    A folder is replaced only if all that it holds was written by an earlier run, as its record tells: nobody loses a
    file that this package did not write. A result that a killed run had set aside is brought back first.

    Args:
        path: folder to make.
        overwrite: whether the folder of an earlier run may be replaced.
        name: name of the argument, for errors.
        record: name of a file that an earlier run has left in its folder.
        written: patterns of the names that a run writes; `None` for the names that the record lists.
        inputs: files and folders that the run reads; none of them may be in the folder.

    Raises:
        FileExistsError: something is at `path` that may not be replaced.
    """
    inside = [str(entry) for entry in inputs if Path(entry).resolve().is_relative_to(path.resolve())]
    if inside:
        raise FileExistsError(f"`{name}` {path} contains {inside[0]}, which is read. Choose another folder.")
    recover(path)
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(
            f"`{name}` {path} is already there. Choose another folder, or replace it by --overwrite."
        )
    if path.is_symlink() or not path.is_dir():
        raise FileExistsError(f"`{name}` {path} is not a folder. Choose another one.")
    there = {entry.name for entry in path.iterdir()}
    if not (path / record).is_file():
        foreign = there
    elif written is None:
        foreign = there - _listed(path / record)
    else:
        foreign = {entry for entry in there if not any(fnmatch(entry, pattern) for pattern in written)}
    if foreign:
        raise FileExistsError(
            f"`{name}` {path} holds files that an earlier run did not write, such as {min(foreign)}, and is not "
            "replaced. Choose another folder."
        )


def _listed(record: Path) -> set[str]:
    try:
        return set(json.loads(record.read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextmanager
def whole_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder as `replaced_folder` does, for a result that must not replace files of somebody else.

    Args:
        path: folder to make; its parents are made, too.
        overwrite: whether a folder written by an earlier run may be replaced.

    Yields:
        The temporary folder. A file `RECORD_FILE` in it, a JSON object, is completed by the list of all files.

    Raises:
        FileExistsError: `path` is taken.
    """
    path = Path(path).absolute()
    check_replaceable(path, overwrite)
    with replaced_folder(path) as partial:
        yield partial
        _list_files(partial)
        check_replaceable(path, overwrite)  # again: it may have come into being meanwhile


@contextmanager
def replaced_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which takes the name `path` when the block is left in order.

    On any exception, an interrupt included, the temporary folder is deleted and what was at `path` before stays.

    Raises:
        DiskError: the folder cannot be written; the message names it and the way out.
    """
    path = Path(path).absolute()
    with disk_errors(path):
        new_parents = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _partial_folder(path) as partial:
                yield partial
                for entry in partial.rglob("*"):
                    synchronise(entry)
                synchronise(partial)
                rename_folder(partial, path)
        except BaseException:
            for parent in new_parents:
                with suppress(OSError):  # not empty: somebody else uses it
                    parent.rmdir()
            raise


@contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    """Give a new temporary folder beside `path`, marked as in use, and delete it at the end if it is still there."""
    recover(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
    in_use = None
    try:
        while not partial.exists():  # again where it was taken for abandoned before it was locked
            partial.mkdir()
            in_use = lock_path(partial, waits=True)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if in_use is not None:
            os.close(in_use)


def lock_path(path: Path, waits: bool) -> int | None:
    """Lock a file or folder until the descriptor that is returned is closed, or this process ends.

    Args:
        path: file or folder to lock.
        waits: whether to wait until nobody else holds the lock.

    Returns:
        The descriptor; `None` where the lock is held, or the system or the disk has no locks.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:  # in use, or on a disk without locks
        os.close(descriptor)
        return None
    return descriptor


def _remove_if_abandoned(leftover: Path) -> None:
    """Delete a temporary folder, or file, that no process uses any more."""
    descriptor = lock_path(leftover, waits=False)
    if descriptor is not None:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
        os.close(descriptor)


def rename_folder(partial: Path, final: Path) -> None:
    """Give a folder its final name, for good. A folder that has the name already is removed."""
    old = _set_aside(final, _PREVIOUS) if final.exists() else None
    try:
        partial.rename(final)
    except BaseException:
        if old is not None and not final.exists():
            old.rename(final)
        raise
    synchronise(final.parent)
    if old is not None:
        shutil.rmtree(old)


def remove_folder(folder: Path) -> None:
    """Remove a folder; under another name first, since a removal cut short must not leave one that looks complete."""
    leftover = _set_aside(folder, f".removed{_PARTIAL}")
    synchronise(folder.parent)
    shutil.rmtree(leftover)


def _set_aside(folder: Path, ending: str) -> Path:
    leftover = folder.with_name(f".{folder.name}{ending}")
    shutil.rmtree(leftover, ignore_errors=True)
    return folder.rename(leftover)


def synchronise(path: Path) -> None:
    """Wait until a file, or the list of entries of a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _list_files(folder: Path) -> None:
    record = folder / RECORD_FILE
    content = json.loads(record.read_text()) if record.exists() else {}
    content["files"] = sorted({RECORD_FILE, *(entry.name for entry in folder.iterdir())})
    record.write_text(json.dumps(content, indent=2) + "\n")
