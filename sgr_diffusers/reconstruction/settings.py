"""Settings of the commands that reconstruct files: those of a call, and what a whole run needs beside them."""

from dataclasses import dataclass
from typing import Any

from ..pipeline.settings import CallSettings, Rule, real_number, setting, whole_number
from ..schedulers.timesteps import fast_timesteps

__all__ = ["DTYPES", "FAST_STEPS", "SamplingSettings"]

DTYPES = ("float32", "float16", "bfloat16")
FAST_STEPS = 25
_START_OF_MEAN = 250  # first fast timestep for the mean of samples, which needs no steps above (docs/results.md)
_CLASS = Rule("a name or a label number", lambda value: True, lambda text: int(text) if text.isdigit() else text)


@dataclass(frozen=True)
class SamplingSettings(CallSettings):
    """How to reconstruct all slices of a scan.

    Each slice has a stream of noise of its own, made of the seed and its place in the scan, so that its reconstruction
    does not depend on which others are made.

    Raises:
        ValueError: as `CallSettings`, or `fast` and `timesteps` are both given.
    """

    num_inference_steps: Any = setting(  # noqa: RUF009 - `None` may be given; a number from then on
        None,
        whole_number(1, 10_000),
        "number of reverse steps",
        option="steps",
        unset=f"100, or {FAST_STEPS} with --fast",
    )
    batch_size: int = setting(
        8, whole_number(1), "largest number of images in a network call; fewer need less memory", "machine"
    )
    classes: tuple[str | int, ...] | None = setting(
        None, _CLASS, "names or label numbers of the classes", unset="all", several=True
    )
    coverage: float | None = setting(
        None,
        real_number("between 0 and 1", lambda value: 0 < value < 1),
        "probability with which the interval of a class shall hold its volume, for example 0.9, where the model is "
        "calibrated: the bounds are then images at the ends of this interval",
        unset="uncalibrated bounds",
    )
    fast: bool = setting(False, None, f"take few steps where they count ({FAST_STEPS} by default), with DDPMScheduler")
    timesteps: tuple[int, ...] | None = setting(
        None, whole_number(0), "falling timesteps", unset="the scheduler's choice", several=True
    )
    seed: int = setting(0, whole_number(0), "seed of the noise")

    def __post_init__(self) -> None:
        """Check all settings, and set the number of steps."""
        if self.fast and self.timesteps is not None:
            raise ValueError(
                "`timesteps` must not be given with `fast`, which chooses them. Leave out one of the two."
            )
        n_steps = self.num_inference_steps if self.timesteps is None else len(self.timesteps)
        if n_steps is None:
            n_steps = FAST_STEPS if self.fast else 100
        object.__setattr__(self, "num_inference_steps", n_steps)
        super().__post_init__()

    @property
    def visited_timesteps(self) -> list[int] | None:
        """Timesteps that the pipeline visits; `None` for the scheduler's choice."""
        if self.fast:
            return fast_timesteps(self.num_inference_steps, _START_OF_MEAN if self.num_samples > 1 else None)
        return None if self.timesteps is None else list(self.timesteps)

    def call_arguments(self) -> dict[str, Any]:
        """Return arguments of `SGRMRIPipeline.__call__` that these settings stand for, except for the generators."""
        chosen = {"classes": self.classes, "timesteps": self.visited_timesteps, "coverage": self.coverage}
        return super().call_arguments() | chosen
