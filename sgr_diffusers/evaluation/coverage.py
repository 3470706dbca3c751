"""Measure the coverage of calibrated intervals on scans that were not calibrated on, and write it as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..calibration.coverage import clopper_pearson, coverage_spread
from ..calibration.quantiles import Group, scans_needed
from ..calibration.record import Calibration
from ..calibration.scores import ScanVolumes, is_seen

__all__ = ["ALL_CLASSES", "coverage_rows", "coverage_table"]

ALL_CLASSES = "all at once"


def coverage_table(
    volumes: Mapping[Group, ScanVolumes], calibration: Calibration, coverages: Sequence[float]
) -> pd.DataFrame:
    """Measure how often the calibrated intervals hold the volume in the reference.

    Args:
        volumes: volumes of the test scans.
        calibration: calibration of the checkpoint.
        coverages: coverages to measure, of the calibrated ones.

    Returns:
        One row for each acceleration, coverage and class, and for all classes at once if there are several: numbers
        of scans `n_calibration` and `n_test`, of which `n_covered` are covered, and their `share`; `expected_low` and
        `expected_high`, between which this share lies with probability 95 % over the draws of both sets
        (beta-binomial); `ci_low` and `ci_high`, the Clopper-Pearson interval of the coverage. Then the same of scans
        of which an image shows the class: `n_seen_calibration`, `n_seen`, `n_seen_covered`, `seen_expected_low` and
        `seen_expected_high` (NaN for too few calibration scans), and the medians of the interval's `width_mm3` and of
        the width of the uncalibrated bounds.

    Raises:
        CalibrationMismatch: the scans were trained, tuned or calibrated on, or their masks were not calibrated.
    """
    rows = []
    for group, scans in volumes.items():
        calibration.check_unseen(scans.scan_ids)
        bounds = scans.lower_mm3, scans.upper_mm3
        seen = is_seen(scans.point_mm3, *bounds)
        for coverage in coverages:
            for measured in group.measured:
                quantiles = calibration.quantiles_for(coverage, measured, group.mask_family)
            n_seen = dict(zip(quantiles.classes, quantiles.n_seen, strict=True))
            voxels, truth = scans.voxel_mm3[:, None], scans.reference_mm3
            for at_once in (False, True) if len(scans.classes) > 1 else (False,):
                low, high = quantiles.interval(scans.point_mm3, *bounds, voxels, scans.classes, all_at_once=at_once)
                held, width, bounds_width = (low <= truth) & (truth <= high), high - low, np.subtract(*bounds[::-1])
                everything = np.ones(len(truth), bool)
                whole = quantiles.n_scans, everything, held.all(axis=1), width.sum(axis=1), bounds_width.sum(axis=1)
                columns: dict[str, tuple[Any, ...]] = {ALL_CLASSES: whole}
                if not at_once:
                    columns = {
                        name: (n_seen[name], seen[:, k], held[:, k], width[:, k], bounds_width[:, k])
                        for k, name in enumerate(scans.classes)
                    }
                head = {"acceleration": group.acceleration, "mask": group.mask_family, "coverage": coverage}
                for name, column in columns.items():
                    rows.append(head | _coverage_row(name, coverage, quantiles.n_scans, *column))
    return pd.DataFrame(rows)


def coverage_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """Write the table of `coverage_table` as texts that a person reads, a row for each of its rows."""
    return [
        {
            "sampling": f"{row['acceleration']:g}x",
            "coverage": f"{row['coverage']:g}",
            "tissue": str(row["class"]).replace("_", " "),
            "covered scans": _covered(row["n_covered"], row["n_test"], row["expected_low"], row["expected_high"]),
            "of those that show it": _covered(
                row["n_seen_covered"], row["n_seen"], row["seen_expected_low"], row["seen_expected_high"]
            ),
            "interval mm³": f"{row['width_mm3']:.0f}",
            "bounds mm³": f"{row['bounds_width_mm3']:.0f}",
        }
        for row in table.to_dict("records")
    ]


def _covered(number: float | int, n_scans: float | int, expected_low: float, expected_high: float) -> str:
    """Write how many scans are covered, and in brackets how many were expected."""
    text = f"{number:.0f} of {n_scans:.0f}"
    if math.isnan(expected_low):
        return text
    return f"{text} ({expected_low * n_scans:.0f} to {expected_high * n_scans:.0f})"


def _coverage_row(
    name: str,
    coverage: float,
    n_calibration: int,
    n_seen_calibration: int,
    seen: np.ndarray,
    held: np.ndarray,
    width: np.ndarray,
    bounds_width: np.ndarray,
) -> dict[str, str | float | int]:
    """Count the covered scans, and say what was to be expected."""
    n_test, n_covered, n_seen = len(held), int(held.sum()), int(seen.sum())
    expected = _expected_share(coverage, n_calibration, n_test)
    of_seen = _expected_share(coverage, n_seen_calibration, n_seen)
    ci_low, ci_high = clopper_pearson(n_covered, n_test)
    return {
        "class": name,
        "n_calibration": n_calibration,
        "n_test": n_test,
        "n_covered": n_covered,
        "share": n_covered / n_test,
        "expected_low": expected[0],
        "expected_high": expected[1],
        "ci_low": ci_low,
        "ci_high": ci_high,
        "n_seen_calibration": n_seen_calibration,
        "n_seen": n_seen,
        "n_seen_covered": int(held[seen].sum()),
        "seen_expected_low": of_seen[0],
        "seen_expected_high": of_seen[1],
        "width_mm3": float(np.median(width[seen])) if n_seen else 0.0,
        "bounds_width_mm3": float(np.median(bounds_width[seen])) if n_seen else 0.0,
    }


def _expected_share(coverage: float, n_calibration: int, n_test: int) -> tuple[float, float]:
    """Return the range in which the covered share lies with probability 95 %; NaN for too few scans."""
    if not n_test or n_calibration < scans_needed(coverage):
        return math.nan, math.nan
    low, high = coverage_spread(n_calibration, 1 - coverage, n_test=n_test).interval(0.95)
    return float(low / n_test), float(high / n_test)
