"""Intervals that other methods make of the volumes of unguided samples, to compare calibrated bounds with.

| method             | bounds of a scan before calibration               | image at an end of the interval |
|--------------------|---------------------------------------------------|---------------------------------|
| extremes           | smallest and largest sample                       | the nearest sample              |
| sample quantiles   | quantiles of the samples at alpha/2 and 1-alpha/2 | the nearest sample              |

The sample quantiles are those of Wen et al. 2024 ("Task-driven uncertainty quantification in inverse problems via
conformal prediction"), conformalised as by Romano et al. 2019; Cheung et al. 2024 ("Metric-guided image reconstruction
bounds via conformal prediction") calibrate likewise and retrieve the sample whose volume is nearest each end. Extremes
are calibrated by distances beyond them in a unit of the scan's own: their range, a fifth of the larger one and four
voxels, which gave the narrowest intervals on tuning scans.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .quantiles import Group, calibrate, one_sided_quantile
from .scores import ScanVolumes

__all__ = ["SampleVolumes", "bounds_intervals", "extremes_intervals", "quantile_intervals", "retrieval_errors"]

Volumes = Float[np.ndarray, "_ class"]
Interval = tuple[Float[np.ndarray, "scan class"], Float[np.ndarray, "scan class"]]


@dataclass(frozen=True)
class SampleVolumes:
    """Volumes of unguided samples of scans.

    Attributes:
        scan_ids: name of each scan.
        classes: name of each class.
        samples_mm3: volume of each sample `(scan, sample, class)`, the slices of a scan together.
        reference_mm3: V `(scan, class)`.
        voxel_mm3: volume of a voxel of each scan `(scan,)`.
    """

    scan_ids: tuple[str, ...]
    classes: tuple[str, ...]
    samples_mm3: Float[np.ndarray, "scan sample class"]
    reference_mm3: Float[np.ndarray, "scan class"]
    voxel_mm3: Float[np.ndarray, " scan"]


def bounds_intervals(calibration: ScanVolumes, test: ScanVolumes, coverage: float) -> Interval:
    """Calibrate bounds on some scans and apply them to others: intervals (low, high) of the test scans in mm^3.

    Args:
        calibration: bounds and reference of the calibration scans.
        test: bounds of the test scans.
        coverage: wanted coverage of each class.
    """
    (quantiles,) = calibrate({Group(1.0, "any", (1.0, 1.0)): calibration}, [coverage])
    return quantiles.interval(test.point_mm3, test.lower_mm3, test.upper_mm3, test.voxel_mm3[:, None])


def extremes_intervals(calibration: SampleVolumes, test: SampleVolumes, coverage: float) -> Interval:
    """Calibrate the extremes of the samples: intervals (low, high) of the test scans in mm^3.

    Args:
        calibration: samples and reference of the calibration scans.
        test: samples of the test scans.
        coverage: wanted coverage of each class.
    """
    return _conformalised(_extremes(calibration), _extremes(test), calibration.reference_mm3, coverage)


def quantile_intervals(calibration: SampleVolumes, test: SampleVolumes, coverage: float) -> Interval:
    """Conformalise quantiles of the samples: intervals (low, high) of the test scans in mm^3.

    Args:
        calibration: samples and reference of the calibration scans.
        test: samples of the test scans.
        coverage: wanted coverage of each class.
    """
    tail = (1 - coverage) / 2
    bounds = [np.quantile(volumes.samples_mm3, [tail, 1 - tail], axis=1) for volumes in (calibration, test)]
    known, new = ((low, high, np.ones_like(low)) for low, high in bounds)
    return _conformalised(known, new, calibration.reference_mm3, coverage)


def retrieval_errors(volumes: SampleVolumes, interval: Interval) -> Float[np.ndarray, "end scan class"]:
    """Return the distance of the nearest sample from each end of the interval, relative to the end or to a voxel.

    Args:
        volumes: samples of scans.
        interval: interval of each scan and class.
    """
    ends = np.stack(interval)
    distance = np.abs(volumes.samples_mm3[None] - ends[:, :, None]).min(axis=2)
    return distance / np.maximum(ends, volumes.voxel_mm3[:, None])


def _extremes(volumes: SampleVolumes) -> tuple[Volumes, Volumes, Volumes]:
    """Return the smallest and the largest sample of each scan and class, and the unit of their scores."""
    samples = volumes.samples_mm3
    low, high = samples.min(axis=1), samples.max(axis=1)
    return low, high, high - low + 0.2 * high + 4 * volumes.voxel_mm3[:, None]


def _conformalised(
    known: tuple[Volumes, Volumes, Volumes], new: tuple[Volumes, Volumes, Volumes], truth: Volumes, coverage: float
) -> tuple[Volumes, Volumes]:
    """Move the bounds of new scans by quantiles of the distances, in units, of `truth` beyond those of known scans."""
    low, high, unit = known
    below, above = (_quantiles(scores, coverage) for scores in ((low - truth) / unit, (truth - high) / unit))
    low, high, unit = new
    low, high = low - below * unit, high + above * unit
    return np.maximum(np.minimum(low, high), 0.0), np.maximum(np.maximum(low, high), 0.0)


def _quantiles(scores: Float[np.ndarray, "scan class"], coverage: float) -> Float[np.ndarray, " class"]:
    return np.array([one_sided_quantile(column, (1 - coverage) / 2) for column in scores.T])
