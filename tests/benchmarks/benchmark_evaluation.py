"""Measures what an evaluation costs: where a slice's time goes, n slices against one, two processes against one.

    python tests/benchmarks/benchmark_evaluation.py --data-dir runs/knee

Goals: n slices cost n times one slice within 10 %; two processes take little more than half of one's time. Needs as
many idle cores as processes. Times are those of the evaluation alone, without loading networks and data.
"""

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import time

from sgr_diffusers.evaluation import runner
from sgr_diffusers.evaluation.costs import cost_table
from sgr_diffusers.evaluation.plan import EvaluationPlan
from sgr_diffusers.evaluation.settings import EvaluationSettings
from sgr_diffusers.utils.options import OptionParser, ScriptHelp


def seconds_of(data_dir, model, steps, n_slices, folder):
    """Seconds of an evaluation of `n_slices` slices of one scan in this process."""
    request = runner.EvaluationRequest(
        data_dir=data_dir,
        output=folder,
        model=model,
        plan=EvaluationPlan(accelerations=(8.0,)),
        settings=EvaluationSettings(num_inference_steps=steps),
        max_scans=1,
        n_slices_per_scan=n_slices,
    )
    with contextlib.redirect_stderr(io.StringIO()):
        prepared = runner.prepare(request)
    start = time.perf_counter()
    runner.evaluate(prepared, folder, progress=False)
    return time.perf_counter() - start


def seconds_of_processes(data_dir, model, steps, n_slices, n_processes, folder):
    """Seconds of `sgr evaluate`, without those that it takes when nothing is left to do."""
    command = [
        sys.executable,
        "-m",
        "sgr_diffusers.cli",
        "evaluate",
        data_dir,
        "--output",
        folder,
        "--steps",
        str(steps),
    ]
    command += ["--accelerations", "8", "--max-scans", "2", "--n-slices-per-scan", str(n_slices)]
    command += ["--num-processes", str(n_processes), *(["--model", model] if model else [])]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert re.search(r"(\d+) of \1 units are done", done.stdout), done.stdout
    return times[0] - times[1]


def main():
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", help="folder or Hub repository of a pipeline; default: the bundled one")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--n-slices", type=int, default=4)
    parser.add_argument(
        "--no-processes", action="store_true", help="leave out the comparison of one and two processes"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        seconds_of(args.data_dir, args.model, args.steps, 1, f"{place}/warm")
        one = seconds_of(args.data_dir, args.model, args.steps, 1, f"{place}/one")
        several = seconds_of(args.data_dir, args.model, args.steps, args.n_slices, f"{place}/several")
        print(cost_table(f"{place}/several"))
        ratio = several / one / args.n_slices
        print(f"\n{args.n_slices} slices: {several:.1f} s, one: {one:.1f} s; {ratio:.3f} of {args.n_slices} times one")
        if not args.no_processes:
            times = [
                seconds_of_processes(args.data_dir, args.model, args.steps, args.n_slices, n, f"{place}/processes{n}")
                for n in (1, 2)
            ]
            print(f"One process {times[0]:.1f} s, two {times[1]:.1f} s: {times[1] / times[0]:.2f} of the time")


if __name__ == "__main__":
    main()
