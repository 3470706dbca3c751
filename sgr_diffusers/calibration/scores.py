"""Scores of the calibration scans, and the step from quantiles of the scores back to an interval in mm^3.

A scan is a patient with all its slices together. Its point estimate M is the mean volume of two unguided
reconstructions. Its scores say how far the reference volume V lies from it on either side, in a unit u of the scan's
own, which is the larger, the further guidance could move the volume:

    s_low = (M - V) / u        s_up = (V - M) / u        u = V_up - V_low + 8 voxels

The eight voxels are for scans whose bounds nearly coincide. Without them, such a scan has a large score as soon as it
is off by a voxel or two, and makes the intervals of all scans wide. Point estimate and unit were chosen on tuning
scans, see docs/explanation/calibration.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["N_SAMPLES", "ScanVolumes", "calibrated_interval", "is_seen"]

N_SAMPLES = 2  # unguided reconstructions of a point estimate
_VOXELS = 8  # in the unit of a score
_ROUNDING = 1e-9  # of a unit: a scan whose score is the quantile itself stays covered after rounding


@dataclass(frozen=True)
class ScanVolumes:
    """Volumes of the calibration scans of one group; one row for each scan, its slices together.

    Attributes:
        scan_ids: name of each scan; a scan counts once.
        classes: name of each class.
        point_mm3: M `(scan, class)`, mean over `N_SAMPLES` unguided reconstructions.
        lower_mm3: V_low `(scan, class)`, from the reconstructions at the lower bound.
        upper_mm3: V_up `(scan, class)`, from the reconstructions at the upper bound.
        reference_mm3: V `(scan, class)`, from the fully sampled images or from manual labels.
        voxel_mm3: volume of a voxel of each scan `(scan,)`.

    Raises:
        ValueError: shapes disagree, a scan is there twice, or a volume is negative or not finite.
    """

    scan_ids: tuple[str, ...]
    classes: tuple[str, ...]
    point_mm3: Float[np.ndarray, "scan class"]
    lower_mm3: Float[np.ndarray, "scan class"]
    upper_mm3: Float[np.ndarray, "scan class"]
    reference_mm3: Float[np.ndarray, "scan class"]
    voxel_mm3: Float[np.ndarray, " scan"]

    def __post_init__(self) -> None:
        """Check the arrays."""
        shape = len(self.scan_ids), len(self.classes)
        for name in ("point_mm3", "lower_mm3", "upper_mm3", "reference_mm3", "voxel_mm3"):
            values = getattr(self, name)
            wanted = shape[: values.ndim]
            if values.shape != wanted:
                raise ValueError(
                    f"`{name}` must have the shape {wanted} of {shape[0]} scans and {shape[1]} classes, got "
                    f"{values.shape}."
                )
            if not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"`{name}` must be finite and not negative, got values from {values.min()}.")
        twice = sorted({name for name in self.scan_ids if self.scan_ids.count(name) > 1})
        if twice:
            raise ValueError(
                f"`scan_ids` must name each scan once, got {', '.join(twice[:3])} more than once. Add up the volumes "
                "of a scan's slices first: slices of the same scan are not exchangeable."
            )
        if (self.voxel_mm3 == 0).any():
            raise ValueError("`voxel_mm3` must be above 0, got 0.")

    def scores(self) -> tuple[Float[np.ndarray, "scan class"], Float[np.ndarray, "scan class"]]:
        """Return the one-sided scores (s_low, s_up) of all scans and classes."""
        unit = _unit_mm3(self.lower_mm3, self.upper_mm3, self.voxel_mm3[:, None])
        above = (self.reference_mm3.astype(np.float64) - self.point_mm3) / unit
        return -above, above


def is_seen(
    point_mm3: Float[np.ndarray, "*scan class"],
    lower_mm3: Float[np.ndarray, "*scan class"],
    upper_mm3: Float[np.ndarray, "*scan class"],
) -> Bool[np.ndarray, "*scan class"]:
    """Return whether an unguided or a guided image of a scan shows any of a class."""
    return np.maximum(point_mm3, np.maximum(lower_mm3, upper_mm3)) > 0


def _unit_mm3(
    lower_mm3: Float[np.ndarray, "*scan class"],
    upper_mm3: Float[np.ndarray, "*scan class"],
    voxel_mm3: Float[np.ndarray, "*scan 1"] | float,
) -> Float[np.ndarray, "*scan class"]:
    """Return the unit u of the scores; where guidance failed to order the bounds, their width counts as 0."""
    return np.maximum(upper_mm3.astype(np.float64) - lower_mm3, 0.0) + _VOXELS * voxel_mm3


def calibrated_interval(
    point_mm3: Float[np.ndarray, "*scan class"],
    lower_mm3: Float[np.ndarray, "*scan class"],
    upper_mm3: Float[np.ndarray, "*scan class"],
    voxel_mm3: Float[np.ndarray, "*scan 1"] | float,
    lower_quantile: Float[np.ndarray, "*scan class"],
    upper_quantile: Float[np.ndarray, "*scan class"],
) -> tuple[Float[np.ndarray, "*scan class"], Float[np.ndarray, "*scan class"]]:
    """Return the interval [M - q_low u, M + q_up u] in mm^3, clipped at 0, and open where a quantile is infinite.

    It lies beside the point estimate M where a quantile is negative.

    Args:
        point_mm3: M of each class, of one scan or of several.
        lower_mm3: V_low of each class.
        upper_mm3: V_up of each class.
        voxel_mm3: volume of a voxel.
        lower_quantile: q_low of each class.
        upper_quantile: q_up of each class.
    """
    unit = _unit_mm3(lower_mm3, upper_mm3, voxel_mm3)
    low = point_mm3 - (lower_quantile + _ROUNDING) * unit
    high = point_mm3 + (upper_quantile + _ROUNDING) * unit
    return np.maximum(low, 0.0), np.maximum(high, 0.0)
