"""Settings of the sampling: how to reconstruct, whatever the measurement."""

from dataclasses import dataclass

from ..schedulers.timesteps import fast_timesteps

__all__ = ["SamplingSettings"]


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample; names and defaults as in `SGRMRIPipeline.__call__`, unless said otherwise.

    Attributes:
        target: targets to reconstruct: "both", "upper", "lower" or "none".
        classes: names or label numbers of the classes; `None` for all.
        num_inference_steps: number of reverse steps.
        fast: whether to make the steps at `fast_timesteps`, by `DDPMScheduler`, in place of the model's scheduler.
        eta: share of fresh noise; not for `fast`.
        guidance_strength: guidance strength per step; `None` for `default_strength`.
        guidance_scale: factor on the guidance strength.
        consistency: kind of data consistency, "cg" or "noise_aware"; `None` for the model's.
        cg_iterations: largest number of conjugate gradient iterations in a step; `None` for the model's.
        noise_std: standard deviation of the real part of the noise; `None` for 1 where the file was prewhitened, else
            to estimate it.
        calibration_width: largest side of the region that coil maps are estimated from.
        kernel_width: side of the kernel that coil maps are estimated with.
        crop: eigenvalue below which estimated coil maps are zero.
        final_consistency: kind of the last step, "replace", "regularized" or "least_squares".
        batch_size: largest number of images in a network call.
        seed: seed of the noise. Each slice has a stream of its own, of (seed, place in the scan), whichever others
            are reconstructed.
    """

    target: str = "both"
    classes: tuple[str | int, ...] | None = None
    num_inference_steps: int = 100
    fast: bool = False
    eta: float = 1.0
    guidance_strength: float | None = None
    guidance_scale: float = 1.0
    consistency: str | None = None
    cg_iterations: int | None = None
    noise_std: float | None = None
    calibration_width: int | None = None
    kernel_width: int | None = None
    crop: float | None = None
    final_consistency: str = "replace"
    batch_size: int = 8
    seed: int = 0

    @property
    def timesteps(self) -> list[int] | None:
        """What the pipeline is called with."""
        return fast_timesteps(self.num_inference_steps) if self.fast else None
