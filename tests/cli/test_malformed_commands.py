"""Malformed commands of `sgr`: each ends with exit code 2 and one line that has the essential words.

All are refused before a pipeline is loaded. What is wrong inside of a file is in `tests/io/test_malformed_files.py`.
"""

import os
import re

import pytest

from sgr_diffusers import cli

RECONSTRUCT = ["reconstruct", "scan.npy", "--output", "out"]

# ruff: noqa: E501 - one line a case
# name -> arguments, essential words of the message
COMMANDS = {
    "another command": (["restore"], "invalid choice: 'restore'"),
    "no file": (["reconstruct"], "the following arguments are required"),
    "another option": ([*RECONSTRUCT, "--colour", "red"], "unrecognized arguments: --colour red"),
    "no steps": ([*RECONSTRUCT, "--steps", "0"], "argument --steps.*: .*whole number .*'0'"),
    "steps of text": ([*RECONSTRUCT, "--steps", "x"], "argument --steps.*: .*whole number .*'x'"),
    "steps NaN": ([*RECONSTRUCT, "--steps", "nan"], "argument --steps.*: .*whole number .*'nan'"),
    "steps without end": ([*RECONSTRUCT, "--steps", "9" * 20], "argument --steps.*: .*whole number from 1 to 10000"),
    "slices of text": ([*RECONSTRUCT, "--slices", "x"], "argument --slices: .*START:STOP.*'x'"),
    "slices from the end": ([*RECONSTRUCT, "--slices=-3:2"], "argument --slices: .*START:STOP.*'-3:2'"),
    "slices of four numbers": ([*RECONSTRUCT, "--slices", "1:2:3:4"], "argument --slices: .*START:STOP"),
    "slices of nothing": ([*RECONSTRUCT, "--slices", ""], "argument --slices: .*START:STOP.*''"),
    "echo 0": ([*RECONSTRUCT, "--echo", "0"], "argument --echo: .*a whole number of at least 1, got '0'"),
    "no coils": ([*RECONSTRUCT, "--coils", "0"], "argument --coils: .*a whole number of at least 1, got '0'"),
    "negative repetition": ([*RECONSTRUCT, "--repetition", "-1"], "argument --repetition: .*a whole number of at least 0"),
    "no batch": ([*RECONSTRUCT, "--batch-size", "0"], "argument --batch-size: .*a whole number of at least 1, got '0'"),
    "slices without a step": ([*RECONSTRUCT, "--slices", "1:5:0"], "argument --slices: .*'1:5:0'"),
    "acceleration 1": ([*RECONSTRUCT, "--acceleration", "1"], "argument --acceleration: .*a number above 1.*'1'"),
    "acceleration NaN": ([*RECONSTRUCT, "--acceleration", "nan"], "argument --acceleration: .*'nan'"),
    "eta 2": ([*RECONSTRUCT, "--eta", "2"], "argument --eta: .*from 0 .*to 1.*'2'"),
    "negative strength": ([*RECONSTRUCT, "--strength", "-1"], "argument --strength.*: .*0 or larger"),
    "another target": ([*RECONSTRUCT, "--target", "x"], "argument --target: invalid choice: 'x'"),
    "another type": ([*RECONSTRUCT, "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    "no noise": ([*RECONSTRUCT, "--noise-std", "0"], "argument --noise-std: .*positive"),
    "crop 2": ([*RECONSTRUCT, "--crop", "2"], "argument --crop: .*from 0 .*'2'"),
    "negative iterations": ([*RECONSTRUCT, "--cg-iterations", "-1"], "argument --cg-iterations: .*whole number"),
    "two voxel lengths": ([*RECONSTRUCT, "--voxel-size", "1", "1"], "argument --voxel-size: expected 3 arguments"),
    "voxel NaN": ([*RECONSTRUCT, "--voxel-size", "1", "1", "nan"], "argument --voxel-size: .*'nan'"),
    "negative seed": ([*RECONSTRUCT, "--seed", "-1"], "argument --seed: .*whole number"),
    "a missing file": (["reconstruct", "nowhere.h5", "--output", "out"], "nowhere.h5"),
    "a pipe": (["reconstruct", "pipe.h5", "--output", "out"], "pipe.h5 must be a regular file, but is a named pipe"),
    "a pipe without an ending": (["reconstruct", "pipe", "--output", "out"], "pipe must be a regular file, but is a named pipe"),
    "a device": (["reconstruct", os.devnull, "--output", "out"], "must be a regular file, but is a"),
    "a folder": (["reconstruct", "taken", "--output", "out"], "taken must be a regular file, but is a folder"),
    "a link to nothing": (["reconstruct", "dangling.h5", "--output", "out"], "dangling.h5"),
    "a link to itself": (["reconstruct", "loop.h5", "--output", "out"], "loop.h5"),
    "a taken output": (["reconstruct", "scan.npy", "--output", "taken"], "taken"),
    "an output that is a file": (["reconstruct", "scan.npy", "--output", "scan.npy"], "scan.npy"),
    "seed of a data set": (["synthesize", "knee", "--seed", "-1"], "argument --seed: .*whole number"),
    "no workers": (["synthesize", "knee", "--workers", "0"], "argument --workers: .*whole number"),
    "no scans": (["synthesize", "knee", "--scans", "0", "0", "0"], "at least one scan"),
    "data that is not there": (["data", "check", "nowhere"], "nowhere"),
    "processes without end": (["evaluate", "nowhere", "--output", "out", "--num-processes", "1000000"], "`num_threads` and `num_processes` must be from 1 to .*, got 1 and 1000000"),
    "threads without end": (["evaluate", "nowhere", "--output", "out", "--num-threads", "1000000"], "`num_threads` and `num_processes` must be from 1 to .*, got 1000000 and 1"),
    "voxels NaN": (["synthesize", "knee", "--voxel-size", "nan", "1", "1"], "voxel_size_mm: expected three positive, finite numbers"),
    "a probability of 2": (["synthesize", "knee", "--finding-probability", "2"], "finding_probability: expected a number from 0 to 1, got 2"),
    "scans without end": (["synthesize", "knee", "--scans", "9" * 20, "0", "0"], "n_scans: expected .* at most 1000000, got"),
    "a report of a pipe": (["report", "pipe", "--output", "out"], "pipe holds no config.json"),
    "a report of a picture": (["report", "binary"], "binary is neither a results folder nor a table1.csv"),
    "an address that is none": (["app", "--host", "999.999.1.1"], "`host` '999.999.1.1' is no address of this machine"),
    "a data set that is a pipe": (["data", "import-brain-tumour", "pipe", "--output", "out"], "`source` pipe must be a regular file, but is a named pipe"),
    "a checkpoint that is not there": (["convert", "--prior", "nowhere.pt", "converted"], "nowhere.pt"),
    "a checkpoint that is a pipe": (["convert", "--prior", "pipe", "converted"], "pipe"),
    "a port below 0": (["app", "--port", "-5"], "argument --port: .*whole number from 1 to 65535"),
    "a port beyond all": (["app", "--port", "99999999"], "argument --port: .*whole number from 1 to 65535"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_malformed_commands(tmp_path, monkeypatch, capsys, name):
    arguments, words = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.npy").write_bytes(b"some words")
    (tmp_path / "binary").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("somebody's")
    for pipe in ("pipe", "pipe.h5"):
        os.mkfifo(pipe)
    os.symlink("nowhere.h5", "dangling.h5")
    os.symlink("loop.h5", "loop.h5")
    try:
        code = cli.main(arguments)
    except SystemExit as ended:  # by argparse
        code = ended.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and "Traceback" not in lines
    assert re.search(words, lines[-1]), lines[-1]
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["notes.txt"]
