"""Unpacks the regular files of a tar or zip archive from elsewhere, each one whole and inside the folder.

Nothing of an archive is trusted: a member that would leave the folder, a link, a device, a sparse member, or one that
brings the whole to far more than the archive holds, ends the unpacking before anything of this member is written.
"""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.files import whole_file

__all__ = ["UnsafeArchiveError", "unpack"]

_HEADER_BYTES = 1 << 20  # most that a long name or a table of attributes may take in a tar file
_BLOCK = 1 << 20


class UnsafeArchiveError(ValueError):
    """An archive was refused; the message names it and the member."""


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses extended headers that would fill the memory, which `tarfile` reads as a whole."""

    def _proc_member(self, file: tarfile.TarFile) -> tarfile.TarInfo:
        header = self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if (header or self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)) and self.size > _HEADER_BYTES:
            raise UnsafeArchiveError(f"a header of {self.size} bytes")
        return super()._proc_member(file)


def unpack(
    archive: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    rename: Callable[[PurePosixPath], PurePosixPath | None] | None = None,
    max_ratio: float | int = 200,
    max_bytes: int | None = None,
    max_members: int = 100_000,
) -> list[Path]:
    """Unpack the regular files of an archive; one that was interrupted is finished.

    A file appears under its name when it is complete. One that is there, with the size that the archive says, is kept.

    Args:
        archive: archive file, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .zip.
        folder: folder to unpack to; made if it is not there.
        rename: function from the path of a member to the one it gets, or to `None` to leave the member out. The result
            is checked like any other.
        max_ratio: most bytes that one byte of the archive may unpack to, over the whole archive.
        max_bytes: most bytes in all; `None`: the free space of the disk.
        max_members: most members.

    Returns:
        Paths of the files of the archive, in its order.

    Raises:
        UnsafeArchiveError: a member would leave the folder or is no regular file or folder, or a limit is passed.
        ValueError: the archive is damaged or of another kind.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = archive.stat().st_size
    limit = min(shutil.disk_usage(folder).free if max_bytes is None else max_bytes, int(size * max_ratio) + _BLOCK)
    files, total = [], 0
    try:
        members = _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)
        for number, (name, n_bytes, open_member) in enumerate(members):
            if number >= max_members:
                raise UnsafeArchiveError(f"more than {max_members} members")
            total += n_bytes
            if total > limit:
                raise UnsafeArchiveError(
                    f"member {name!r} brings it to {total} bytes; the {size} bytes of it may unpack to {limit}"
                )
            path = _target(folder, name, rename)
            if open_member is None or path is None:
                continue
            if not (path.is_file() and path.stat().st_size == n_bytes):
                _write(path, open_member(), n_bytes)
            files.append(path)
    except UnsafeArchiveError as error:
        raise UnsafeArchiveError(f"{archive} was refused: {error}. Do not trust where it came from.") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive
        raise ValueError(f"{archive} is damaged or not an archive ({error}). Delete it and fetch it again.") from error
    return files


def _target(folder: Path, name: str, rename: Callable | None) -> Path | None:
    """Where a member goes.

    Raises:
        UnsafeArchiveError: outside the folder.
    """
    path = PurePosixPath(name)
    for step in (None, rename):
        path = path if step is None else step(path)
        if path is None:
            return None
        if path.is_absolute() or ".." in path.parts or "\\" in str(path) or ":" in str(path) or "\0" in str(path):
            raise UnsafeArchiveError(f"member {name!r} would leave the folder")
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):  # through a link that was there before
        raise UnsafeArchiveError(f"member {name!r} would leave the folder")
    return target


def _write(path: Path, source: Any, n_bytes: int) -> None:
    with whole_file(path) as part, open(part, "wb") as file, source:
        written = 0
        while block := source.read(min(_BLOCK, n_bytes - written + 1)):
            written += len(block)
            if written > n_bytes:
                raise UnsafeArchiveError(f"member {path.name!r} holds more than the {n_bytes} bytes it states")
            file.write(block)
        if written < n_bytes:
            raise EOFError(f"member {path.name!r} ends after {written} of {n_bytes} bytes")


def _tar_members(archive: Path) -> Iterator[tuple[str, int, Callable[[], Any] | None]]:
    """Name, size and how to open it (`None` for a folder) of each member, read in one pass."""
    with tarfile.open(archive, "r|*", tarinfo=_BoundedTarInfo) as file:
        for member in file:
            if member.issparse() or not (member.isfile() or member.isdir()):
                raise UnsafeArchiveError(f"member {member.name!r} is a link, a device or sparse")
            yield member.name, member.size, None if member.isdir() else lambda one=member: file.extractfile(one)


def _zip_members(archive: Path) -> Iterator[tuple[str, int, Callable[[], Any] | None]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = (member.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000, 0o040000):
                raise UnsafeArchiveError(f"member {member.filename!r} is a link or a device")
            is_dir = member.is_dir()
            yield member.filename, member.file_size, None if is_dir else lambda one=member: file.open(one)
