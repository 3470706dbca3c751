"""Compares scores of the calibration by the widths of the intervals that they give.

    python tests/benchmarks/benchmark_units.py runs/tuning --coverage 0.9

The folders are results of `sgr evaluate --methods SGR RR` on tuning scans, which neither calibrate nor test. A score
is a distance from the guided bounds or from the point estimate, in a unit. The scans are split many times into some
that give the quantiles and others that get the intervals, for every acceleration and class. Widths are means over
these splits of the median over scans, relative to those of the first score (geometric mean over accelerations and
those classes whose intervals are wider than two voxels). Where a part has too few scans for a quantile, its largest
score takes the place.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sgr_diffusers.calibration.quantiles import quantile_rank
from sgr_diffusers.evaluation.calibrate import scan_table
from sgr_diffusers.evaluation.load import load_results
from sgr_diffusers.figures.tables import format_table

SHARE, N_SPLITS = 0.7, 200
UNITS: dict[str, Callable[..., np.ndarray]] = {
    "width + 1 voxel": lambda width, upper, point, voxel: width + voxel,
    "width + upper volume / 5 + 4 voxels": lambda width, upper, point, voxel: width + upper / 5 + 4 * voxel,
    "width + point estimate / 2 + 16 voxels": lambda width, upper, point, voxel: width + point / 2 + 16 * voxel,
    "width + 8 voxels": lambda width, upper, point, voxel: width + 8 * voxel,
    "width + 16 voxels": lambda width, upper, point, voxel: width + 16 * voxel,
    "upper volume + 4 voxels": lambda width, upper, point, voxel: upper + 4 * voxel,
    "the same for all scans": lambda width, upper, point, voxel: np.ones_like(width),
}
SCORES = [(anchor, unit) for anchor in ("bounds", "point estimate") for unit in UNITS]


def scans_of(folders: Sequence[Path]) -> pd.DataFrame:
    """Volumes of every scan of every folder, as `scan_table` has them."""
    tables = [scan_table(load_results(folder), "fully_sampled") for folder in folders]
    return pd.concat([table.assign(folder=k) for k, table in enumerate(tables)])


def median_width(scans: pd.DataFrame, anchor: str, unit: str, coverage: float) -> float:
    """Mean over the splits of the median width of the intervals, for one acceleration and class."""
    names = "lower", "upper", "point", "truth", "voxel"
    lower, upper, point, truth, voxel = (scans[name].to_numpy(float) for name in names)
    sizes = UNITS[unit](np.maximum(upper - lower, 0), upper, point, voxel)
    starts = (lower, upper) if anchor == "bounds" else (point, point)
    rng, widths = np.random.default_rng(1), []
    for _ in range(N_SPLITS):
        order = rng.permutation(len(scans))
        known, new = np.split(order, [int(SHARE * len(scans))])
        rank = min(quantile_rank(len(known), (1 - coverage) / 2), len(known)) - 1
        scores = (starts[0] - truth) / sizes, (truth - starts[1]) / sizes
        below, above = (np.sort(each[known])[rank] for each in scores)
        low = np.maximum(starts[0] - below * sizes, 0)[new]
        high = np.maximum(starts[1] + above * sizes, 0)[new]
        widths.append(np.median(np.abs(high - low)))
    return float(np.mean(widths))


def compare(scans: pd.DataFrame, coverage: float) -> list[dict[str, str]]:
    """One row for each score: its widths relative to those of the first."""
    groups = [group for _, group in scans.groupby(["acceleration", "class"])]
    widths = np.array([[median_width(group, *score, coverage) for group in groups] for score in SCORES])
    is_wide = widths[0] > 2 * np.array([group["voxel"].median() for group in groups])
    if not is_wide.any():
        raise ValueError("no interval is wider than two voxels: there is nothing to compare.")
    ratios = np.exp(np.log(widths[:, is_wide] / widths[0, is_wide]).mean(axis=1))
    return [
        {"distance from": anchor, "unit": unit, "width": f"{ratio:.2f}"}
        for (anchor, unit), ratio in zip(SCORES, ratios, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders of `sgr evaluate`")
    parser.add_argument("--coverage", type=float, default=0.9)
    args = parser.parse_args(arguments)
    scans = scans_of(args.results)
    print(f"{scans.groupby('folder')['scan_id'].nunique().sum()} scans, coverage {args.coverage:g}")
    print(format_table(compare(scans, args.coverage)))


if __name__ == "__main__":
    main()
