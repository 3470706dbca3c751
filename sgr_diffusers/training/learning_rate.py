"""Compute the share of the learning rate that a step uses, from how far the run has come."""

import math

__all__ = ["LR_SCHEDULERS", "learning_rate_factor"]

# The names of `diffusers.optimization.get_scheduler`, and a trapezoid.
LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "trapezoidal",
)


def learning_rate_factor(
    schedule: str,
    step: int,
    progress: float | int,
    warmup_steps: int = 0,
    cooldown_fraction: float | int = 0.2,
    n_cycles: int = 1,
    power: float | int = 1.0,
) -> float:
    """Return the share of the learning rate that a step uses.

    A function of the progress rather than of the step, since a run may end by the clock. Where it ends by steps and
    there is no warm-up, the values are those of diffusers' scheduler of the same name. A warm-up multiplies them.

    Args:
        schedule: name of the schedule, one of `LR_SCHEDULERS`.
        step: number of optimizer steps done before this one.
        progress: part of the run that is over, in [0, 1], in steps or in minutes, whichever ends it sooner.
        warmup_steps: number of steps over which the factor rises linearly.
        cooldown_fraction: last part of the run, in which `trapezoidal` falls to 0.
        n_cycles: number of times that `cosine_with_restarts` falls from 1 to 0.
        power: power of the remaining part of the run, for `polynomial`.
    """
    remaining = max(0.0, 1.0 - progress)
    factor = {
        "constant": 1.0,
        "constant_with_warmup": 1.0,
        "linear": remaining,
        "cosine": 0.5 * (1 - math.cos(math.pi * remaining)),
        "cosine_with_restarts": 0.5 * (1 + math.cos(math.pi * (n_cycles * progress % 1))) if remaining else 0.0,
        "polynomial": remaining**power,
        "trapezoidal": min(1.0, remaining / cooldown_fraction),
    }[schedule]
    return factor * min(1.0, (step + 1) / warmup_steps) if warmup_steps else factor
