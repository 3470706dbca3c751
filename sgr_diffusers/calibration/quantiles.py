"""Quantiles of the calibration scores, one for each side, acceleration, mask family and class (Mondrian groups).

With n calibration scans and coverage 1 - alpha, the quantile of one side is the k-th smallest score, with
k = ceil((n + 1) (1 - alpha / 2)), and infinite where k exceeds n. The score of an exchangeable new scan exceeds it
with probability alpha / 2 at most, so both sides together hold with probability 1 - alpha at least. For all classes at
once the score of a scan is the largest of its classes.

Scans in which no image shows any of a class, unguided or guided, are a group of their own: most of them have none of
it, and their scores of 0 would make the intervals of the others too narrow. So the coverage of a class holds among the
scans that show it, too. Where a group has too few scans for a quantile, it gets the larger one of its largest score
and of the quantile of all scans.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from .scores import ScanVolumes, calibrated_interval, is_seen

__all__ = [
    "Group",
    "GroupQuantiles",
    "calibrate",
    "one_sided_quantile",
    "quantile_rank",
    "scans_needed",
]

_TOLERANCE = 0.05  # of an acceleration: as near as the masks of one nominal acceleration come to each other


@dataclass(frozen=True)
class Group:
    """Measurements that are calibrated together.

    Attributes:
        acceleration: nominal acceleration, for example 8.0.
        mask_family: name of the kind of mask, for example "poisson".
        measured: lowest and highest acceleration of the calibration masks, number of k-space positions over number of
            measured positions of the mask as the pipeline gets it.
    """

    acceleration: float
    mask_family: str
    measured: tuple[float, float]

    def holds(self, measured: float, mask_family: str) -> bool:
        """Return whether a mask with this measured acceleration belongs to the group, within 5 %."""
        lowest, highest = self.measured
        is_near = lowest * (1 - _TOLERANCE) <= measured <= highest * (1 + _TOLERANCE)
        return is_near and mask_family == self.mask_family

    def __str__(self) -> str:
        """Name for tables and messages."""
        return f"{self.acceleration:g}x {self.mask_family}"


@dataclass(frozen=True)
class GroupQuantiles:
    """Quantiles of one group at one coverage, and the intervals that follow from them.

    Attributes:
        group: acceleration and mask family.
        coverage: 1 - alpha, for the two sides together.
        n_scans: number of calibration scans.
        classes: name of each class.
        lower: q_low of each class.
        upper: q_up of each class.
        all_lower: q_low for all classes at once.
        all_upper: q_up for all classes at once.
        unseen_upper: q_up of each class for scans in which no image shows it; their interval starts at 0.
        n_seen: number of calibration scans of which an image shows the class, for each class.
    """

    group: Group
    coverage: float
    n_scans: int
    classes: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    all_lower: float
    all_upper: float
    unseen_upper: tuple[float, ...]
    n_seen: tuple[int, ...]

    def interval(
        self,
        point_mm3: Float[np.ndarray, "*scan class"],
        lower_mm3: Float[np.ndarray, "*scan class"],
        upper_mm3: Float[np.ndarray, "*scan class"],
        voxel_mm3: Float[np.ndarray, "*scan 1"] | float,
        classes: Sequence[str] | None = None,
        all_at_once: bool = False,
    ) -> tuple[Float[np.ndarray, "*scan class"], Float[np.ndarray, "*scan class"]]:
        """Return the calibrated interval (low, high) in mm^3 of each class, for one scan or several.

        Args:
            point_mm3: point estimate M of each class, the slices of a scan together.
            lower_mm3: V_low of each class.
            upper_mm3: V_up of each class.
            voxel_mm3: volume of a voxel.
            classes: names of the classes in the arrays; `None` for all calibrated ones.
            all_at_once: whether the coverage holds for all calibrated classes at once. If not, it holds for each class
                by itself.

        Raises:
            ValueError: a class was not calibrated.
        """
        names = self.classes if classes is None else tuple(classes)
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ValueError(
                f"`classes` {', '.join(unknown)} have no calibration. Calibrated are {', '.join(self.classes)}."
            )
        numbers = [self.classes.index(name) for name in names]
        seen = is_seen(point_mm3, lower_mm3, upper_mm3)
        lower = np.broadcast_to(np.array(self.lower)[numbers], seen.shape)
        upper = np.where(seen, np.array(self.upper)[numbers], np.array(self.unseen_upper)[numbers])
        if all_at_once:
            lower, upper = np.full_like(lower, self.all_lower), np.full_like(upper, self.all_upper)
        return calibrated_interval(point_mm3, lower_mm3, upper_mm3, voxel_mm3, lower, upper)


def calibrate(volumes: Mapping[Group, ScanVolumes], coverages: Sequence[float]) -> tuple[GroupQuantiles, ...]:
    """Take the quantiles of each group at each coverage.

    Args:
        volumes: volumes of the calibration scans of each group.
        coverages: wanted coverages, for example 0.9.

    Raises:
        ValueError: a coverage is out of range or needs more scans than a group has.
    """
    entries = []
    for group, group_volumes in volumes.items():
        n_scans = len(group_volumes.scan_ids)
        below, above = group_volumes.scores()
        seen = is_seen(group_volumes.point_mm3, group_volumes.lower_mm3, group_volumes.upper_mm3)
        for coverage in coverages:
            needed = scans_needed(coverage)
            if n_scans < needed:
                raise ValueError(
                    f"`coverage` {coverage:g} needs at least {needed} calibration scans of each acceleration and mask "
                    f"family, got {n_scans} at {group}. Add scans, or ask for a lower coverage."
                )
            alpha = (1 - coverage) / 2
            entries.append(
                GroupQuantiles(
                    group,
                    float(coverage),
                    n_scans,
                    group_volumes.classes,
                    _class_quantiles(below, seen, alpha),
                    _class_quantiles(above, seen, alpha),
                    one_sided_quantile(below.max(axis=1), alpha),
                    one_sided_quantile(above.max(axis=1), alpha),
                    _class_quantiles(above, ~seen, alpha),
                    tuple(seen.sum(axis=0).tolist()),
                )
            )
    return tuple(entries)


def _class_quantiles(
    scores: Float[np.ndarray, "scan class"], chosen: Bool[np.ndarray, "scan class"], alpha: float
) -> tuple[float, ...]:
    """Return the quantile of each class among the chosen scans; if they are too few, see the head of this module."""
    quantiles = []
    for column, members in zip(scores.T, chosen.T, strict=True):
        quantile, own = one_sided_quantile(column[members], alpha), column[members]
        if math.isinf(quantile):
            quantile = max([one_sided_quantile(column, alpha), *own.tolist()])
        quantiles.append(quantile)
    return tuple(quantiles)


def one_sided_quantile(scores: Float[np.ndarray, " scan"], alpha: float) -> float:
    """Return the quantile that a new score exceeds with probability `alpha` at most; infinite for too few scans."""
    rank = quantile_rank(len(scores), alpha)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def quantile_rank(n_scans: int, alpha: float) -> int:
    """Number k of the quantile among the sorted scores, ceil((n + 1) (1 - alpha)), from 1 to n + 1.

    Raises:
        ValueError: `alpha` is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be between 0 and 1, got {alpha}.")
    return max(math.ceil(round((n_scans + 1) * (1 - alpha), 9)), 1)  # 1 - 0.9 is 0.09999999999999998


def scans_needed(coverage: float) -> int:
    """Return the least number of scans for which both quantiles of an interval are finite: 2 / alpha - 1, rounded up.

    Raises:
        ValueError: `coverage` is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"`coverage` must be between 0 and 1, for example 0.9, got {coverage}.")
    return math.ceil(round(2 / (1 - coverage) - 1, 9))
