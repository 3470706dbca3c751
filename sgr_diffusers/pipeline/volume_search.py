"""Brings guided images to a volume exactly, by scaling what guidance changed in them."""

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["MOST_SCALE", "scale_to_goals"]

# Of what guidance changed: beyond 1 the change is extrapolated. 8 was chosen out of 4, 8 and 10 on tuning scans.
MOST_SCALE = 8.0
_N_HALVINGS = 8


def scale_to_goals(
    guided: Complex[Tensor, "slice class target y x"],
    plain: Complex[Tensor, "slice y x"],
    volumes_of: Callable[[Tensor], Float[Tensor, "class target"]],
    goals: Float[Tensor, "class target"],
) -> Complex[Tensor, "slice class target y x"]:
    """Scale the difference of guided and unguided images until the volumes come as near to the goals as they can.

    One factor from 0 to `MOST_SCALE` for all slices of a class and target is found by bisection. Both images agree
    with the measurement, and so does what lies on the line through them. The unguided images are the nearest where
    guidance moved the volume away from the goal.

    Args:
        guided: guided images.
        plain: unguided images that share the noise of the guided ones.
        volumes_of: function from images `(slice, class, target, y, x)` to the volume of each class in its own images,
            the slices together.
        goals: volumes to reach.
    """
    plain = plain[:, None, None]
    change = guided - plain
    volumes, start = volumes_of(guided), volumes_of(plain.expand_as(guided))
    best = torch.where((start - goals).abs() < (volumes - goals).abs(), 0.0, 1.0)
    error = torch.minimum((volumes - goals).abs(), (start - goals).abs())
    rises = goals > start  # with the factor
    low, high = torch.zeros_like(goals), torch.full_like(goals, MOST_SCALE)
    for _ in range(_N_HALVINGS):
        factor = (low + high) / 2
        volumes = volumes_of(plain + factor[:, :, None, None] * change)
        is_nearer = (volumes - goals).abs() < error
        best, error = torch.where(is_nearer, factor, best), torch.minimum((volumes - goals).abs(), error)
        falls_short = torch.where(rises, volumes < goals, volumes > goals)
        low, high = torch.where(falls_short, factor, low), torch.where(falls_short, high, factor)
    return plain + best[:, :, None, None] * change
