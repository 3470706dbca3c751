"""Unpacks the regular files of a tar archive from elsewhere, each one whole and inside the folder.

Nothing of an archive is trusted: a member that would leave the folder, a link or a device ends the unpacking before
anything of this member is written.
"""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..utils.disk import DiskError
from ..utils.files import whole_file

__all__ = ["UnsafeArchiveError", "unpack"]


class UnsafeArchiveError(ValueError):
    """An archive was refused; the message names it and the member."""


def unpack(
    archive: str | os.PathLike,
    folder: str | os.PathLike,
    rename: Callable[[PurePosixPath], PurePosixPath | None] = lambda path: path,
) -> list[Path]:
    """Unpack the regular files of an archive; one that was interrupted is finished.

    A file appears under its name when it is complete. One that is there, with the size that the archive says, is kept.

    Args:
        archive: archive file, .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz.
        folder: folder to unpack to; made if it is not there.
        rename: function from the path of a member to the one it gets, or to `None` to leave the member out. The result
            is checked like any other.

    Returns:
        Paths of the files of the archive, in its order.

    Raises:
        UnsafeArchiveError: a member would leave the folder or is no regular file or folder, or the archive holds more
            than the disk has room for.
        ValueError: the archive is damaged or of another kind.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files, room = [], shutil.disk_usage(folder).free
    try:
        with tarfile.open(archive, "r|*") as file:
            for member in file:
                name = rename(PurePosixPath(member.name))
                if name is None:
                    continue
                path = folder / _checked(member, str(name), folder).name
                room -= member.size
                if room < 0:
                    raise UnsafeArchiveError(f"member {member.name!r} does not fit on the disk")
                if member.isdir():
                    continue
                if path == folder:
                    raise UnsafeArchiveError(f"member {member.name!r} is a file without a name of its own")
                if not (path.is_file() and path.stat().st_size == member.size):
                    content = file.extractfile(member)
                    assert content is not None  # of a folder or a link
                    with whole_file(path) as part, part.open("wb") as target:
                        shutil.copyfileobj(content, target)
                files.append(path)
    except UnsafeArchiveError as error:
        raise UnsafeArchiveError(f"{archive} was refused: {error}. Do not trust where it came from.") from error
    except DiskError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive
        raise ValueError(f"{archive} is damaged or not an archive ({error}). Delete it and fetch it again.") from error
    return files


def _checked(member: tarfile.TarInfo, name: str, folder: Path) -> tarfile.TarInfo:
    """Let a member, under its new name, through the data filter of `tarfile`; links are refused altogether."""
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise UnsafeArchiveError(f"member {member.name!r} is a link, a device or sparse")
    try:
        return tarfile.data_filter(member.replace(name=name, deep=False), str(folder))
    except tarfile.FilterError as error:
        raise UnsafeArchiveError(f"member {member.name!r} would leave the folder") from error
