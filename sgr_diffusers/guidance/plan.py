"""Plan of guidance: which guidance pushes in which network evaluation of a call, and how much."""

from collections.abc import Sequence

from .guiders import Guidance

__all__ = ["check_windows", "guidance_plan", "scale_guidance"]


def check_windows(guidance: Sequence[Guidance], has_set_in: Sequence[bool], guidance_from: float) -> None:
    """Refuse a call of too few steps for guidance that sets in where the checkpoint says.

    Args:
        guidance: guidance of the call.
        has_set_in: flag of each evaluation, true if the checkpoint has guidance set in by then.
        guidance_from: share of the training time below which it does, for the message.

    Raises:
        ValueError: nothing would be pushed.
    """
    if not any(has_set_in[:-1]) and any(entry.config.start is None for entry in guidance):
        raise ValueError(
            f"`num_inference_steps` must leave a step before the last below {guidance_from:g} of the training time "
            f"(`guidance_from`), or nothing is pushed; got {len(has_set_in)} evaluations. Take more steps; in "
            "Python, guidance=SegmentationGuidance(start=0.0) guides in all of them."
        )


def guidance_plan(
    guidance: Sequence[Guidance],
    default_strengths: Sequence[float],
    has_set_in: Sequence[bool],
    strength: float | None = None,
) -> list[list[tuple[Guidance, float]]]:
    """List, for each network evaluation, the guidance whose window it is in, with the strength b (paper Eq. 14).

    The last evaluation has none: it ends in full data consistency.

    Args:
        guidance: guidance of the call.
        default_strengths: strength of each evaluation where neither the guidance nor the call gives one
            (`ScheduledSampler.strengths`).
        has_set_in: flag of each evaluation, true if the checkpoint has guidance set in by then
            (`ScheduledSampler.is_guided_from`).
        strength: strength that the call gives; a strength of the guidance itself goes before it.
    """
    n_steps = len(default_strengths)
    plan: list[list[tuple[Guidance, float]]] = [[] for _ in range(n_steps)]
    for step in range(n_steps - 1):
        of_call = default_strengths[step] if strength is None else strength
        for entry in guidance:
            if entry.is_on(step, n_steps, has_set_in[step]):
                plan[step].append((entry, of_call if entry.config.strength is None else entry.config.strength))
    return plan


def scale_guidance(guidance: Sequence[tuple[Guidance, float]], scale: float) -> list[tuple[Guidance, float]]:
    """Multiply the strengths of a step by a factor, and leave out guidance that then pushes nothing."""
    return [(entry, scale * strength) for entry, strength in guidance if scale * strength > 0]
