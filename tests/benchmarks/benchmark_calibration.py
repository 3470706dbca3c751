"""Compares calibrated bounds with intervals of unguided samples on the same scans, at equal coverage.

    python tests/benchmarks/benchmark_calibration.py runs/calibration runs/coverage --coverage 0.9 --output rows.csv

The two folders are results of `sgr evaluate --methods SGR RR` on scans to calibrate with and on other scans. Methods:
calibrated bounds (SGR), the extremes of all samples calibrated in the same way, and conformalised quantiles of the
samples (`sgr_diffusers.calibration.baselines`), each with all samples and with as many as cost what SGR cost. The
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
    extremes,
    quantile_intervals,
    retrieval_errors,
)
from sgr_diffusers.calibration.scores import ScanVolumes
from sgr_diffusers.evaluation.counts import complete_slices, count_bounds, equal_budget_samples
from sgr_diffusers.evaluation.load import EvaluationResults, labels_of, load_results
from sgr_diffusers.figures.tables import format_table

TOGETHER = "all tissues together"


def complete_scans(results: EvaluationResults, acceleration: float) -> tuple[str, ...]:
    """Scans of which every slice has bounds and samples."""
    done = complete_slices(results).get(acceleration, set())
    slices = results.config["slices"]
    return tuple(
        scan for scan, numbers in slices.items() if numbers and all((scan, number) in done for number in numbers)
    )


def bounds_mm3(results: EvaluationResults) -> pd.DataFrame:
    """Volumes `lower`, `upper` and `truth` in mm^3, the slices of a scan together, and that of a `voxel`.

    One row for each `acceleration`, `scan_id` and `label`.
    """
    counts = count_bounds(results)
    chosen = (counts["method"] == "SGR") & (counts["segmenter"] == "guiding") & (counts["part"] == "main")
    chosen &= (counts["reference"] == "fully_sampled") & np.isclose(counts["strength"], results.strength)
    names = ["lower", "upper", "truth"]
    table = counts[chosen].groupby(["acceleration", "scan_id", "label"])[names].sum().reset_index()
    voxels = {unit.scan_id: float(np.prod(row["voxel_size_mm"])) for unit, row in results.of_kind("reference")}
    table["voxel"] = table["scan_id"].map(voxels)
    table[names] = table[names].mul(table["voxel"], axis=0)
    return table


def volumes(results: EvaluationResults, acceleration: float) -> tuple[ScanVolumes, SampleVolumes, int]:
    """Volumes of bounds and samples of the complete scans, and the number of samples that cost what SGR cost."""
    scans, classes = complete_scans(results, acceleration), results.class_names
    table = bounds_mm3(results)
    table = table[table["acceleration"] == acceleration].set_index(["scan_id", "label"])
    wide = (table[name].unstack().loc[list(scans)].to_numpy(float) for name in ("lower", "upper", "truth", "voxel"))
    *arrays, voxels = wide
    sizes = voxels[:, 0]
    samples = np.zeros((len(scans), results.rr_samples, len(classes)))
    for number, scan in enumerate(scans):
        for index in results.config["slices"][scan]:
            row = results.rows[
                next(u for u, _ in results.of_kind("reference") if (u.scan_id, u.slice) == (scan, index))
            ]
            images = results.samples(scan, index, acceleration)[: results.rr_samples]
            if len(images) < results.rr_samples:
                raise SystemExit(
                    f"Slice {index} of {scan} has {len(images)} samples at {acceleration:g}x, {results.rr_samples} "
                    "are needed. Add them to the folder by `sgr evaluate ... --methods SGR RR`."
                )
            for k, image in enumerate(images):
                labels = labels_of(row, image["labels"])
                samples[number, k] += np.bincount(labels.ravel(), minlength=len(classes) + 1)[1:] * sizes[number]
    budgets = [n for (scan, _, a), n in equal_budget_samples(results).items() if a == acceleration and scan in scans]
    of_samples = SampleVolumes(scans, classes, samples, arrays[2], sizes)
    return ScanVolumes(scans, classes, *arrays, sizes), of_samples, min(max(budgets), results.rr_samples)


def with_sum(widths: np.ndarray) -> np.ndarray:
    """Widths `(scan, class)` with their sum over the classes as one more column."""
    return np.c_[widths, widths.sum(axis=1)]


def first_samples(volumes: SampleVolumes, number: int) -> SampleVolumes:
    """The same scans with fewer samples."""
    samples = volumes.samples_mm3[:, :number]
    return SampleVolumes(volumes.scan_ids, volumes.classes, samples, volumes.reference_mm3, volumes.voxel_mm3)


def compare(calibration: EvaluationResults, test: EvaluationResults, acceleration: float, coverage: float) -> list:
    """Rows of the table for one acceleration."""
    bounds, samples, budget = volumes(calibration, acceleration)
    test_bounds, test_samples, _ = volumes(test, acceleration)
    intervals = {"SGR": bounds_intervals(bounds, test_bounds, coverage)}
    errors: dict[str, np.ndarray] = defaultdict(lambda: np.full((2, *test_bounds.lower_mm3.shape), np.nan))
    for number in dict.fromkeys((samples.samples_mm3.shape[1], budget)):
        few, test_few = first_samples(samples, number), first_samples(test_samples, number)
        intervals[f"extremes of {number}"] = bounds_intervals(extremes(few), extremes(test_few), coverage)
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
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(arguments)
    results = load_results(args.calibration), load_results(args.test)
    rows = [row for a in args.accelerations for row in compare(*results, a, args.coverage)]
    table = pd.DataFrame(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.output, index=False, lineterminator="\n")
    print(format_table(table.round(3).to_dict("records")))


if __name__ == "__main__":
    main()
