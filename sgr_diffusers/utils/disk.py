"""Turns failed writes into one error that names the file and the way out, and keeps a folder to one run at a time."""

import errno
import json
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

__all__ = ["LOCK_FILE", "DiskError", "disk_errors", "only_run"]

LOCK_FILE = ".lock"
_FREE_SPACE = "Free some space, or choose another folder."
_WAYS_OUT = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EROFS: "Choose a folder that you may write to.",
}
# These are errors of a write only where they name the file to be written; otherwise, an input cannot be read.
_WAYS_OUT_OF_PATH = {
    errno.EIO: "Check the disk, or choose another folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.ENOTDIR: "A part of this path is a file: choose another folder.",
    errno.EEXIST: "A part of this path is a file: choose another folder.",
}
_TRIAL = bytes(2**20)


class DiskError(OSError):
    """Something could not be written: the disk is full, a quota is used up, the folder may not be written to.

    Args:
        what: name of what was being written.
        reason: reason that the system gives.
        way_out: sentence that says what to do.
    """

    def __init__(self, what: str | os.PathLike, reason: str, way_out: str):
        """Make the message."""
        super().__init__(f"{what} could not be written ({reason}). {way_out}")
        self.reason, self.way_out = reason, way_out

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """Make it known to a parent process by its message."""
        return OSError, (str(self),)


@contextmanager
def disk_errors(what: str | os.PathLike, way_out: str | None = None) -> Iterator[None]:
    """Turn the many ways in which libraries report a failed write into one.

    Args:
        what: name of what is being written, for the message; where it is a path, errors of permission that name it
            count, too.
        way_out: sentence that says what remains, and what to do. The block must then do nothing but write: torch and
            safetensors raise errors of their own for it, `RuntimeError` among them, and any of these counts. `None`
            for what fits the reason; then only errors count that carry the number of a failed write.

    Raises:
        DiskError: for a failed write inside the block. Other errors pass unchanged.
    """
    try:
        yield
    except DiskError as error:
        if way_out is None:
            raise
        raise DiskError(what, error.reason, way_out) from error
    except Exception as error:
        if way_out is not None and isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise DiskError(what, str(error), way_out) from error
        fault = _write_fault(error, Path(what) if isinstance(what, os.PathLike) else None)
        if fault is None or way_out is not None:
            raise
        raise DiskError(what, *fault) from error


def _write_fault(error: BaseException | None, path: Path | None) -> tuple[str, str] | None:
    """Reason of a failed write and its way out; `None` if the error is of another kind."""
    while error is not None:
        number = _fault_of_trial(path) if isinstance(error, SafetensorError) else getattr(error, "errno", None)
        ways_out = _WAYS_OUT | (_WAYS_OUT_OF_PATH if _is_about(error, path) else {})
        if number in ways_out:
            return os.strerror(number), ways_out[number]
        error = error.__cause__ or error.__context__
    return None


def _fault_of_trial(path: Path | None) -> int | None:
    """Number of the error that writing to the folder of a path gives; errors of safetensors carry none."""
    if path is None:
        return None
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent) as file:
            file.write(_TRIAL)
    except OSError as error:
        return error.errno
    return None


def _is_about(error: BaseException, path: Path | None) -> bool:
    """Whether an error names a path, a folder that it lies in, what lies in it, or a temporary folder beside it."""
    name = getattr(error, "filename", None)
    if path is None or not isinstance(name, str | os.PathLike):
        return False
    named, path = Path(name).absolute(), path.absolute()
    is_beside = named.parent == path.parent and named.name.startswith(f".{path.name[:40]}")
    return path.is_relative_to(named) or named.is_relative_to(path) or is_beside


@contextmanager
def only_run(folder: str | os.PathLike, name: str = "output") -> Iterator[None]:
    """Within this context no other process can enter it for the same folder: two runs would spoil each other's files.

    The lock is the operating system's, so that it is gone with the process however that ends. Where a system or a disk
    has none, nothing is checked.

    Args:
        folder: folder that is written to; it is made if it is not there, and removed if nothing was written.
        name: name of the argument that it was given by, for the message.

    Raises:
        FileExistsError: another run is writing there; the message says which.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = Path(folder) / LOCK_FILE
    is_new = not path.parent.exists()
    while True:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, not of workers it forks
        except OSError as error:
            with file:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise FileExistsError(
                        f"Another run is writing to `{name}` {folder}: {_holder(file)}. Wait for its end, or choose "
                        "another folder."
                    ) from None
            yield  # the disk has no locks
            return
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # its holder has deleted it meanwhile
    with file:
        with suppress(OSError):
            file.truncate(0)
            file.write(json.dumps(_describe_this_process()))
            file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # it holds what was written
                    path.parent.rmdir()


def _describe_this_process() -> dict[str, str | int]:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "since": started,
        "command": shlex.join(sys.argv)[:500],
    }


def _holder(file: IO[str]) -> str:
    """Say who holds a lock, from what the holder has written into the file."""
    try:
        file.seek(0)
        holder = json.loads(file.read(4096))
        return f"process {holder['process']} on {holder['machine']}, since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say which"
