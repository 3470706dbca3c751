"""Settings of a call of the pipeline: how to reconstruct, whatever the measurement."""

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from ..guidance.targets import TARGETS
from ..mri.consistency import CONSISTENCY, FINAL_CONSISTENCY, NOISE_AWARE_ITERATIONS

__all__ = ["CallSettings"]


@dataclass(frozen=True)
class CallSettings:
    """Settings that `SGRMRIPipeline.__call__` explains, checked when they are made.

    Raises:
        ValueError: a setting is out of range, or two do not go together; the message names the setting, what was
            expected, what came, and the way out.
    """

    target: str = "both"
    num_inference_steps: int = 100
    eta: float = 1.0
    guidance_strength: float | None = None
    guidance_scale: float = 1.0
    cg_iterations: int | None = None
    consistency: str | None = None
    final_consistency: str = "replace"
    num_samples: int = 1
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Check all settings."""
        check_choice("target", self.target, tuple(TARGETS))
        if self.consistency is not None:
            check_choice("consistency", self.consistency, CONSISTENCY)
        check_choice("final_consistency", self.final_consistency, FINAL_CONSISTENCY)
        check_whole_number("num_inference_steps", self.num_inference_steps, 1)
        check_whole_number("num_samples", self.num_samples, 1)
        for name, least in (("cg_iterations", 0), ("batch_size", 1)):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name), least)
        if not is_number(self.eta) or not 0 <= self.eta <= 1:
            raise ValueError(f"`eta` must be from 0 (deterministic) to 1 (as much noise as DDPM), got {self.eta!r}.")
        for name, way_out in (
            ("guidance_strength", "the direction is set by `target`, and None gives the checkpoint's strength"),
            ("guidance_scale", "1 leaves the strength as it is"),
        ):
            value = getattr(self, name)
            if (name, value) != ("guidance_strength", None) and not is_not_negative(value):
                raise ValueError(f"`{name}` must be 0 or larger, got {value!r}; {way_out}.")
        if self.num_samples > 1 and self.target != "none":
            raise ValueError(
                f"`num_samples` must be 1 for target={self.target!r}, got {self.num_samples}: branches of a slice "
                "share their noise. Use target='none' for independent samples, or repeat the call with another "
                "generator."
            )

    def with_defaults(self, config: Any) -> "CallSettings":
        """Fill in what a checkpoint decides: `consistency` and `cg_iterations`.

        Args:
            config: configuration `pipe.config` of the checkpoint.
        """
        consistency = config.consistency if self.consistency is None else self.consistency
        default = NOISE_AWARE_ITERATIONS if consistency == "noise_aware" else config.cg_iterations
        iterations = default if self.cg_iterations is None else self.cg_iterations
        return replace(self, consistency=consistency, cg_iterations=iterations)


def is_number(value: Any) -> bool:
    """Whether a value is a real number rather than a text, a truth value or an array."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_not_negative(value: Any) -> bool:
    """Whether a value is a finite number of 0 or larger."""
    return is_number(value) and 0 <= value < float("inf")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: naming the argument and the choices.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def check_whole_number(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse a value that is no whole number in the range.

    Raises:
        ValueError: naming the argument and the range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least or (most and value > most):
        limits = f"from {least} to {most}" if most else f"of at least {least}"
        raise ValueError(f"`{name}` must be a whole number {limits}, got {value!r}.")
