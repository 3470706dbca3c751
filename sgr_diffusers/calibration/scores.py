"""Scores of the calibration scans, and the step from quantiles of the scores back to an interval in mm^3.

A scan is a patient with all its slices together. Its score says how far the reference volume V lies beyond a bound, in
a unit u of the scan's own:

    s_low = (V_low - V) / u        s_up = (V - V_up) / u        u = V_up - V_low + V_up / 5 + 4 voxels

A score is negative where V lies inside of the bound. The last two terms of u are for scans whose bounds nearly
coincide. Without them, such a scan has a large score as soon as it is off by a voxel or two, and makes the intervals
of all scans wide. They were chosen on tuning scans, see docs/explanation/calibration.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["ScanVolumes", "calibrated_interval", "unit_mm3"]

_SHARE, _VOXELS = 0.2, 4  # of the upper volume, and number of voxels, in the unit of a score
_ROUNDING = 1e-9  # of a unit: a scan whose score is the quantile itself stays covered after rounding


@dataclass(frozen=True)
class ScanVolumes:
    """Volumes of the calibration scans of one group; one row for each scan, its slices together.

    Attributes:
        scan_ids: name of each scan; a scan counts once.
        classes: name of each class.
        lower_mm3: V_low `(scan, class)`, from the reconstructions at the lower bound.
        upper_mm3: V_up `(scan, class)`, from the reconstructions at the upper bound.
        reference_mm3: V `(scan, class)`, from the fully sampled images or from manual labels.
        voxel_mm3: volume of a voxel of each scan `(scan,)`.

    Raises:
        ValueError: shapes disagree, a scan is there twice, or a volume is negative or not finite.
    """

    scan_ids: tuple[str, ...]
    classes: tuple[str, ...]
    lower_mm3: Float[np.ndarray, "scan class"]
    upper_mm3: Float[np.ndarray, "scan class"]
    reference_mm3: Float[np.ndarray, "scan class"]
    voxel_mm3: Float[np.ndarray, " scan"]

    def __post_init__(self) -> None:
        """Check the arrays."""
        shape = len(self.scan_ids), len(self.classes)
        for name in ("lower_mm3", "upper_mm3", "reference_mm3", "voxel_mm3"):
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
        unit = unit_mm3(self.lower_mm3, self.upper_mm3, self.voxel_mm3[:, None])
        below = self.lower_mm3.astype(np.float64) - self.reference_mm3
        above = self.reference_mm3.astype(np.float64) - self.upper_mm3
        return below / unit, above / unit


def unit_mm3(
    lower_mm3: Float[np.ndarray, "*scan class"],
    upper_mm3: Float[np.ndarray, "*scan class"],
    voxel_mm3: Float[np.ndarray, "*scan 1"] | float,
) -> Float[np.ndarray, "*scan class"]:
    """Return the unit u of the scores; where guidance failed to order the bounds, their width counts as 0."""
    width = np.maximum(upper_mm3.astype(np.float64) - lower_mm3, 0.0)
    return width + _SHARE * upper_mm3 + _VOXELS * voxel_mm3


def calibrated_interval(
    lower_mm3: Float[np.ndarray, "*scan class"],
    upper_mm3: Float[np.ndarray, "*scan class"],
    voxel_mm3: Float[np.ndarray, "*scan 1"] | float,
    lower_quantile: Float[np.ndarray, " class"],
    upper_quantile: Float[np.ndarray, " class"],
) -> tuple[Float[np.ndarray, "*scan class"], Float[np.ndarray, "*scan class"]]:
    """Return the interval [V_low - q_low u, V_up + q_up u] in mm^3, clipped at 0.

    It is narrower than the bounds where a quantile is negative, and open to infinity where one is infinite.

    Args:
        lower_mm3: V_low of each class, of one scan or of several.
        upper_mm3: V_up of each class.
        voxel_mm3: volume of a voxel.
        lower_quantile: q_low of each class.
        upper_quantile: q_up of each class.
    """
    unit = unit_mm3(lower_mm3, upper_mm3, voxel_mm3)
    low = lower_mm3 - (lower_quantile + _ROUNDING) * unit
    high = upper_mm3 + (upper_quantile + _ROUNDING) * unit
    # Two negative quantiles can make the ends cross; swapped, they hold what both would hold.
    low, high = np.minimum(low, high), np.maximum(low, high)
    return np.maximum(low, 0.0), np.maximum(high, 0.0)
