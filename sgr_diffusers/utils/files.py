"""A path enters; a folder leaves that is there under its name with all of its files, or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["RECORD_FILE", "check_replaceable", "whole_folder"]

RECORD_FILE = "settings.json"


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse an output path before any work is done.

    A folder is replaced only if all that it holds was written by an earlier run, as its `RECORD_FILE` tells: nobody
    loses a file that this package did not write.

    Raises:
        FileExistsError: something is at `path` that may not be replaced.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(
            f"`output` {path} is already there. Choose another folder, or replace it by --overwrite."
        )
    if path.is_symlink() or not path.is_dir():
        raise FileExistsError(f"`output` {path} is not a folder. Choose another one.")
    found = {entry.name for entry in path.iterdir()}
    try:
        written = set(json.loads((path / RECORD_FILE).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        written = set()
    if found - written:
        raise FileExistsError(
            f"`output` {path} holds files that `sgr` did not write, such as {min(found - written)}, and is not "
            "replaced. Choose another folder."
        )


@contextmanager
def whole_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` to write to, which takes the name `path` when the block is left in order.

    On any exception, an interrupt included, the temporary folder is deleted and what was at `path` before stays.

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
    new_parents = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    previous = partial.with_suffix(".previous")
    try:
        partial.mkdir()
        yield partial
        _list_files(partial)
        check_replaceable(path, overwrite)  # again: it may have come into being meanwhile
        if path.exists():
            path.rename(previous)
        partial.rename(path)
    except BaseException:
        if previous.exists() and not path.exists():
            previous.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # not empty: somebody else uses it
                parent.rmdir()
        raise
    finally:
        shutil.rmtree(previous, ignore_errors=True)


def _list_files(folder: Path) -> None:
    record = folder / RECORD_FILE
    content = json.loads(record.read_text()) if record.exists() else {}
    content["files"] = sorted({RECORD_FILE, *(entry.name for entry in folder.iterdir())})
    record.write_text(json.dumps(content, indent=2) + "\n")
