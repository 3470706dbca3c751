"""Estimates how long a reconstruction takes, by one with fewer steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from .settings import SamplingSettings

__all__ = ["estimated_seconds"]

Settings = TypeVar("Settings", bound=SamplingSettings)


def estimated_seconds(reconstruct: Callable[[Settings], float], settings: Settings) -> float:
    """Estimate the duration of a reconstruction.

    The time of a step is the difference between reconstructions of a fifth and two fifths of the steps, so that what
    is done once cancels, and the steps that are pushed have their share.

    Args:
        reconstruct: function that reconstructs with the settings given, and returns the seconds that it took.
        settings: settings whose duration is estimated.

    Returns:
        Seconds of a reconstruction with all steps.
    """

    def seconds_of(n_steps: int) -> float:
        visited, timesteps = settings.visited_timesteps, None
        if visited is not None:  # spread over all of them, for not all cost alike
            timesteps = tuple(visited[round(k)] for k in np.linspace(0, len(visited) - 1, n_steps))
        return reconstruct(replace(settings, num_inference_steps=n_steps, fast=False, timesteps=timesteps))

    n_steps = settings.num_inference_steps or 1
    if n_steps < 10:
        return seconds_of(n_steps)
    few = n_steps // 5
    first, second = seconds_of(few), seconds_of(2 * few)
    return first + max(second - first, 0.0) / few * (n_steps - few)
