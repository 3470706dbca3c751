"""Compares calibrated bounds with intervals of unguided samples on the same scans, at equal coverage.

    python tests/benchmarks/benchmark_calibration.py runs/calibration runs/coverage --coverage 0.9 --output rows.csv

The two folders are results of `sgr evaluate --methods SGR RR` on scans to calibrate with and on other scans. Methods:
our calibrated interval (SGR), the calibrated extremes of all samples, and conformalised quantiles of the samples
(`sgr_diffusers.calibration.baselines`), each with all samples and with as many as cost what ours costs: the guided
bounds and the samples of the point estimate. The
difference of widths is paired over the test scans, with a bootstrap interval of its median. The rows of all tissues
together are of the sum of their widths; a scan counts as covered where every tissue's interval holds its volume.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from sgr_diffusers.calibration.baselines import (
    SampleVolumes,
    bounds_intervals,
    extremes_intervals,
    quantile_intervals,
    retrieval_errors,
)
from sgr_diffusers.calibration.scores import N_SAMPLES, ScanVolumes
from sgr_diffusers.evaluation.calibrate import arrays_of, scan_table
from sgr_diffusers.evaluation.counts import equal_budget_samples
from sgr_diffusers.evaluation.load import EvaluationResults, labels_of, load_results
from sgr_diffusers.figures.tables import format_table

TOGETHER = "all tissues together"


def volumes(results: EvaluationResults, acceleration: float, n_samples: int) -> tuple[ScanVolumes, SampleVolumes, int]:
    """Volumes of bounds and samples of the scans that have both, and the number of samples that cost what ours costs.

    Args:
        results: results of an evaluation.
        acceleration: acceleration to look at.
        n_samples: number of samples that every slice of a scan needs.
    """
    table = scan_table(results, "fully_sampled")
    found: dict[str, np.ndarray] = {}
    for scan in table[table["acceleration"] == acceleration]["scan_id"].unique():
        counts = [sample_counts(results, scan, index, acceleration) for index in results.config["slices"][scan]]
        if min(map(len, counts)) >= n_samples:
            found[scan] = np.sum([each[:n_samples] for each in counts], axis=0)
    if not found:
        raise SystemExit(
            f"No scan has bounds and {n_samples} samples at {acceleration:g}x. Add them to the folder by "
            f"`sgr evaluate ... --methods SGR RR --rr-samples {n_samples}`."
        )
    is_chosen = (table["acceleration"] == acceleration) & table["scan_id"].isin(found)
    bounds = arrays_of(table[is_chosen])
    samples = np.stack([found[scan] for scan in bounds.scan_ids]) * bounds.voxel_mm3[:, None, None]
    of_samples = SampleVolumes(bounds.scan_ids, bounds.classes, samples, bounds.reference_mm3, bounds.voxel_mm3)
    budgets = [n for (scan, _, a), n in equal_budget_samples(results).items() if a == acceleration and scan in found]
    return bounds, of_samples, min(max(budgets) + N_SAMPLES, n_samples)


def sample_counts(results: EvaluationResults, scan: str, index: int, acceleration: float) -> np.ndarray:
    """Voxels of each class in each sample of a slice, `(sample, class)`."""
    row = next(row for unit, row in results.of_kind("reference") if (unit.scan_id, unit.slice) == (scan, index))
    maps = [labels_of(row, image["labels"]) for image in results.samples(scan, index, acceleration)]
    n_classes = len(results.class_names)
    counts = [np.bincount(labels.ravel(), minlength=n_classes + 1)[1:] for labels in maps]
    return np.array(counts, float).reshape(-1, n_classes)


def with_sum(widths: np.ndarray) -> np.ndarray:
    """Widths `(scan, class)` with their sum over the classes as one more column."""
    return np.c_[widths, widths.sum(axis=1)]


def first_samples(volumes: SampleVolumes, number: int) -> SampleVolumes:
    """The same scans with fewer samples."""
    samples = volumes.samples_mm3[:, :number]
    return SampleVolumes(volumes.scan_ids, volumes.classes, samples, volumes.reference_mm3, volumes.voxel_mm3)


def compare(
    calibration: EvaluationResults, test: EvaluationResults, acceleration: float, coverage: float, n_samples: int
) -> list:
    """Rows of the table for one acceleration."""
    bounds, samples, budget = volumes(calibration, acceleration, n_samples)
    test_bounds, test_samples, _ = volumes(test, acceleration, n_samples)
    intervals = {"SGR": bounds_intervals(bounds, test_bounds, coverage)}
    errors: dict[str, np.ndarray] = defaultdict(lambda: np.full((2, *test_bounds.lower_mm3.shape), np.nan))
    for number in dict.fromkeys((samples.samples_mm3.shape[1], budget)):
        few, test_few = first_samples(samples, number), first_samples(test_samples, number)
        intervals[f"extremes of {number}"] = extremes_intervals(few, test_few, coverage)
        intervals[f"quantiles of {number}"] = quantile_intervals(few, test_few, coverage)
        for name in (f"extremes of {number}", f"quantiles of {number}"):
            errors[name] = retrieval_errors(test_few, intervals[name])
    rows = []
    for name, (low, high) in intervals.items():
        held = (low <= test_bounds.reference_mm3) & (test_bounds.reference_mm3 <= high)
        held, width = np.c_[held, held.all(axis=1)], with_sum(high - low)
        difference = with_sum(intervals["SGR"][1] - intervals["SGR"][0]) - width
        for k, tissue in enumerate((*test_bounds.classes, TOGETHER)):
            row = {"acceleration": acceleration, "class": tissue, "method": name}
            row |= {"n_calibration": len(bounds.scan_ids), "n_test": len(held), "covered": int(held[:, k].sum())}
            row |= {"width_mm3": float(np.median(width[:, k]))}
            row |= {} if tissue == TOGETHER else {"retrieval_error": float(np.median(errors[name][:, :, k]))}
            if name != "SGR":
                paired = bootstrap((difference[:, k],), np.median, rng=0, method="percentile")
                ends = paired.confidence_interval
                row |= {"sgr_minus_it": float(np.median(difference[:, k])), "ci_low": ends.low, "ci_high": ends.high}
            rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", help="results of the scans to calibrate with")
    parser.add_argument("test", help="results of other scans")
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--accelerations", type=float, nargs="+", default=[8.0])
    parser.add_argument("--samples", type=int, default=16, help="number of samples; scans with fewer are left out")
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(arguments)
    results = load_results(args.calibration), load_results(args.test)
    rows = [row for a in args.accelerations for row in compare(*results, a, args.coverage, args.samples)]
    table = pd.DataFrame(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.output, index=False, lineterminator="\n")
    print(format_table(table.round(3).to_dict("records")))


if __name__ == "__main__":
    main()
