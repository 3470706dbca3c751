import subprocess
import sys

import pytest

from sgr_diffusers.training.files import (
    DiskError,
    disk_errors,
    find_damage,
    only_run,
    seal_folder,
)


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    (folder / "below").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12345678")
    (folder / "below/b.json").write_text("{}")
    seal_folder(folder)
    return folder


def test_a_whole_folder_is_known_as_whole(sealed):
    assert find_damage(sealed) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a.bin").write_bytes(b"1234"), "a.bin has 4 bytes instead of 8"),
        (lambda folder: (folder / "a.bin").write_bytes(b"12345679"), "content of a.bin"),
        (lambda folder: (folder / "below/b.json").unlink(), "below/b.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"a.b'), "manifest.json cannot be read"),
    ],
)
def test_damage_is_named(sealed, damage, message):
    damage(sealed)
    assert message in find_damage(sealed)


def test_failed_writes_are_one_kind_of_error():
    def failing(error):
        with disk_errors("The log", "Go on."):
            raise error

    for error in (OSError(28, "No space left on device"), RuntimeError("[enforce fail] PytorchStreamWriter failed")):
        with pytest.raises(DiskError, match=r"The log could not be written \(.*\)\. Is the disk full\? Go on\."):
            failing(error)
    with pytest.raises(ValueError, match="shapes"):
        failing(ValueError("shapes differ"))


HOLDER = """
import sys, time
from pathlib import Path
from sgr_diffusers.training.files import only_run

with only_run(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(FileExistsError, match=r"Another run is writing to `output_dir` .*run"), only_run(folder):
            pass
        other.kill()
    with only_run(folder):  # a run that was killed is in nobody's way
        pass
