"""Measures every supported scheduler at several numbers of steps on the bundled checkpoint; prints the guide's table.

    sgr synthesize runs/knee --scans 0 0 16
    python tests/benchmarks/benchmark_schedulers.py --data-dir runs/knee --output runs/schedulers.json

With ``--guide docs/how-to/schedulers.md`` the tables are also written into a block of the guide, with the checkpoint's
hash.

For each: PSNR of the plain reconstruction (mean over slices), precision of the lower and recall of the upper bound
against the segmentation of the fully sampled image (of each scan and class, the median, as in the paper's Table 1),
V_unc / V_up (pixels of all slices and classes together: few slices have no steady median), evaluations of the prior,
and seconds of a guided slice as a multiple of DDIM with 100 steps. A slice is bounded in the classes that its fully
sampled image shows; the slices of the scans lie at different heights of the joint. Slices are kept as they are made,
and a run that was interrupted goes on where it was.
"""

import hashlib
import inspect
import json
import multiprocessing
import shlex
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import torch
from benchmark_quality import BUNDLED, fully_sampled_segmentation, load

from sgr_diffusers import SenseOperator, SGRMRIPipeline
from sgr_diffusers.data.skm_tea import list_scans
from sgr_diffusers.evaluation.metrics import psnr
from sgr_diffusers.mri.operators import complex_to_channels
from sgr_diffusers.mri.solvers import conjugate_gradient
from sgr_diffusers.pipeline.inputs import slice_scale
from sgr_diffusers.schedulers.support import FORGETS_NOISE, NOISE_LEVEL, supported_name
from sgr_diffusers.schedulers.timesteps import fast_timesteps
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

MARKS = ("<!-- {}: begin -->", "<!-- {}: end -->")
REFERENCE = ("DDIM eta=1", 100)
# As fast_timesteps, but from half the first timestep, and from conjugate gradients with noise rather than noise alone.
WARM_START, WARM_TIMESTEP = "DDPM, warm start", 250
# Classes with settings that change what they do; all others as they come, with the prior's noise levels.
VARIANTS = {
    "DDIM eta=1": ("DDIMScheduler", {}, 1.0),
    "DDPM, fast_timesteps": ("DDPMScheduler", {}, 0.0),
    WARM_START: ("DDPMScheduler", {}, 0.0),
    "DDIM eta=0": ("DDIMScheduler", {}, 0.0),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, 0.0),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 0.0),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}, 0.0),
}
# The same as DDIM with eta = 1 (DDPM, Euler ancestral) or eta = 0 (Euler), or as their originals.
LEFT_OUT = {
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
}


def variants():
    """Name -> (class, settings, eta) of all that fit a prior trained with discrete noise levels."""
    listed = {entry[0] for entry in VARIANTS.values()}
    rest = {
        name.removesuffix("Scheduler").removesuffix("Discrete").removesuffix("Multistep"): (name, {}, 0.0)
        for name, kind in NOISE_LEVEL.items()
        if kind != "flow" and name not in listed | LEFT_OUT
    }
    return VARIANTS | rest


def start_worker(model, strength, guidance_from, dtype, num_threads):
    """Load the pipeline, once in each process."""
    global PIPE, CONFIG
    torch.set_num_threads(num_threads)
    PIPE = SGRMRIPipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    PIPE.set_progress_bar_config(disable=True)
    PIPE.register_to_config(guidance_strength=strength, guidance_from=guidance_from)
    CONFIG = PIPE.scheduler.config


def evaluated_slice(scan, number, n_scans, k, n_slices):
    """Slice `k` of `n_slices` of scan `number`: the scans' slices together are spread evenly over the joint."""
    relevant = np.flatnonzero((scan.labels() > 0).sum((1, 2)) >= 20)
    return int(relevant[int((k + (number + 0.5) / n_scans) / n_slices * len(relevant))])


def spread_order(n):
    """Numbers below `n`, those of any first part of them spread evenly: 0, n / 2, n / 4, 3 n / 4, ..."""
    bits = max(n - 1, 1).bit_length()
    return sorted(range(n), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))


def measure(name, steps, scan, index, acceleration, seed, strength_factor):
    """One slice by one scheduler: squared error, pixel counts of each class, evaluations and seconds."""
    scheduler, settings, eta = variants()[name]
    scheduler_class = getattr(diffusers, scheduler)
    known = inspect.signature(scheduler_class.__init__).parameters
    settings = {key: value for key, value in {"clip_sample": False, **settings}.items() if key in known}
    PIPE.scheduler = scheduler_class.from_config(CONFIG, **settings)
    kspace, maps, mask, target, _ = load(scan, acceleration, [index])
    reference = fully_sampled_segmentation(PIPE, target)[0]
    classes = [c for c in range(1, len(PIPE.class_names) + 1) if (reference == c).any()]
    common = {"coil_maps": maps, "num_inference_steps": steps, "eta": eta}
    if name.endswith("fast_timesteps"):
        common["timesteps"] = fast_timesteps(steps)
    if name == WARM_START:
        common["timesteps"] = fast_timesteps(steps, start=WARM_TIMESTEP)
        common["latents"] = warm_latents(kspace, maps, mask, seed)
    calls = []
    handle = PIPE.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        plain = PIPE(kspace, mask, target="none", generator=torch.Generator().manual_seed(seed), **common)
    except ValueError as error:  # a scheduler for distilled models makes no more than its own 50 steps
        return {"error": str(error)}
    finally:
        handle.remove()
    row = {"psnr": float(psnr(plain.images[0, 0].abs(), target.abs())), "evaluations": len(calls)}
    if supported_name(PIPE.scheduler) in FORGETS_NOISE:
        return row  # refused when guided
    strength = None if strength_factor is None else strength_factor * 0.5 / steps
    start = time.perf_counter()
    out = PIPE(
        kspace,
        mask,
        target="both",
        classes=classes,
        guidance_strength=strength,
        generator=torch.Generator().manual_seed(seed),
        **common,
    )
    counts = {}
    for k, c in enumerate(classes):
        low, up = (out.segmentations[0, k, j] == c for j in range(2))
        true = reference == c
        counts[c] = [int(pixels.sum()) for pixels in (low & true, low, up & true, true, up)]
    return {**row, "counts": counts, "seconds": time.perf_counter() - start}


def warm_latents(kspace, maps, mask, seed):
    """Conjugate gradients from zero, in the scale of the prior, with the noise of the warm start's first timestep."""
    operator = SenseOperator(maps, mask)
    rhs = operator.adjoint(kspace)
    image = conjugate_gradient(operator.normal, rhs, torch.zeros_like(rhs), PIPE.config.cg_iterations).solution
    scale = slice_scale(rhs, PIPE.config.scale_quantile, PIPE.config.scale_correction)
    clean = complex_to_channels(image / scale[:, None, None])
    abar = float(PIPE.scheduler.alphas_cumprod[WARM_TIMESTEP])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return abar**0.5 * clean + (1 - abar) ** 0.5 * noise


def summarize(rows):
    """Scores of all slices, given as (scan, result of `measure`)."""
    results = [row for _, row in rows]
    summary = {"psnr": float(np.mean([row["psnr"] for row in results])), "evaluations": results[0]["evaluations"]}
    if "counts" not in results[0]:
        return {**summary, **dict.fromkeys(("precision", "recall", "share", "seconds"), float("nan"))}
    counts = {}
    for scan, row in rows:
        for c, values in row["counts"].items():
            counts[scan, c] = counts.get((scan, c), 0) + np.array(values)
    low_true, low, up_true, true, up = np.stack(list(counts.values())).T
    return {
        **summary,
        "precision": float(np.nanmedian(low_true / np.where(low, low, np.nan))),
        "recall": float(np.median(up_true / true)),
        "share": float((up.sum() - low.sum()) / up.sum()),
        "seconds": float(np.sum([row["seconds"] for row in results])),
    }


def parse_arguments():
    """Command line."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--split", default="test")
    parser.add_argument("--n-scans", type=int, default=4)
    parser.add_argument("--slices-per-scan", type=int, default=1)
    parser.add_argument("--acceleration", type=float, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 25, 50, 100])
    parser.add_argument("--schedulers", nargs="+", choices=list(variants()), default=list(variants()))
    parser.add_argument(
        "--strength-factor", type=float, help="times 0.5 / steps is the strength; default: the pipeline's own choice"
    )
    parser.add_argument("--strength", type=float, help="b in each of 100 steps of DDIM; default: the checkpoint's")
    parser.add_argument("--guidance-from", type=float, help="share of the training time; default: the checkpoint's")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--num-threads", type=int, default=2, help="of each process")
    parser.add_argument("--output", required=True, help="json file of the slices done, continued if it exists")
    parser.add_argument("--report", action="store_true", help="only tabulate the slices that are complete")
    parser.add_argument("--guide", help="markdown file to write the tables into")
    parser.add_argument("--guide-block", default="all schedulers", help="name of its block that they go into")
    args = parser.parse_args()
    index = json.loads((Path(args.model) / "model_index.json").read_text())
    args.strength = index["guidance_strength"] if args.strength is None else args.strength
    args.guidance_from = index.get("guidance_from", 1.0) if args.guidance_from is None else args.guidance_from
    return args


def main():
    """Run what is missing and print."""
    args = parse_arguments()
    scans = list_scans(args.data_dir, args.split)[: args.n_scans]
    slices = [
        (scans[number], evaluated_slice(scans[number], number, len(scans), k, args.slices_per_scan))
        for number in spread_order(len(scans))
        for k in range(args.slices_per_scan)
    ]
    n_slices, output = len(slices), Path(args.output)
    done = json.loads(output.read_text()) if output.exists() else {}
    setting = f"{args.acceleration:g}x | seed {args.seed} | b {args.strength:g} | {args.dtype}"
    if args.guidance_from < 1:
        setting += f" | from {args.guidance_from:g}"
    if args.strength_factor is not None:
        setting += f" | factor {args.strength_factor:g}"
    columns = [REFERENCE] if args.strength_factor is None else []
    columns += [(name, steps) for steps in sorted(args.steps) for name in args.schedulers]
    columns = list(dict.fromkeys(columns))
    jobs = {
        f"{name} | {steps} | {scan.scan_id} {index} | {setting}": (name, steps, scan, index)
        for scan, index in slices
        for name, steps in columns
    }
    if args.report:
        missing = {job[2:] for key, job in jobs.items() if key not in done}
        slices = [entry for entry in slices if entry not in missing]
        if not slices:
            raise SystemExit(f"{output} has no slice with all of the columns asked for.")
        jobs = {}
    with ProcessPoolExecutor(
        args.workers,
        multiprocessing.get_context("spawn"),
        start_worker,
        (args.model, args.strength, args.guidance_from, args.dtype, args.num_threads),
    ) as pool:
        settings = (args.acceleration, args.seed, args.strength_factor)
        futures = {key: pool.submit(measure, *job, *settings) for key, job in jobs.items() if key not in done}
        for key, future in futures.items():
            done[key] = json.loads(json.dumps(future.result()))  # labels are text as in rows of an earlier run
            output.write_text(json.dumps(done, indent=1))
            print(key, done[key], flush=True)
    rows = {}
    for column in columns:
        name, steps = column
        found = [
            (scan.scan_id, done[f"{name} | {steps} | {scan.scan_id} {index} | {setting}"]) for scan, index in slices
        ]
        if not any("error" in row for _, row in found):
            rows[column] = summarize(found)
    of_how_many = f"{len(slices)} slices of {len({scan.scan_id for scan, _ in slices})} scans"
    if len(slices) < n_slices:
        of_how_many += f" (the first of the command's {n_slices} that were complete)"
    text = tables(rows, args, of_how_many)
    print(text)
    if args.guide:
        guide = Path(args.guide)
        begin, end = (mark.format(args.guide_block) for mark in MARKS)
        before, found, rest = guide.read_text().partition(begin)
        if not found or end not in rest:
            raise SystemExit(f"{guide} has no block {begin} ... {end}")
        guide.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def tables(rows, args, slices):
    """The tables of the guide, in markdown: differences are to DDIM with 100 steps."""
    base = rows.get(REFERENCE) or next(iter(rows.values()))
    command = f"python tests/benchmarks/benchmark_schedulers.py --data-dir runs/knee --n-scans {args.n_scans}"
    command += f" --split {args.split}" if args.split != "test" else ""
    command += f" --slices-per-scan {args.slices_per_scan} --acceleration {args.acceleration:g} --dtype {args.dtype}"
    command += f" --strength {args.strength:g} --guidance-from {args.guidance_from:g}"
    command += f" --steps {' '.join(map(str, sorted(args.steps)))}"
    if set(args.schedulers) != set(variants()):
        command += f" --schedulers {shlex.join(args.schedulers)}"
    pushed = "in all steps" if args.guidance_from >= 1 else f"below {args.guidance_from:g} of the training time"
    weights = Path(args.model) / "unet" / "diffusion_pytorch_model.safetensors"
    columns = sorted({steps for _, steps in rows})
    lines = [
        f"`{command} --workers {args.workers} --num-threads {args.num_threads} --output runs/schedulers.json`",
        "",
        f"{slices} of the {args.split} split, {args.acceleration:g}x, seed {args.seed}, networks in {args.dtype}, "
        f"prior `{hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}`, b = {args.strength:g} {pushed}. "
        "In brackets: difference from DDIM with eta=1 and 100 steps. Time: that of the bounds, relative to the same.",
        "",
        "V_unc / V_up by number of steps:",
        "",
        "| scheduler | " + " | ".join(str(steps) for steps in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in dict.fromkeys(name for name, _ in rows):
        cells = []
        for steps in columns:
            row = rows.get((name, steps))
            cells.append(f"{row['share']:.3f} ({row['share'] / base['share'] - 1:+.0%})" if row else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| scheduler | steps | evaluations | PSNR | precision of lower | recall of upper | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, steps), row in rows.items():
        lines.append(
            f"| {name} | {steps} | {row['evaluations']} | {row['psnr']:.2f} ({row['psnr'] - base['psnr']:+.2f}) "
            f"| {row['precision']:.3f} ({row['precision'] - base['precision']:+.3f}) "
            f"| {row['recall']:.3f} ({row['recall'] - base['recall']:+.3f}) | {row['seconds'] / base['seconds']:.2f} |"
        )
    return "\n".join(lines).replace("nan (+nan%)", "").replace("nan (+nan)", "").replace("| nan |", "| |")


if __name__ == "__main__":
    main()
