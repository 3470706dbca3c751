"""Measures how memory and time of `sgr reconstruct` grow with the slices of a scan, and what a second process saves.

    PYTHONPATH=. python tests/benchmarks/benchmark_scan_size.py --slices 4 16 64
    PYTHONPATH=. python tests/benchmarks/benchmark_scan_size.py --slices 64 --steps 20

Each run is a process of its own, whose peak of resident memory counts; the scans are files in SKM-TEA's layout with
slices of half of SKM-TEA's sides, the networks are tiny, so that the slices, not the networks, would make it grow. The
times are those of the whole command: take more steps to compare processes, and as many idle cores as processes.
"""

import resource
import tempfile
import time
from pathlib import Path

import psutil

from sgr_diffusers import cli
from sgr_diffusers.utils.options import OptionParser, ScriptHelp
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import save_tiny_pipeline
from tests.helpers.tiny_training import finish, start_processes


def reconstruct(scan, model, output, n_steps, n_processes, peak):
    """Reconstruct a scan, and write the peak of resident memory in MB, of this process and of its largest helper."""
    options = ["--steps", str(n_steps), "--acceleration", "4", "--classes", "meniscus", "--num-threads", "1"]
    run = ["--model", str(model), "--output", str(output), "--num-processes", str(n_processes)]
    if cli.main(["reconstruct", str(scan), *options, *run]):
        raise SystemExit(1)
    own, of_helpers = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak.write_text(f"{max(own, of_helpers) / 1024:.0f}")


def main():
    """Measure and print a table."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--slices", type=int, nargs="+", default=[4, 16, 64], help="numbers of slices")
    parser.add_argument("--steps", type=int, default=2, help="steps of a reconstruction")
    args = parser.parse_args()
    print(f"{psutil.cpu_count()} cores, of which others use {psutil.cpu_percent(1):.0f} %")
    print("| slices | k-space, MB | processes | peak memory, MB | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = save_tiny_pipeline(root / "pipeline")
        seconds = []
        for number, n_slices in enumerate([*args.slices, args.slices[-1]]):
            data, n_processes = root / str(n_slices), 1 + (number == len(args.slices))
            if not data.exists():
                write_tiny_skm_tea(data, n_scans=(("train", 1),), shape=(n_slices, 256, 80))
            scan, start = data / "files_recon_calib-24/MTR_001.h5", time.perf_counter()
            run = scan, model, root / f"out{number}", args.steps, n_processes, root / "peak"
            finish(start_processes(1, reconstruct, *run), 3600)
            seconds.append(time.perf_counter() - start)
            size = n_slices * 256 * 80 * 2 * 2 * 8 / 1e6  # echoes, coils, bytes
            cells = n_slices, f"{size:.0f}", n_processes, (root / "peak").read_text()
            print("|", " | ".join(map(str, cells)), f"| {seconds[-1]:.0f} |", flush=True)
    print(f"Two processes take {seconds[-1] / seconds[-2]:.2f} of the time of one.")


if __name__ == "__main__":
    main()
