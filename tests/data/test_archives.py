"""Archives are unpacked whole or refused; nothing leaves the folder."""

import io
import tarfile
from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest

from sgr_diffusers.data import archives
from sgr_diffusers.data.archives import UnsafeArchiveError, unpack

FILES = {"a/one.h5": np.random.default_rng(0).bytes(3000), "a/b/two.nii.gz": b"2" * 10, "three": b""}


def tar(path, files=None, members=(), mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in (FILES if files is None else files).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        for member in members:
            file.addfile(member)
    return path


def special(name, kind, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / "data"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.tar.xz"])
def test_files_come_out_as_they_went_in(tmp_path, folder, name):
    modes = {"a.tar.gz": "w:gz", "a.tar": "w", "a.tar.xz": "w:xz"}
    archive = tar(tmp_path / name, mode=modes[name])
    paths = unpack(archive, folder)
    assert [str(path.relative_to(folder)) for path in paths] == list(FILES)
    assert contents(folder) == FILES


def test_what_is_there_is_kept_and_what_is_not_whole_is_finished(tmp_path, folder):
    archive = tar(tmp_path / "a.tar.gz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.tar\.gz is damaged"):
        unpack(archive, folder)
    assert not [path for path in folder.rglob(".*.partial*")]
    archive.write_bytes(whole)
    (folder / "a").mkdir(exist_ok=True, parents=True)
    (folder / "a/one.h5").write_bytes(b"3" * 3000)  # of the right size: not written again
    (folder / "three").write_bytes(b"half")
    unpack(archive, folder)
    assert contents(folder) == {**FILES, "a/one.h5": b"3" * 3000}


def test_an_interrupt_leaves_no_half_file(tmp_path, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(archives.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(tar(tmp_path / "a.tar.gz"), folder)
    assert contents(folder) == {}


def test_rename(tmp_path, folder):
    unpack(
        tar(tmp_path / "a.tar"), folder, rename=lambda path: PurePosixPath("x") / path.name if path.suffix else None
    )
    assert set(contents(folder)) == {"x/one.h5", "x/two.nii.gz"}
    with pytest.raises(UnsafeArchiveError, match="would leave the folder"):
        unpack(tar(tmp_path / "a.tar"), folder, rename=lambda path: PurePosixPath("..") / path.name)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a/../../../../tmp/evil_of_sgr_test"])
def test_members_that_would_leave_the_folder(tmp_path, folder, name):
    archive = tar(tmp_path / "a.archive", {"good": b"1", name: b"evil"})
    with pytest.raises(UnsafeArchiveError, match=r"a\.archive was refused: member .*evil.* would leave the folder"):
        unpack(archive, folder)
    assert set(contents(tmp_path / "out")) <= {"data/good"}


def test_an_absolute_member_is_put_into_the_folder(tmp_path, folder):
    unpack(tar(tmp_path / "a.tar", {"/tmp/evil_of_sgr_test": b"evil"}), folder)
    assert contents(folder) == {"tmp/evil_of_sgr_test": b"evil"}


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "inside"),
        special("link", tarfile.LNKTYPE, "../../outside"),
        special("device", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices(tmp_path, folder, member):
    with pytest.raises(UnsafeArchiveError, match="is a link, a device or sparse"):
        unpack(tar(tmp_path / "a.tar.gz", {}, [member]), folder)
    assert not list(folder.iterdir())


def test_a_link_that_was_there_before(tmp_path, folder):
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeArchiveError, match="would leave the folder"):
        unpack(tar(tmp_path / "a.tar.gz"), folder)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_without_a_name_of_its_own(tmp_path, folder):
    with pytest.raises(UnsafeArchiveError, match=r"member '\.' is a file without a name"):
        unpack(tar(tmp_path / "a.tar.gz", {".": b"beside the folder"}), folder)
    assert list(folder.parent.iterdir()) == [folder] and not list(folder.iterdir())


def test_more_than_the_disk_has_room_for(tmp_path, folder, monkeypatch):
    archive = tar(tmp_path / "a.tar.gz", {"zeros": bytes(20_000_000)})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UnsafeArchiveError, match="'zeros' does not fit on the disk"):
        unpack(archive, folder)
    assert not list(folder.iterdir())


def test_what_is_no_archive(tmp_path, folder):
    (tmp_path / "a.tar.gz").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="damaged or not an archive"):
        unpack(tmp_path / "a.tar.gz", folder)
