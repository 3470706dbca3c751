import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from sgr_diffusers.utils.disk import DiskError, disk_errors, only_run
from sgr_diffusers.utils.files import replaced_folder, whole_file


def test_failed_writes_are_one_kind_of_error():
    def failing(error):
        with disk_errors("The log", "Go on."):
            raise error

    for error in (OSError(28, "No space left on device"), RuntimeError("[enforce fail] PytorchStreamWriter failed")):
        with pytest.raises(DiskError, match=r"The log could not be written \(.*\)\. Go on\."):
            failing(error)
    with pytest.raises(ValueError, match="shapes"):
        failing(ValueError("shapes differ"))


@contextmanager
def full_disk(n_bytes=4096):
    """No file may grow beyond some bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_hdf5(path, array):
    import h5py

    with h5py.File(path, "w") as file:
        file["array"] = array


def write_safetensors(path, array):
    from safetensors.numpy import save_file

    save_file({"array": array}, path)


WRITERS = {
    "numpy": lambda path, array: path.write_bytes(array.tobytes()),
    "safetensors": write_safetensors,
    "hdf5": write_hdf5,
}


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_one_line_that_names_the_file(library, tmp_path):
    path = tmp_path / "folder" / "file"
    with full_disk(), pytest.raises(DiskError) as error, whole_file(path) as partial:
        WRITERS[library](partial, np.zeros(100_000))
    message = str(error.value)
    assert message.startswith(f"{path} could not be written (") and message.endswith("or choose another folder.")
    assert list(path.parent.iterdir()) == []


def test_names_and_folders_that_cannot_be_written_are_named_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DiskError, match=r"below/out could not .*A part of this path is a file"):
        with replaced_folder(tmp_path / "file" / "below" / "out"):
            pass
    with pytest.raises(DiskError, match="Choose a shorter name"), whole_file(tmp_path / ("long" * 60)):
        pass


def test_an_input_that_may_not_be_read_is_not_taken_for_a_failed_write(tmp_path):
    with pytest.raises(PermissionError) as error, whole_file(tmp_path / "out"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "input"))
    assert not isinstance(error.value, DiskError)
    with pytest.raises(FileNotFoundError, match="no such input"), disk_errors(tmp_path / "out"):
        try:
            open(tmp_path / ("long" * 60))
        except OSError as error:
            raise FileNotFoundError("no such input") from error
    with pytest.raises(DiskError, match="may write to"), whole_file(tmp_path / "out"):
        raise PermissionError(13, "Permission denied", str(tmp_path))


HOLDER = """
import sys, time
from pathlib import Path
from utils.disk import only_run

with only_run(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


def test_two_runs_do_not_write_to_one_folder(tmp_path, light_environment):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=light_environment) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(FileExistsError, match=r"writing to `output_dir` .*run: process \d+") as error:
            with only_run(folder, "output_dir"):
                pass
        assert f"process {other.pid} on" in str(error.value)
        other.kill()
    with only_run(folder):  # a run that was killed is in nobody's way
        pass
    assert list(folder.iterdir()) == []
