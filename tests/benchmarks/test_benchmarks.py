"""Every script of this folder runs to its end at tiny size, within a time limit of its own."""

import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from sgr_diffusers.reconstruction.source import read_scan
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import calibrate_tiny_pipeline, save_tiny_pipeline
from tests.helpers.tiny_training import finish, start_processes

FOLDER = Path(__file__).parent
# script -> (seconds that it may take, arguments, a line that it prints at the end)
SCRIPTS = {
    "appearance": (300, "--n-images 2 --n-knees 1 --output OUTPUT/appearance.json", r"Areas in mm\^2"),
    "architectures": (
        300,
        "--minutes 0.02 --variants 'as bundled' 'predicts the noise' --bank-slices 2 --validation-images 2 "
        "--train-batch-size 1 --output OUTPUT/architectures.csv",
        r"predicts the noise +\d+ +\d+ +\d+\.\d+ +\d",
    ),
    "calibrated": (
        300,
        "--data-dir DATA --model CALIBRATED --second-segmentation MODEL --slices 2,3 --n-scans 1 --accelerations 4 "
        "--output OUTPUT/ends.csv",
        r"ascent +4x +\d",
    ),
    "data": (
        300,
        "--n-slices 2 --n-coils 1 --size 64 16 --n-scans 2 --repetitions 1",
        r"MB from random row 20 to row 100",
    ),
    "evaluation": (300, "--data-dir DATA --model MODEL --steps 2 --n-slices 1 --no-processes", r"of 1 times one"),
    "hostile_files": (300, "", r"\d+ files: at most \d+ MB"),
    "kills": (600, "--kills 2 --commands synthesize", r"synthesize \| 2 \| 1 of 1 \| yes \| nothing \| 0"),
    "paper_size": (
        300,
        "--preset small --size 32 16 --coils 2 --classes 2 --batch-sizes 2",
        r"--fast, 12 steps: \d+ images without, \d+ with a graph; \d+\.\d times cheaper",
    ),
    "quality": (
        300,
        "--data-dir DATA --model MODEL --n-scans 1 --slices-per-scan 1 --bound-slices-per-scan 1 --accelerations 8 "
        "--steps 2 --num-threads 1",
        r"8x +\d+\.\d%",
    ),
    "scan_size": (300, "--slices 2 3", r"\| 3 \| \d+ \| 2 \| \d+ \| \d+ \|\nTwo processes take \d\.\d\d of"),
    "schedulers": (
        300,
        "--data-dir DATA --model MODEL --n-scans 1 --steps 2 --schedulers UniPC --num-threads 1 "
        "--output OUTPUT/slices.json",
        r"\| UniPC \| 2 \| 2 \| ",
    ),
    "segmentation": (
        300,
        "--model MODEL/segmentation_model --data-dir knees=DATA --drawn 1 --num-threads 1 --output OUTPUT/dice.json",
        r"knees, agreement with its mirror image: \d\.\d\d\d(.*\n)+drawn, 0\.8 mm, contrast any: \d",
    ),
    "speed": (300, "--model MODEL --repetitions 2 --branches 1 2 --num-threads 1 --only times", r"1: 1\.00  2: \d"),
    "training": (
        300,
        "--size 32 32 --n-blocks 2 --block 2 --repetitions 1 --memory-batch 1 --only loops",
        r"% of the time with one every 1000 steps",
    ),
    "visitors": (600, "--model MODEL --visitors 2 --minutes 0.05", r"'result': \d+"),
}

# a quarter of a minute to a minute each
SLOW = {"architectures", "kills", "scan_size", "schedulers", "speed", "training", "visitors"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Folders that stand for the words in capitals: scans and pipelines."""
    root = tmp_path_factory.mktemp("benchmarks")
    write_tiny_skm_tea(root / "DATA", n_scans=(("test", 1),))
    save_tiny_pipeline(root / "MODEL")
    mask = read_scan(next((root / "DATA").glob("*/*.h5")), mask=4.0).mask
    calibrate_tiny_pipeline(save_tiny_pipeline(root / "CALIBRATED"), mask, 4.0)
    return root


def run_script(path, arguments, screen):
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *arguments]
    with screen.open("w") as file, redirect_stdout(file):
        runpy.run_path(str(path), run_name="__main__")


def test_every_script_is_run_here_or_has_tests_of_its_own():
    names = {path.stem.removeprefix("benchmark_") for path in FOLDER.glob("benchmark_*.py")}
    # test_benchmark_calibration.py, test_benchmark_real.py, tests/interop/test_deepinv.py
    assert names == {*SCRIPTS, "calibration", "deepinv", "real", "units"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SCRIPTS])
def test_the_script_runs_to_its_end(name, paths, tmp_path):
    seconds, arguments, last = SCRIPTS[name]
    arguments = re.sub(r"DATA|MODEL|CALIBRATED", lambda word: str(paths / word[0]), arguments)
    arguments = shlex.split(arguments.replace("OUTPUT", str(tmp_path)))
    screen = tmp_path / "screen"
    finish(start_processes(1, run_script, FOLDER / f"benchmark_{name}.py", arguments, screen), timeout=seconds)
    assert re.search(last, screen.read_text())
