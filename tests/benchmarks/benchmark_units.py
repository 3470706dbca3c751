"""Compares units of the calibration's scores by the widths of the intervals that they give.

    python tests/benchmarks/benchmark_units.py runs/tuning --coverage 0.9

The folders are results of `sgr evaluate --methods SGR` on tuning scans, which neither calibrate nor test. The scans
are split many times into some that give the quantiles and others that get the intervals, for every acceleration and
class. Widths are means over these splits of the median over scans, relative to those of the first unit (geometric mean
over accelerations and those classes whose intervals are wider than two voxels). Where a part has too few scans for a
quantile, its largest score takes the place.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from benchmark_calibration import bounds_mm3

from sgr_diffusers.calibration.quantiles import quantile_rank
from sgr_diffusers.evaluation.load import load_results
from sgr_diffusers.figures.tables import format_table

Unit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
SHARE, N_SPLITS = 0.7, 200
UNITS: dict[str, Unit] = {  # of the width w of the bounds, the upper volume and the volume of a voxel
    "w + 1 voxel": lambda w, upper, voxel: w + voxel,
    "w + 4 voxels": lambda w, upper, voxel: w + 4 * voxel,
    "w + 8 voxels": lambda w, upper, voxel: w + 8 * voxel,
    "w + upper volume / 5 + 1 voxel": lambda w, upper, voxel: w + upper / 5 + voxel,
    "w + upper volume / 5 + 4 voxels": lambda w, upper, voxel: w + upper / 5 + 4 * voxel,
    "w + upper volume / 2 + 1 voxel": lambda w, upper, voxel: w + upper / 2 + voxel,
    "w + upper volume / 2 + 4 voxels": lambda w, upper, voxel: w + upper / 2 + 4 * voxel,
    "w + upper volume + 4 voxels": lambda w, upper, voxel: w + upper + 4 * voxel,
    "upper volume + 1 voxel": lambda w, upper, voxel: upper + voxel,
    "upper volume + 4 voxels": lambda w, upper, voxel: upper + 4 * voxel,
    "upper volume + 8 voxels": lambda w, upper, voxel: upper + 8 * voxel,
    "the same for all scans": lambda w, upper, voxel: np.ones_like(w),
}


def scans_of(folders: Sequence[Path]) -> pd.DataFrame:
    """Volumes of every scan of every folder, as `bounds_mm3` has them."""
    return pd.concat([bounds_mm3(load_results(folder)).assign(folder=k) for k, folder in enumerate(folders)])


def median_width(scans: pd.DataFrame, unit: Unit, coverage: float) -> float:
    """Mean over the splits of the median width of the intervals, for one acceleration and class."""
    lower, upper, truth, voxel = (scans[name].to_numpy(float) for name in ("lower", "upper", "truth", "voxel"))
    sizes = unit(np.maximum(upper - lower, 0), upper, voxel)
    rng, widths = np.random.default_rng(1), []
    for _ in range(N_SPLITS):
        order = rng.permutation(len(scans))
        known, new = np.split(order, [int(SHARE * len(scans))])
        rank = min(quantile_rank(len(known), (1 - coverage) / 2), len(known)) - 1
        below, above = (np.sort(scores[known])[rank] for scores in ((lower - truth) / sizes, (truth - upper) / sizes))
        low = np.maximum(lower - below * sizes, 0)[new]
        high = np.maximum(upper + above * sizes, 0)[new]
        widths.append(np.median(np.abs(high - low)))
    return float(np.mean(widths))


def compare(scans: pd.DataFrame, coverage: float) -> list[dict[str, str]]:
    """One row for each unit: its widths relative to those of the first."""
    groups = [group for _, group in scans.groupby(["acceleration", "label"])]
    widths = np.array([[median_width(group, unit, coverage) for group in groups] for unit in UNITS.values()])
    is_wide = widths[0] > 2 * np.array([group["voxel"].median() for group in groups])
    if not is_wide.any():
        raise ValueError("no interval is wider than two voxels: there is nothing to compare.")
    ratios = np.exp(np.log(widths[:, is_wide] / widths[0, is_wide]).mean(axis=1))
    return [{"unit": name, "width": f"{ratio:.2f}"} for name, ratio in zip(UNITS, ratios, strict=True)]


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
