"""Timesteps for few reverse steps."""

__all__ = ["fast_timesteps"]


def fast_timesteps(n_steps: int = 25, start: int | None = None, power: float | None = None) -> list[int]:
    """Choose timesteps for few steps, dense where the measurement leaves something to decide.

    Above t = 500 the clean image is little more than what the measurement says: few steps are better spent below,
    where data consistency gains most from short steps at low noise, t = start * (1 - k / (n_steps - 1)) ** power. More
    than 25 start earlier, and from 50 on they are equal, as the paper's 100. Found on validation slices of the
    synthetic knee; for the linear betas of the paper and a scheduler that takes timesteps and adds fresh noise, such
    as `DDPMScheduler`.

    Args:
        n_steps: number of evaluations of the prior, at least 2.
        start: the first timestep; by default 20 times `n_steps`, at least 500, at most 990.
        power: 1 for equal spacing; larger, the more of them are at low noise. By default 1.5 up to 25 steps, from
            where it falls to 1 at 50.

    Raises:
        ValueError: fewer than 2 steps.
    """
    if n_steps < 2:
        raise ValueError(f"`n_steps` must be at least 2, the first and the last, got {n_steps}.")
    if start is None:
        start = min(max(20 * n_steps, 500), 990)
    if power is None:
        power = min(max(2 - n_steps / 50, 1.0), 1.5)
    times = [round(start * (1 - k / (n_steps - 1)) ** power) for k in range(n_steps)]
    return sorted(set(times), reverse=True)
