"""Checks a file before it is read: whether it is a regular file, may be read, and of which kind it is."""

import errno
import os
import stat
from pathlib import Path

__all__ = [
    "bart_pair",
    "check_claimed_bytes",
    "check_regular_file",
    "describe_foreign_content",
    "first_bytes",
    "hdf5_open_error",
    "hdf5_open_fault",
    "is_bart_pair",
    "read_small_text",
]

# Bytes that a file may claim without having them, and how many times its own size it may claim beyond that. gzip
# packs zeros 1000 : 1; k-space of a 16-fold acceleration, mostly zeros, comes to about 20 : 1.
CLAIM_ALWAYS_GRANTED = 64 * 2**20
CLAIM_PER_BYTE = 200

_NO_PERMISSION = "may not be read by this user (permission denied). Ask its owner, or change it: chmod u+r"
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

# First bytes -> what the file is, and the way out.
_FOREIGN = (
    (b"\x1f\x8b", "it is compressed by gzip. Unpack it first: gunzip"),
    (b"BZh", "it is compressed by bzip2. Unpack it first: bunzip2"),
    (b"\xfd7zXZ", "it is compressed by xz. Unpack it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd. Unpack it first: unzstd"),
    (b"7z\xbc\xaf", "it is a 7-Zip archive. Unpack it first"),
    (b"PK", "it is a zip archive. Unpack it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer instead of the data. Fetch the data: git lfs pull"),
    (b"MATLAB 5.0", "it is a MATLAB file before version 7.3. Save k-space as .npy or HDF5"),
    (b"<!doctype html", "it is a web page. The download needs a login or the direct link of the file"),
    (b"<html", "it is a web page. The download needs a login or the direct link of the file"),
)


def check_regular_file(path: str | os.PathLike, name: str = "path") -> Path:
    """Check that a path leads to a regular file that may be read; a pipe or a device would block the reader.

    Args:
        path: path to check.
        name: name of the argument, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path leads to a folder, a pipe or a device.
        PermissionError: this user may not read the file.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise _no_permission(path, name) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise FileNotFoundError(f"`{name}` {path} is not a file: {_reason(error)}.") from error
    if not stat.S_ISREG(mode):
        kind = next((text for is_kind, text in _SPECIAL if is_kind(mode)), "no regular file")
        raise ValueError(f"`{name}` {path} must be a regular file, but is {kind}.")
    if not os.access(path, os.R_OK):
        raise _no_permission(path, name)
    return path


def first_bytes(path: Path, n_bytes: int = 256) -> bytes:
    """Read the first bytes of a regular file; raises as `check_regular_file`."""
    try:
        with open(check_regular_file(path), "rb") as file:
            return file.read(n_bytes)
    except PermissionError as error:
        raise _no_permission(path, "path") from error


def describe_foreign_content(head: bytes) -> str | None:
    """Say what a file is that is none of raw data, by its first bytes; `None` if that is not known."""
    if not head:
        return "it is empty. Download or convert it again"
    if head[128:132] == b"DICM":
        return "it is a DICOM file: images, not raw k-space"
    start = head.lstrip().lower()
    return next((text for magic, text in _FOREIGN if start.startswith(magic.lower())), None)


def hdf5_open_error(path: Path, error: OSError) -> OSError | ValueError:
    """Make the error to raise where HDF5 cannot open a file: locked, unreadable, foreign and damaged told apart."""
    kind, reason = hdf5_open_fault(path, error)
    return kind(f"`path` {path} {reason}.")


def hdf5_open_fault(path: Path, error: OSError) -> tuple[type[OSError] | type[ValueError], str]:
    """Tell why HDF5 cannot open a file: the kind of error, and a text that goes on after the name of the file."""
    if error.errno == errno.EAGAIN:
        return BlockingIOError, (
            "is in use: another program has it open for writing. Wait until that has closed it, or copy the finished "
            "file"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionError, _NO_PERMISSION
    foreign = describe_foreign_content(first_bytes(path))
    if foreign is not None:
        return ValueError, f"cannot be opened as HDF5: {foreign}"
    return ValueError, (
        f"cannot be opened as HDF5: it is damaged or of another format ({error}). Download it again, or, if the "
        "program that wrote it did not close it, repair it by h5clear --status"
    )


def check_claimed_bytes(n_bytes: int, path: Path, what: str, per_byte: int = CLAIM_PER_BYTE) -> None:
    """Refuse an array that a header claims to be far larger than the file that is to hold its data.

    Args:
        n_bytes: number of bytes that the array would take in memory.
        path: file the array comes from.
        what: name of the array, for the message.
        per_byte: number of bytes that may be taken for each byte of the file, beyond 64 MiB that are always granted.

    Raises:
        ValueError: the array would take more.
    """
    size = path.stat().st_size
    if n_bytes > CLAIM_ALWAYS_GRANTED + per_byte * size:
        raise ValueError(
            f"{what} of {path} would take {n_bytes / 1e6:.0f} MB, but the file has only {size / 1e6:.3g} MB: its "
            "header is wrong, or most of its data is missing."
        )


def is_bart_pair(path: Path) -> bool:
    """Return whether a path is one of BART's cfl and hdr files, or their common name."""
    return path.suffix.lower() in (".cfl", ".hdr") or (not path.exists() and bart_pair(path)[1].exists())


def bart_pair(path: str | os.PathLike) -> tuple[Path, Path]:
    """Return the paths of the .cfl and .hdr of a pair, of which either or the common name is given."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path
    upper = path.suffix.isupper() and path.suffix.lower() in (".cfl", ".hdr")
    endings = (".CFL", ".HDR") if upper else (".cfl", ".hdr")
    return stem.with_name(stem.name + endings[0]), stem.with_name(stem.name + endings[1])


def read_small_text(path: Path, limit: int = 64 * 2**20) -> str:
    """Read the text of a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError, PermissionError: as `check_regular_file`.
        ValueError: the file is larger, no regular file, or no UTF-8 text.
    """
    with open(check_regular_file(path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit / 1e6:.3g} MB: too large for a text file of this kind.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file ({error}).") from error


def _no_permission(path: Path, name: str) -> PermissionError:
    return PermissionError(f"`{name}` {path} {_NO_PERMISSION}.")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
