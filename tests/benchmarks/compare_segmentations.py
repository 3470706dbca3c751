"""Compares the bounds by two segmentation models, in the slices that two evaluations share.

    sgr evaluate runs/knee --output runs/evaluation --n-slices-per-scan 2
    sgr evaluate runs/knee --output runs/evaluation_robust --n-slices-per-scan 2 --methods SGR --segmentation DIR
    python tests/benchmarks/compare_segmentations.py runs/evaluation runs/evaluation_robust

For each acceleration, model and reference (the same model on the fully sampled image, or the manual labels): precision
of the lower and recall of the upper bound and V_unc / V_up, medians over scans and classes of scores of volumes, as
in the paper's Table 1; then the median of the paired differences.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from sgr_diffusers.evaluation.counts import count_bounds
from sgr_diffusers.evaluation.load import load_results
from sgr_diffusers.evaluation.scores import SCORES, volume_scores

PLACE = ["scan_id", "slice", "acceleration"]


def guided_counts(folder):
    """Voxel counts of the bounds by the default strength, in the slices of the protocol."""
    results = load_results(folder)
    counts = count_bounds(results)
    is_default = np.isclose(counts["strength"], results.strength, rtol=1e-6)
    return counts[(counts["method"] == "SGR") & is_default & (counts["part"] == "main")]


def compare(first, second, names):
    """Rows of the comparison, and the number of slices; `names` are those of the two models."""
    tables = [guided_counts(folder) for folder in (first, second)]
    shared = set.intersection(*(set(table[PLACE].itertuples(index=False, name=None)) for table in tables))
    if not shared:
        raise SystemExit("the two evaluations share no slice")
    volumes = []
    for table in tables:
        places = table[PLACE].itertuples(index=False, name=None)
        is_shared = np.array([place in shared for place in places])
        kept = table[is_shared & (table["segmenter"] == "guiding")]
        volumes.append(volume_scores(kept).set_index(["acceleration", "reference", "scan_id", "label"]).sort_index())
    rows = []
    for key in sorted({index[:2] for index in volumes[0].index}):
        pair = [table.loc[key] for table in volumes]
        head = {"acceleration": key[0], "reference": key[1]}
        for name, table in zip(names, pair, strict=True):
            rows.append({**head, "model": name, **{score: float(table[score].median()) for score in SCORES}})
        difference = pair[1][list(SCORES)] - pair[0][list(SCORES)]
        rows.append({**head, "model": "difference", **difference.median().to_dict()})
    return rows, len({place[:2] for place in shared}), len({place[0] for place in shared})


def main():
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs=2, help="results folders of `sgr evaluate`")
    parser.add_argument("--names", nargs=2, default=["standard", "robust"])
    parser.add_argument("--output", help="also write the rows to this json file")
    args = parser.parse_args()
    rows, n_slices, n_scans = compare(*args.results, args.names)
    print(f"{n_slices} slices of {n_scans} scans\n")
    print("| acc. | reference | segmentation | precision lower | recall upper | V_unc / V_up |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        sign = "+" if row["model"] == "difference" else ""
        scores = " | ".join(format(row[name], f"{sign}.3f") for name in SCORES)
        print(f"| {row['acceleration']:g}x | {row['reference'].replace('_', ' ')} | {row['model']} | {scores} |")
    if args.output:
        content = {"n_slices": n_slices, "n_scans": n_scans, "rows": rows}
        Path(args.output).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
