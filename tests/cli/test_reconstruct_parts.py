"""`sgr reconstruct` goes on after it was killed, and shares its slices among processes."""

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from sgr_diffusers import cli
from sgr_diffusers.reconstruction import run, work
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import save_tiny_pipeline
from tests.helpers.tiny_training import start_processes

N_PARTS = 6  # of one slice each


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_skm_tea(root, n_scans=(("train", 1),))
    return root / "files_recon_calib-24/MTR_001.h5", save_tiny_pipeline(root / "pipeline")


def arguments(inputs, output, *more):
    file, model = map(str, inputs)
    fixed = ["--model", model, "--acceleration", "4", "--steps", "2", "--output", str(output)]
    return ["reconstruct", file, *fixed, *more]


def reconstruct(inputs, output, *more):
    assert cli.main([*arguments(inputs, output, *more), "--traceback"]) == 0


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A reconstruction that was not interrupted."""
    output = tmp_path_factory.mktemp("whole") / "out"
    reconstruct(inputs, output)
    return output


def assert_same(output, whole):
    names = sorted(entry.name for entry in whole.iterdir())
    assert sorted(entry.name for entry in output.iterdir()) == names
    for name in set(names) - {"settings.json"}:
        if name.endswith(".nii.gz"):  # the header of gzip has the time in it
            both = [np.asarray(nibabel.load(folder / name).dataobj) for folder in (output, whole)]
            np.testing.assert_array_equal(*both)
        else:
            assert filecmp.cmp(output / name, whole / name, shallow=False), name
    records = [json.loads((folder / "settings.json").read_text()) for folder in (output, whole)]
    assert {key for key in records[0] if records[0][key] != records[1][key]} == {"token"}


def killed_after(n_parts, inputs, output):
    """Reconstruct, and be killed while a part is made after some others."""
    made, reconstruct_volume = [], run.reconstruct_volume

    def reconstruct_or_die(*given):
        if len(made) == n_parts:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(given)
        return reconstruct_volume(*given)

    run.reconstruct_volume = reconstruct_or_die
    cli.main(arguments(inputs, output))


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(inputs, whole, tmp_path, monkeypatch):
    for n_parts in (0, 2):
        (process,) = start_processes(1, killed_after, n_parts, inputs, tmp_path / "out")
        process.join(300)
        assert process.exitcode == -signal.SIGKILL and not (tmp_path / "out").exists()
    made, reconstruct_volume = [], run.reconstruct_volume

    def count(*given):
        made.append(given)
        return reconstruct_volume(*given)

    monkeypatch.setattr(run, "reconstruct_volume", count)
    reconstruct(inputs, tmp_path / "out")
    assert len(made) == N_PARTS - 2  # nothing is done twice
    assert_same(tmp_path / "out", whole)
    assert os.listdir(tmp_path) == ["out"]


def killed_once_it_is_written(inputs, output):
    work.remove_folder = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
    cli.main(arguments(inputs, output))


def test_parts_of_a_run_that_was_killed_at_its_end_are_removed(inputs, whole, tmp_path, capsys):
    (process,) = start_processes(1, killed_once_it_is_written, inputs, tmp_path / "out")
    process.join(300)
    assert process.exitcode == -signal.SIGKILL and len(os.listdir(tmp_path)) == 2
    assert_same(tmp_path / "out", whole)
    assert cli.main(arguments(inputs, tmp_path / "out")) == 2
    assert "is already there" in capsys.readouterr().err and os.listdir(tmp_path) == ["out"]


def test_parts_of_other_settings_are_named_and_kept_unless_they_are_given_up(inputs, tmp_path, capsys):
    (process,) = start_processes(1, killed_after, 1, inputs, tmp_path / "out")
    process.join(300)
    assert cli.main(arguments(inputs, tmp_path / "out", "--seed", "1")) == 2
    message = capsys.readouterr().err
    assert "unfinished run with other settings (settings.seed: 0 there, 1 now)" in message
    assert len(list(tmp_path.glob(".out.part/slices-*.npz"))) == 1
    changed = tmp_path / "changed"  # the same networks, another setting of the checkpoint
    shutil.copytree(inputs[1], changed)
    index = json.loads((changed / "model_index.json").read_text())
    (changed / "model_index.json").write_text(json.dumps({**index, "is_equivariant": True}))
    assert cli.main(arguments((inputs[0], changed), tmp_path / "out")) == 2
    message = capsys.readouterr().err
    assert "checkpoint.is_equivariant: false there, true now" in message and "goes on from there" not in message
    shutil.rmtree(changed)
    reconstruct(inputs, tmp_path / "out", "--seed", "1", "--overwrite")
    assert json.loads((tmp_path / "out/settings.json").read_text())["seed"] == 1
    assert os.listdir(tmp_path) == ["out"]


def test_runs_and_their_processes_share_the_slices(inputs, whole, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sgr_diffusers.cli", *arguments(inputs, tmp_path / "out", "--num-threads", "1")]
    processes = [
        subprocess.Popen([*command, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for more in (["--num-processes", "2"], ["--part", "2/2"])
    ]
    said = [process.communicate(timeout=600) for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes, said
    for code, (_, error) in zip(codes, said, strict=True):
        assert code == 0 or "is already there" in error  # the other one was done before this one began
        assert "Traceback" not in error  # of a helper, whose work the others would do
    assert_same(tmp_path / "out", whole)
    assert os.listdir(tmp_path) == ["out"]


def test_dry_run_estimates_and_writes_nothing(inputs, tmp_path, capsys):
    assert cli.main(arguments(inputs, tmp_path / "out", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert f"6 slices in {N_PARTS} parts of up to 1: " in printed and "held in memory" not in printed
    assert os.listdir(tmp_path) == []


def test_dry_run_says_what_a_file_that_is_read_as_a_whole_takes(inputs, tmp_path, capsys):
    with h5py.File(inputs[0]) as file:
        arrays = file["kspace"][..., 0, :], file["maps"][..., 0]  # slice, y, x, coil
    kspace, maps = (array.transpose(0, 3, 1, 2) for array in arrays)
    np.savez(tmp_path / "scan.npz", kspace=kspace, maps=maps)
    command = [*arguments((tmp_path / "scan.npz", inputs[1]), tmp_path / "out", "--dry-run"), "--voxel-size", *"111"]
    assert cli.main(command) == 0
    assert re.search(r"All slices are held in memory: \d\S* GB\.", capsys.readouterr().out)
