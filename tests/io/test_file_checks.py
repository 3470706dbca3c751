import errno
import os
from pathlib import Path

import pytest

from sgr_diffusers.io.file_checks import check_claimed_bytes, check_regular_file, hdf5_open_error, read_small_text


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for name, said in (("pipe.h5", "is a named pipe"), (".", "is a folder")):
        with pytest.raises(ValueError, match=f"must be a regular file, but {said}"):
            check_regular_file(tmp_path / name)
    with pytest.raises(ValueError, match="is a device"):
        check_regular_file("/dev/null")
    for missing in ("nothing.h5", "a" * 300, "null\0byte"):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            check_regular_file(tmp_path / missing)


def error(number, text):
    return OSError(number, text)


@pytest.mark.parametrize(
    ("found", "kind", "said"),
    [
        (error(errno.EAGAIN, "unable to lock file"), BlockingIOError, "another program has it open for writing"),
        (error(errno.EACCES, "Permission denied"), PermissionError, "may not be read by this user"),
        (OSError("truncated file: eof = 10"), ValueError, "damaged or of another format"),
    ],
)
def test_reasons_are_told_apart(tmp_path, found, kind, said):
    (tmp_path / "scan.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(kind, match=rf"scan\.h5 .*{said}") as caught:
        raise hdf5_open_error(tmp_path / "scan.h5", found)
    assert ("Download it again" in str(caught.value)) == (said == "damaged or of another format")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_without_permission(tmp_path):
    path = tmp_path / "scan.h5"
    path.touch(mode=0)
    with pytest.raises(PermissionError, match="may not be read by this user"):
        check_regular_file(path)


def test_claims_are_measured_by_the_file(tmp_path):
    path = tmp_path / "scan.h5"
    path.write_bytes(bytes(1_000_000))
    check_claimed_bytes(200_000_000, path, "`kspace`")
    with pytest.raises(ValueError, match=r"`kspace` of .*scan\.h5 would take 300 MB, but the file has only 1 MB"):
        check_claimed_bytes(300_000_000, path, "`kspace`")


def test_texts_have_a_limit(tmp_path):
    path = Path(tmp_path / "notes.json")
    path.write_text("words")
    assert read_small_text(path) == "words"
    with pytest.raises(ValueError, match="too large for a text file"):
        read_small_text(path, limit=3)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a text file"):
        read_small_text(path)
