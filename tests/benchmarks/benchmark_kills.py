"""Kills every long command at random moments, and compares what the next run ends with to a run without kills.

    PYTHONPATH=. python tests/benchmarks/benchmark_kills.py --kills 6

Half of the kills hit a single process, the others a process that has started another one. After each kill the command
is run again with nothing else done; once it ends in order, its results must have the same bits, no process and nothing
else may be left behind. Sizes are tiny: it is about the moments, not about the work.
"""

import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pyarrow.parquet as pq

from sgr_diffusers import cli
from sgr_diffusers.utils.options import OptionParser, ScriptHelp
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import save_tiny_pipeline
from tests.helpers.tiny_training import contents, finish, start_processes, train

SECONDS_TO_END = 30  # in which helpers must notice that their parent is gone
OF_TIME = re.compile(r"^(seconds.*|n_threads|token|runs|file_time|command)$")
TRAINING = {"max_train_steps": 24, "checkpointing_steps": 3, "resume_from_checkpoint": "latest"}


def commands(data, model):
    """Arguments of each command but for its output, and those that let it start another process."""
    two = ["--num-processes", "2"]
    few = ["--model", str(model), "--output", "OUT"]
    few += ["--steps", "2", "--accelerations", "4", "8", "--n-slices-per-scan", "1"]
    scan = str(data / "files_recon_calib-24/MTR_001.h5")
    return {
        "synthesize": (["synthesize", "OUT", "--scans", "2", "1", "1", "--matrix", "4", "48", "40", "--coils", "2",
                        "--voxel-size", "14", "3.2", "3.2"], ["--workers", "2"]),
        "evaluate": (["evaluate", str(data), "--rr-samples", "2", *few], two),
        "calibrate": (["calibrate", str(data), "--split", "test", "--coverage", "0.3", *few], two),
        "reconstruct": (["reconstruct", scan, "--model", str(model), "--output", "OUT", "--steps", "4",
                         "--acceleration", "4", "--num-threads", "1"], two),
    }  # fmt: skip


def run_command(arguments, log):
    """Run `sgr`, quietly; an error ends the process with its code."""
    with log.open("a") as screen, contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        code = cli.main(arguments)
    if code:
        raise SystemExit(code)


def run_training(output, log):
    """Train a tiny prior, and go on where an earlier run was."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train(output, **TRAINING)


def fingerprint(output):
    """Hash of everything in a folder that a run without kills gives again: not times, costs and tokens."""
    digest = {}
    if (output / "checkpoint-24").is_dir():
        return {name: hash(tensor.numpy().tobytes()) for name, tensor in contents(output / "checkpoint-24").items()}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            content = repr([{key: row[key] for key in sorted(row) if not OF_TIME.match(key)} for row in rows])
        elif path.name.endswith(".nii.gz"):
            content = np.asarray(nibabel.load(path).dataobj).tobytes()
        elif path.name in ("settings.json", "config.json"):
            content = "there"
        else:
            content = path.read_bytes()
        content = content.encode() if isinstance(content, str) else content
        digest[str(path.relative_to(output))] = hashlib.sha256(content).hexdigest()
    return digest


def everything(output, model):
    """Fingerprint of the output, and of the calibration in the model's folder."""
    path = model / "calibration.json"
    return fingerprint(output), path.read_bytes() if path.exists() else None


def left_behind(folder, output):
    """Whatever lies beside the output, and hidden files in it."""
    beside = [entry.name for entry in folder.iterdir() if entry != output]
    return beside + [str(path.relative_to(output)) for path in output.rglob(".*")]


def kill_at(seconds, function, *arguments):
    """Start a function in a process and kill it after some time; says whether it was still running, and all ended."""
    (process,) = start_processes(1, function, *arguments)
    family = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_alive():
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True) or family
        time.sleep(0.01)
    was_running = process.is_alive()
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True) or family
    if was_running:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_END)
    alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return was_running, alive


def survive(function, output, log, n_kills, seconds, rng):
    """Kill a run so many times and let it end; returns numbers of kills and of leftover processes."""
    n_killed, n_alive = 0, 0
    while n_killed < n_kills:
        was_running, alive = kill_at(rng.uniform(0.05, seconds), *function(output, log))
        n_killed += was_running
        n_alive += len(alive)
        if not was_running:  # it has ended before: begin anew
            shutil.rmtree(output)
    is_whole = output.exists() and output.parent.parent.name == "reconstruct"  # killed between its end and its exit
    if not is_whole:
        finish(start_processes(1, *function(output, log)))
    return n_killed, n_alive


def main():
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--kills", type=int, default=6, help="number of kills of each command")
    parser.add_argument("--commands", nargs="+", metavar="NAME", help="commands to kill (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_tiny_skm_tea(place / "data", n_scans=(("test", 5),))
        model = save_tiny_pipeline(place / "model")
        functions = {
            command: tuple(
                lambda output, log, given=[*single, *more]: (
                    run_command, [str(output) if word == "OUT" else word for word in given], log
                )
                for more in ([], group)
            )
            for command, (single, group) in commands(place / "data", model).items()
        }  # fmt: skip
        functions["train"] = (lambda output, log: (run_training, output, log),)
        print("| command | processes | kills | same bits | left behind | processes left |\n|---|---|---|---|---|---|")
        for command in args.commands or functions:
            whole = place / command / "whole" / "out"
            log = place / command / "log"
            whole.parent.mkdir(parents=True)
            for _ in range(2):  # the first also imports
                shutil.rmtree(whole, ignore_errors=True)
                start = time.monotonic()
                finish(start_processes(1, *functions[command][0](whole, log)))
                seconds = time.monotonic() - start
            expected = everything(whole, model)
            for number, function in enumerate(functions[command]):
                output = place / command / str(number) / "out"
                output.parent.mkdir()
                n_kills = args.kills // len(functions[command])
                n_killed, n_alive = survive(function, output, log, n_kills, seconds * (1 + number), rng)
                is_same = everything(output, model) == expected
                left = left_behind(output.parent, output)
                print(f"| {command} | {number + 1} | {n_killed} of {n_kills} | {'yes' if is_same else 'NO'} | "
                      f"{', '.join(left) or 'nothing'} | {n_alive} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
