"""Settings of the sampling: how to reconstruct, whatever the measurement."""

from dataclasses import dataclass

from ..schedulers.timesteps import fast_timesteps

__all__ = ["SamplingSettings"]


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample; names and defaults as in `SGRMRIPipeline.__call__`, unless said otherwise.

    Attributes:
        target: "both", "upper", "lower" or "none".
        classes: names or label numbers; `None` for all.
        num_inference_steps: reverse steps.
        fast: make them at `fast_timesteps`, by `DDPMScheduler`, in place of the model's scheduler.
        eta: share of fresh noise; not for `fast`.
        guidance_strength: per step; `None` for `default_strength`.
        guidance_scale: factor on it.
        final_consistency: "replace", "regularized" or "least_squares".
        batch_size: most images in a network call.
        seed: of the noise. Each slice has a stream of its own, of (seed, place in the scan), whichever others are
            reconstructed.
    """

    target: str = "both"
    classes: tuple[str | int, ...] | None = None
    num_inference_steps: int = 100
    fast: bool = False
    eta: float = 1.0
    guidance_strength: float | None = None
    guidance_scale: float = 1.0
    final_consistency: str = "replace"
    batch_size: int = 8
    seed: int = 0

    @property
    def timesteps(self) -> list[int] | None:
        """What the pipeline is called with."""
        return fast_timesteps(self.num_inference_steps) if self.fast else None
