"""Measures what the pipeline costs beyond its networks, in time and memory, and prints ratios taken in one run.

    python tests/benchmarks/benchmark_speed.py

Goals: a guided step at most 1.15 times its bare network calls (UNet and segmentation, forward and backward, same
batch, same threads), an unguided step at most 1.10 times a bare UNet forward pass, time per slice and branch flat from
1 to 32 branches, peak memory linear in the batch and flat in the number of steps. Ratios are medians of alternating
repetitions, so that what else the machine does falls on both sides.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.guidance.losses import guidance_loss
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

BUNDLED = Path(__file__).parents[2] / "sgr_diffusers" / "pretrained" / "synthetic_knee"
N_COILS = 8


def load(model):
    """The pipeline of a folder, which pushes in every step: the calls here are too short for a late start of it."""
    pipe = SGRMRIPipeline.from_pretrained(model)
    pipe.register_to_config(guidance_from=1.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def problem(n_slices, size):
    """Random k-space of slices of this size: timings do not depend on what is in the picture."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.view_as_complex(torch.randn(N_COILS, *size, 2, generator=generator))
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.rand(size, generator=generator) < 0.25
    kspace = torch.view_as_complex(torch.randn(n_slices, N_COILS, *size, 2, generator=generator)) * mask
    return kspace, mask, maps


def call(pipe, n_slices, target, steps, **settings):
    """Seconds of one call of the pipeline."""
    kspace, mask, maps = problem(n_slices, pipe.unet.config.sample_size)
    start = time.perf_counter()
    pipe(
        kspace,
        mask,
        target=target,
        coil_maps=maps,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        **settings,
    )
    return time.perf_counter() - start


def seconds_per_step(pipe, n_slices, target, **settings):
    """Seconds of one step: the difference of two calls, so that preparation and the last step cancel."""
    return (call(pipe, n_slices, target, 6, **settings) - call(pipe, n_slices, target, 2, **settings)) / 4


def bare_unguided(pipe, n):
    """Seconds of one UNet forward pass on n images."""
    x = torch.randn(n, 2, *pipe.unet.config.sample_size)
    with torch.no_grad():
        start = time.perf_counter()
        pipe.unet(x, 500)
    return time.perf_counter() - start


def bare_guided(pipe, n):
    """Seconds of UNet and segmentation, forward and backward with respect to the image, on n images."""
    x = torch.randn(n, 2, *pipe.unet.config.sample_size, requires_grad=True)
    classes, up = torch.arange(n) % 4 + 1, torch.arange(n) % 2 == 0
    start = time.perf_counter()
    output = pipe.unet(x, 500).sample
    logits = pipe.segmentation_model(output.square().sum(1, keepdim=True).add(1e-6).sqrt())
    torch.autograd.grad(guidance_loss(logits, classes, up).sum(), x)
    return time.perf_counter() - start


def ratio(measured, bare, repetitions):
    """Median of measured / bare over alternating repetitions, with the quartiles."""
    measured(), bare()
    ratios = []
    for _ in range(repetitions):
        before = bare()
        step = measured()
        ratios.append(step / (0.5 * (before + bare())))
    quartiles = statistics.quantiles(ratios, n=4)
    return f"{quartiles[1]:.3f} ({quartiles[0]:.3f}, {quartiles[2]:.3f})"


def peak_memory(model, n_slices, steps, batch_size):
    """Peak resident memory in MiB of a fresh process that makes one guided call, and of one that only loads."""
    code = (
        "import re, sys, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(2)\n"
        "import benchmark_speed as b; pipe = b.load(sys.argv[2])\n"
        "n, steps, batch = (int(a) for a in sys.argv[3:6])\n"
        "if steps: b.call(pipe, n, 'both', steps, classes=[2], batch_size=batch or None)\n"
        # not getrusage: its maximum survives exec, so that a large parent would hide what is measured
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    arguments = [str(Path(__file__).parent), str(model), str(n_slices), str(steps), str(batch_size)]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def main():
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--branches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="of one call")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--only", choices=("times", "memory"), help="one of the two parts")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    if args.only != "memory":
        times(load(args.model), args.repetitions, args.branches)
    if args.only != "times":
        memory(args.model)


def times(pipe, repetitions, counts):
    """Print what steps cost."""
    n = 8
    guided = ratio(lambda: seconds_per_step(pipe, 1, "both"), lambda: bare_guided(pipe, n), repetitions)
    print(f"guided step / bare network calls, {n} branches (goal 1.15):    {guided}", flush=True)
    unguided = ratio(lambda: seconds_per_step(pipe, n, "none"), lambda: bare_unguided(pipe, n), repetitions)
    print(f"unguided step / bare UNet forward, {n} slices (goal 1.10):     {unguided}", flush=True)

    print("time per slice and branch, relative to the first number of branches (goal: flat):")
    seconds = {k: [] for k in counts}
    for _ in range(3):
        for k in counts:
            seconds[k].append(call(pipe, k, "upper", 3, classes=[2]) / k)
    one = statistics.median(seconds[counts[0]])
    print("  " + "  ".join(f"{k}: {statistics.median(seconds[k]) / one:.2f}" for k in counts), flush=True)


def memory(model):
    """Print what calls hold."""
    base = peak_memory(model, 1, 0, 0)
    print(f"peak memory above the loaded pipeline ({base:.0f} MiB):")
    for k in (2, 4, 8):
        extra = peak_memory(model, k, 3, 0) - base
        print(f"  {2 * k:2d} branches at once: {extra:7.0f} MiB, {extra / (2 * k):6.1f} a branch", flush=True)
    bounded = peak_memory(model, 8, 3, 4) - base
    print(f"  16 branches, batch_size 4: {bounded:.0f} MiB")
    few, many = (peak_memory(model, 2, steps, 0) - base for steps in (3, 30))
    print(f"  30 steps / 3 steps (goal: flat): {many / few:.2f}")


if __name__ == "__main__":
    main()
