"""Report errors of a full disk, lock a folder for one run, and seal folders so that damage can be found."""

import errno
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..utils.files import synchronise, write_json

__all__ = [
    "MANIFEST_FILE",
    "DiskError",
    "disk_errors",
    "find_damage",
    "only_run",
    "seal_folder",
]

MANIFEST_FILE = "manifest.json"
logger = logging.getLogger(__name__)


class DiskError(OSError):
    """Something could not be written: the disk is full, a quota is used up, a file is too large."""


@contextmanager
def disk_errors(what: str, way_out: str) -> Iterator[None]:
    """Turn the many ways in which libraries report a failed write into one.

    `torch.save` and safetensors raise errors of their own for it, `RuntimeError` among them: the block must do nothing
    but write.

    Args:
        what: name of what was being written, for the message.
        way_out: sentence that says what remains, and what to do.

    Raises:
        DiskError: for any failed write inside the block.
    """
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DiskError(f"{what} could not be written ({error}). Is the disk full? {way_out}") from error


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Within this context no other process can enter it for the same folder: two runs would spoil each other's files.

    The lock is the operating system's, so that it is gone with the process however that ends. Where a system or a disk
    has none, nothing is checked.

    Raises:
        FileExistsError: another run is writing there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, not of workers it forks
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise FileExistsError(
                    f"Another run is writing to `output_dir` {folder}. Wait for its end, or choose another folder."
                ) from None
            logger.warning("%s cannot be locked (%s): see to it that no other run writes there.", folder, error)
        yield


def seal_folder(folder: Path) -> None:
    """Synchronise all files of a folder, and write the manifest of their sizes and hashes last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    for path in files:
        synchronise(path)
    entries = {str(path.relative_to(folder)): _describe(path) for path in files}
    write_json(folder / MANIFEST_FILE, {"files": entries})
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        synchronise(path)


def find_damage(folder: Path) -> str | None:
    """Say what is missing from a sealed folder or differs in it; `None` if the folder is whole."""
    try:
        entries = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST_FILE} cannot be read ({error})"
    for name, expected in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
    # Hashes after all sizes: what is cut short is found at once.
    changed = (name for name, expected in entries.items() if _describe(folder / name) != expected)
    name = next(changed, None)
    return None if name is None else f"the content of {name} is not what was written"


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
