"""Measures what the bundled checkpoint reaches on scans it was not trained on, and prints it beside the goal.

    sgr synthesize runs/knee --scans 0 0 8
    python tests/benchmarks/benchmark_quality.py --data-dir runs/knee

Four tables: Dice of the segmentation model on fully sampled slices; PSNR of the unguided reconstruction against
zero-filling and CG-SENSE stopped at its best iteration (an oracle: it looks at the reference); order and width of the
bounds; PSNR of the bounds. Per volume means: over all evaluated slices of a scan together.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sgr_diffusers import SegmentationUNet, SGRMRIPipeline
from sgr_diffusers.data.skm_tea import CLASS_NAMES, list_scans
from sgr_diffusers.evaluation.metrics import dice, psnr
from sgr_diffusers.mri.operators import SenseOperator
from sgr_diffusers.mri.solvers import conjugate_gradient
from sgr_diffusers.utils.options import OptionParser, ScriptHelp
from sgr_diffusers.utils.weights import weights_hash

BUNDLED = Path(__file__).parents[2] / "sgr_diffusers" / "pretrained" / "synthetic_knee"


def fully_sampled_segmentation(pipe, target):
    """Labels (slice, y, x) of fully sampled complex images (slice, y, x)."""
    scale = torch.quantile(target.abs().flatten(1), 0.99, dim=1)[:, None, None]
    return torch.cat([pipe.segment(part).argmax(1) for part in (target / scale).split(16)])


def segmentation_dice(pipe, scans):
    """Median over scans of the Dice per scan and class against the manual labels."""
    scores = []
    for scan in scans:
        predicted = fully_sampled_segmentation(pipe, torch.from_numpy(scan.target())).numpy()
        labels = scan.labels()
        scores.append(
            [float(dice(torch.from_numpy(predicted == c), torch.from_numpy(labels == c))) for c in range(1, 5)]
        )
    return np.median(scores, axis=0)


def evaluated_slices(scan, n):
    """``n`` slices spread evenly over those with at least 20 labelled pixels, away from the ends."""
    relevant = np.flatnonzero((scan.labels() > 0).sum((1, 2)) >= 20)
    return [int(relevant[int((k + 0.5) / n * len(relevant))]) for k in range(n)]


def best_cg_sense(operator, kspace, target, most=30):
    """PSNR of the volume at each number of iterations, and the best of them."""
    adjoint = operator.adjoint(kspace)
    image, scores = torch.zeros_like(adjoint), []
    for iterations in range(1, most + 1):
        image = conjugate_gradient(
            operator.normal, adjoint, torch.zeros_like(adjoint), max_iterations=iterations
        ).solution
        scores.append(float(psnr(image.abs(), target.abs())))
        if len(scores) > 3 and scores[-1] < max(scores) - 0.5:
            break
    return max(scores), int(np.argmax(scores)) + 1


def main():
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--segmentation-model", help="folder of one that guides and measures in place of the model's")
    parser.add_argument("--split", default="test")
    parser.add_argument("--n-scans", type=int, default=8)
    parser.add_argument(
        "--slices-per-scan", type=int, default=6, help="slices per scan for the unguided reconstruction"
    )
    parser.add_argument(
        "--bound-slices-per-scan", type=int, default=2, help="slices per scan for the bounds; 0 skips them"
    )
    parser.add_argument("--accelerations", type=float, nargs="*", default=[4, 8, 12, 16], help="of the unguided")
    parser.add_argument("--bound-accelerations", type=float, nargs="+", help="for the bounds; default: the same")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the networks")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--output", help="also write the numbers to this json file")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    pipe = SGRMRIPipeline.from_pretrained(args.model)
    if args.segmentation_model:
        pipe.register_modules(segmentation_model=SegmentationUNet.from_pretrained(args.segmentation_model))
    weights = "-".join(weights_hash(network) for network in (pipe.unet, pipe.segmentation_model))  # as float32
    pipe.to(getattr(torch, args.dtype))
    pipe.set_progress_bar_config(disable=True)
    scans = list_scans(args.data_dir, args.split)[: args.n_scans]
    results = {
        "command": " ".join(["python", *sys.argv]),
        "weights": weights,
        "split": args.split,
        "scans": [scan.scan_id for scan in scans],
        "steps": args.steps,
        "seed": args.seed,
    }

    scores = segmentation_dice(pipe, scans)
    results["dice"] = dict(zip(CLASS_NAMES, scores.tolist(), strict=True))
    print(f"Dice per scan, median of {len(scans)} scans (goal 0.88; meniscus 0.82)")
    for name, score in results["dice"].items():
        print(f"  {name:20s} {score:.3f}")

    print(f"\nPSNR in dB, mean of volumes, {args.steps} steps (goal: unguided above both, at 4x by 1 dB)")
    print("  acc.   zero-filled  CG-SENSE (stop)  unguided   gain")
    for acceleration in args.accelerations:
        rows = []
        for number, scan in enumerate(scans):
            kspace, maps, mask, target, operator = load(
                scan, acceleration, evaluated_slices(scan, args.slices_per_scan)
            )
            zero_filled = float(psnr(operator.adjoint(kspace).abs(), target.abs()))
            cg, stop = best_cg_sense(operator, kspace, target)
            out = pipe(
                kspace,
                mask,
                target="none",
                coil_maps=maps,
                num_inference_steps=args.steps,
                generator=torch.Generator().manual_seed(args.seed + number),
            )
            rows.append((zero_filled, cg, stop, float(psnr(out.images[:, 0, 0].abs(), target.abs()))))
        zero_filled, cg, stop, unguided = np.mean(rows, axis=0)
        results[f"psnr_{acceleration:g}x"] = {"zero_filled": zero_filled, "cg_sense": cg, "unguided": unguided}
        cells = f"{zero_filled:11.2f}  {cg:8.2f} ({stop:4.1f})  {unguided:8.2f}  {unguided - cg:+5.2f}"
        print(f"  {acceleration:4g}x  {cells}", flush=True)

    if args.bound_slices_per_scan:
        bounds(pipe, scans, args, results)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1))


def load(scan, acceleration, slices):
    """Undersampled k-space, maps, mask, target and operator of some slices."""
    mask = torch.from_numpy(scan.mask(acceleration))
    kspace = torch.from_numpy(np.stack([scan.kspace(i) for i in slices])) * mask
    maps = torch.from_numpy(np.stack([scan.coil_maps(i) for i in slices]))
    target = torch.from_numpy(np.stack([scan.target(i) for i in slices]))
    return kspace, maps, mask, target, SenseOperator(maps, mask)


def bounds(pipe, scans, args, results):
    """Order, width and PSNR of the bounds."""
    print(
        "\nBounds (goals: ordered in 97 %; V_unc/V_up at least doubles from 4x to 16x; PSNR within 0.3 dB of unguided)"
    )
    print(
        "  acc.   ordered   V_unc/V_up (quartiles)   precision  recall   PSNR lower / upper - unguided   s per slice"
    )
    for acceleration in args.bound_accelerations or args.accelerations:
        ordered, shares, precision, recall, losses, seconds = [], [], [], [], [], []
        for number, scan in enumerate(scans):
            slices = evaluated_slices(scan, args.bound_slices_per_scan)
            kspace, maps, mask, target, _ = load(scan, acceleration, slices)
            settings = {"coil_maps": maps, "num_inference_steps": args.steps}
            seed = args.seed + number
            plain = pipe(kspace, mask, target="none", generator=torch.Generator().manual_seed(seed), **settings)
            start = time.perf_counter()
            out = pipe(kspace, mask, target="both", generator=torch.Generator().manual_seed(seed), **settings)
            seconds.append((time.perf_counter() - start) / len(slices))
            reference = fully_sampled_segmentation(pipe, target)
            middle = plain.segmentations[:, 0, 0]
            base = float(psnr(plain.images[:, 0, 0].abs(), target.abs()))
            for c in range(4):
                low, up = (out.segmentations[:, c, k] == c + 1 for k in range(2))
                counts = [x.sum((1, 2)) for x in (low, middle == c + 1, up)]
                ordered += ((counts[0] <= counts[1]) & (counts[1] <= counts[2])).tolist()
                true = reference == c + 1
                if up.any():
                    shares.append(float((up.sum() - low.sum()) / up.sum()))
                if low.any():
                    precision.append(float((low & true).sum() / low.sum()))
                if true.any():
                    recall.append(float((up & true).sum() / true.sum()))
                losses.append([float(psnr(out.images[:, c, k].abs(), target.abs())) - base for k in range(2)])
        quartiles = np.percentile(shares, [25, 50, 75])
        loss = np.mean(losses, axis=0)
        results[f"bounds_{acceleration:g}x"] = {
            "ordered": float(np.mean(ordered)),
            "uncertain_share": float(quartiles[1]),
            "precision_lower": float(np.median(precision)),
            "recall_upper": float(np.median(recall)),
            "psnr_lower": loss[0],
            "psnr_upper": loss[1],
        }
        width = f"{quartiles[1]:.3f} ({quartiles[0]:.3f}, {quartiles[2]:.3f})"
        cells = f"{np.mean(ordered):8.1%}   {width}      {np.median(precision):.3f}      {np.median(recall):.3f}"
        print(f"  {acceleration:4g}x  {cells}    {loss[0]:+.2f} / {loss[1]:+.2f} {np.mean(seconds):20.1f}", flush=True)


if __name__ == "__main__":
    main()
