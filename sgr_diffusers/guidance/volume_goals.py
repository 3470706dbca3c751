"""Volumes that guidance shall reach: how they are given, how far a push goes, and whether they were attained."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .targets import resolve_classes

__all__ = ["VolumeGoals", "are_attained", "push_shares"]

TOLERANCE = 0.05  # of the goal: nearer counts as attained
_BAND = 0.02  # of the goal: farther away is pushed in full

Goal = float | int | Sequence[float | int]


class VolumeGoals:
    """Looks up the volume that each class and target of a call shall reach.

    Args:
        goals: volume in mm^3 for all classes; or, by name or label number of a class, its volume or its volumes
            (lower, upper) for the two targets.
        class_names: names of the segmentation model's classes.

    Raises:
        ValueError: a volume is negative or no number, or a class is unknown.
    """

    def __init__(self, goals: Any, class_names: tuple[str, ...]) -> None:
        """Check the volumes and look up the classes."""
        if not isinstance(goals, Mapping):
            goals = dict.fromkeys(range(len(class_names) + 1), goals)
            self._pairs = {number: _pair(goal) for number, goal in goals.items()}
        else:
            self._pairs = {resolve_classes(name, class_names)[0]: _pair(goal) for name, goal in goals.items()}

    def table(self, class_numbers: Sequence[int], targets: Sequence[str]) -> Float[Tensor, "class target"]:
        """Return the goals in mm^3; NaN for a class without one.

        Args:
            class_numbers: label of each class, 0 for plain reconstruction.
            targets: name of each target; the first of a pair of goals is for "lower", the second for all others.
        """
        nothing = (float("nan"), float("nan"))
        pairs = [self._pairs.get(number, nothing) for number in class_numbers]
        return torch.tensor([[pair[target != "lower"] for target in targets] for pair in pairs])


def push_shares(
    volumes: Float[Tensor, "class target"], goals: Float[Tensor, "class target"], voxel_mm3: float
) -> Float[Tensor, "class target"]:
    """Compute the share of a full push towards larger volumes, from -1 to 1, proportional to what is missing."""
    band = (_BAND * goals).clamp_min(voxel_mm3)
    return ((goals - volumes) / band).clamp(-1, 1).nan_to_num(0.0)


def are_attained(
    volumes: Float[Tensor, "class target"], goals: Float[Tensor, "class target"], voxel_mm3: float
) -> Bool[Tensor, "class target"]:
    """Tell whether the volumes lie within 5 % of the goals, or within a voxel."""
    return (volumes - goals).abs() <= (TOLERANCE * goals).clamp_min(voxel_mm3)


def _pair(goal: Any) -> tuple[float, float]:
    """Return the goals for the lower and the upper target."""
    pair = (goal, goal) if isinstance(goal, Real) else tuple(goal)
    if len(pair) != 2 or not all(isinstance(value, Real) and 0 <= float(value) < float("inf") for value in pair):
        raise ValueError(
            "`target_volume_mm3` must be a volume of 0 or larger, or (lower, upper) of them, for all classes or in a "
            f"dictionary by class, got {goal!r}."
        )
    return float(pair[0]), float(pair[1])
