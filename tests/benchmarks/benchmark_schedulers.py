"""Measures every supported scheduler at several numbers of steps on the bundled checkpoint; prints the guide's table.

    sgr synthesize runs/knee --scans 0 0 8
    python tests/benchmarks/benchmark_schedulers.py --data_dir runs/knee --output schedulers.json

For each: PSNR of the plain reconstruction, precision of the lower and recall of the upper bound against the
segmentation of the fully sampled image, V_unc / V_up (all over all slices together, mean of classes), evaluations of
the prior, and seconds as a multiple of DDIM with 100 steps. Rows are written as they are made; a run that was
interrupted goes on where it was.
"""

import argparse
import inspect
import json
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from benchmark_quality import BUNDLED, evaluated_slices, fully_sampled_segmentation, load

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.data.skm_tea import list_scans
from sgr_diffusers.evaluation.metrics import psnr
from sgr_diffusers.scheduler_table import NOISE_LEVEL

REFERENCE = ("DDIM eta=1", 100)
# Classes with settings that change what they do; all others as they come, with the prior's noise levels.
VARIANTS = {
    "DDIM eta=1": ("DDIMScheduler", {}, 1.0),
    "DDIM eta=0": ("DDIMScheduler", {}, 0.0),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, 0.0),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 0.0),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 0.0),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}, 0.0),
}
LEFT_OUT = {"DDIMParallelScheduler", "DDPMParallelScheduler", "CogVideoXDDIMScheduler"}  # the same as their originals


def variants():
    """Name -> (class, settings, eta) of all that fit a prior trained with discrete noise levels."""
    listed = {entry[0] for entry in VARIANTS.values()}
    rest = {
        name.removesuffix("Scheduler").removesuffix("Discrete").removesuffix("Multistep"): (name, {}, 0.0)
        for name, kind in NOISE_LEVEL.items()
        if kind != "flow" and name not in listed | LEFT_OUT
    }
    return VARIANTS | rest


def measure(pipe, data, scheduler, settings, eta, steps, seed):
    """One row: scores of all slices together, evaluations and seconds."""
    scheduler_class = getattr(diffusers, scheduler)
    known = inspect.signature(scheduler_class.__init__).parameters
    settings = {key: value for key, value in {"clip_sample": False, **settings}.items() if key in known}
    pipe.scheduler = scheduler_class.from_config(data["config"], **settings)
    calls = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    kspace, mask, maps, target, reference = data["problem"]
    common = {"coil_maps": maps, "num_inference_steps": steps, "eta": eta, "batch_size": 16}
    plain = pipe(kspace, mask, target="none", generator=torch.Generator().manual_seed(seed), **common)
    evaluations = len(calls) // -(-len(kspace) // 16)
    handle.remove()
    start = time.perf_counter()
    out = pipe(kspace, mask, target="both", generator=torch.Generator().manual_seed(seed), **common)
    seconds = time.perf_counter() - start
    rows = []
    for c in range(1, len(out.classes) + 1):
        low, up = (out.segmentations[:, c - 1, k] == c for k in range(2))
        true = reference == c
        hits = [(low & true).sum() / low.sum(), (up & true).sum() / true.sum(), (up.sum() - low.sum()) / up.sum()]
        rows.append([float(value) for value in hits])
    precision, recall, share = np.nanmean(rows, axis=0).tolist()
    quality = float(psnr(plain.images[:, 0, 0].abs(), target.abs()))
    return {"psnr": quality, "precision": precision, "recall": recall, "share": share} | {
        "evaluations": evaluations,
        "seconds": seconds,
    }


def prepare(pipe, scans, n_slices, acceleration):
    """Slices of several scans in one batch, with the reference segmentation and the prior's scheduler."""
    parts = [load(scan, acceleration, evaluated_slices(scan, n_slices)) for scan in scans]
    kspace, maps, target = (torch.cat([part[k] for part in parts]) for k in (0, 1, 3))
    mask = torch.cat([part[2].expand(len(part[0]), -1, -1) for part in parts])
    return (kspace, mask, maps, target, fully_sampled_segmentation(pipe, target))


def main():
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--n_scans", type=int, default=4)
    parser.add_argument("--slices_per_scan", type=int, default=1)
    parser.add_argument("--acceleration", type=float, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 25, 50, 100])
    parser.add_argument("--schedulers", nargs="+", choices=list(variants()), default=list(variants()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    pipe = SGRMRIPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    scans = list_scans(args.data_dir, "test")[: args.n_scans]
    data = {
        "config": pipe.scheduler.config,
        "problem": prepare(pipe, scans, args.slices_per_scan, args.acceleration),
    }
    output = Path(args.output)
    rows = json.loads(output.read_text()) if output.exists() else {}
    wanted = [REFERENCE, *((name, steps) for steps in sorted(args.steps) for name in args.schedulers)]
    for name, steps in dict.fromkeys(wanted):
        key = f"{name} | {steps} | {args.acceleration:g}x | {args.n_scans}x{args.slices_per_scan} | {args.seed}"
        if key in rows:
            continue
        try:
            rows[key] = measure(pipe, data, *variants()[name], steps, args.seed)
        except ValueError as error:  # a scheduler for distilled models makes no more than its own 50 steps
            rows[key] = {"error": str(error)}
        output.write_text(json.dumps(rows, indent=1))
        print(key, rows[key], flush=True)
    print_table(rows, args)


def print_table(rows, args):
    """The table of the guide, in markdown: differences are to DDIM with 100 steps."""
    suffix = f"{args.acceleration:g}x | {args.n_scans}x{args.slices_per_scan} | {args.seed}"
    base = rows[f"{REFERENCE[0]} | {REFERENCE[1]} | {suffix}"]
    print("\n| scheduler | steps | evaluations | PSNR | precision | recall | V_unc / V_up | to DDIM-100 | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key, row in rows.items():
        name, steps, *rest = key.split(" | ")
        if " | ".join(rest) != suffix or "error" in row:
            continue
        print(
            f"| {name} | {steps} | {row['evaluations']} | {row['psnr']:.2f} ({row['psnr'] - base['psnr']:+.2f}) "
            f"| {row['precision']:.3f} ({row['precision'] - base['precision']:+.3f}) "
            f"| {row['recall']:.3f} ({row['recall'] - base['recall']:+.3f}) | {row['share']:.3f} "
            f"| {row['share'] / base['share'] - 1:+.0%} | {row['seconds'] / base['seconds']:.2f} |"
        )


if __name__ == "__main__":
    main()
