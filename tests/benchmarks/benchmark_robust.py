"""Compares the bounds by two segmentation models, in the slices that two evaluations share, and their Dice.

    sgr evaluate runs/knee --output runs/evaluation --n-slices-per-scan 2
    sgr evaluate runs/knee --output runs/evaluation_robust --n-slices-per-scan 2 --methods SGR --segmentation DIR
    python tests/benchmarks/benchmark_robust.py --data_dir runs/knee --models STANDARD DIR \
        --evaluations runs/evaluation runs/evaluation_robust --output runs/robust.json

For each acceleration, model and reference (the same model on the fully sampled image, or the manual labels): precision
of the lower and recall of the upper bound and V_unc / V_up, medians over scans and classes of scores of volumes, as
in the paper's Table 1; then the median of the paired differences. Dice: median over scans, mean over classes, of the
fully sampled test slices, and of some of them attacked within a radius.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from sgr_diffusers import SegmentationUNet
from sgr_diffusers.evaluation.counts import count_bounds
from sgr_diffusers.evaluation.load import load_results
from sgr_diffusers.evaluation.scores import SCORES, volume_scores
from sgr_diffusers.training.data import slices_of
from sgr_diffusers.training.segmentation_task import Attack, SegmentationValidation

PLACE = ["scan_id", "slice", "acceleration"]
NAMES = ("standard", "robust")


def guided_counts(folder):
    """Voxel counts of the bounds by the default strength, in the slices of the protocol."""
    results = load_results(folder)
    counts = count_bounds(results)
    is_default = np.isclose(counts["strength"], results.strength, rtol=1e-6)
    is_main = (counts["part"] == "main") & (counts["segmenter"] == "guiding")
    return counts[is_main & is_default & (counts["method"] == "SGR")]


def compare_bounds(folders):
    """Rows of the comparison, and the number of slices and of scans."""
    tables = [guided_counts(folder) for folder in folders]
    shared = set.intersection(*(set(table[PLACE].itertuples(index=False, name=None)) for table in tables))
    if not shared:
        raise SystemExit("the two evaluations share no slice")
    volumes = []
    for table in tables:
        is_shared = np.array([place in shared for place in table[PLACE].itertuples(index=False, name=None)])
        scores = volume_scores(table[is_shared])
        volumes.append(scores.set_index(["acceleration", "reference", "scan_id", "label"]).sort_index())
    rows = []
    for key in sorted({index[:2] for index in volumes[0].index}):
        pair = [table.loc[key][list(SCORES)] for table in volumes]
        found = {name: table.median() for name, table in zip(NAMES, pair, strict=True)}
        found["difference"] = (pair[1] - pair[0]).median()
        for name, scores in found.items():
            rows.append({"acceleration": key[0], "reference": key[1], "model": name, **scores.to_dict()})
    return rows, len({place[:2] for place in shared}), len({place[0] for place in shared})


def dice(folder, data_dir, radius):
    """Dice of the test slices, clean and attacked."""
    model = SegmentationUNet.from_pretrained(folder).eval()
    held_out = slices_of(data_dir, "test")
    found = SegmentationValidation(held_out, model.config.class_names, Attack(radius=radius))(model).results
    return {"clean": found["val_dice"], "attacked": found["val_attacked_dice"]}


def main():
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--models", nargs=2, required=True, metavar="DIR", help="standard and robust")
    parser.add_argument("--evaluations", nargs=2, required=True, metavar="DIR", help="results of `sgr evaluate`")
    parser.add_argument("--radius", type=float, default=0.03, help="of the attack, l-infinity")
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--output", help="also write all of it to this json file")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    rows, n_slices, n_scans = compare_bounds(args.evaluations)
    settings = load_results(args.evaluations[1]).config["identity"]["settings"]
    steps = {"n_steps": settings["num_inference_steps"], "is_fast": settings["timesteps"] is not None}
    scores = {name: dice(folder, args.data_dir, args.radius) for name, folder in zip(NAMES, args.models, strict=True)}
    print(f"Dice, attacked within {args.radius:g}:")
    for name, found in scores.items():
        print(f"  {name:9} clean {found['clean']:.3f}  attacked {found['attacked']:.3f}")
    print(f"\nBounds, {n_slices} slices of {n_scans} scans:\n")
    print("| acc. | reference | segmentation | precision lower | recall upper | V_unc / V_up |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        sign = "+" if row["model"] == "difference" else ""
        cells = " | ".join(format(row[name], f"{sign}.3f") for name in SCORES)
        print(f"| {row['acceleration']:g}x | {row['reference'].replace('_', ' ')} | {row['model']} | {cells} |")
    if args.output:
        content = {"command": " ".join(["python", *sys.argv]), "n_slices": n_slices, "n_scans": n_scans}
        content |= {**steps, "radius": args.radius, "dice": scores, "bounds": rows}
        Path(args.output).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
