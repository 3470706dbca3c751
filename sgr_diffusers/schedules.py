"""A scheduler and a timestep enter; alpha and sigma of the step and its conversions x0 <-> eps <-> model output leave.

The noisy image is x_in = alpha x0 + sigma eps. Symbols, code to paper (Eqs. 4, 6 and 13), for `DDIMScheduler`:

| code         | paper                                   |
|--------------|-----------------------------------------|
| `alpha`      | sqrt(abar_t)                            |
| `sigma`      | sqrt(1 - abar_t)                        |
| `alpha_next` | sqrt(abar_{t-1})                        |
| `direction`  | sqrt(1 - abar_{t-1} - (eta beta_t)^2)   |

The scheduler's own `step` stays in charge of the update. A data-consistent x0' and a push on eps enter it afterwards,
by `ScheduleStep.shift`, which leaves the direction term with the network's eps, as Eqs. 6 and 13 have it.
"""

from dataclasses import dataclass

from diffusers import DDIMScheduler, SchedulerMixin
from jaxtyping import Float
from torch import Tensor

__all__ = ["PREDICTION_TYPES", "ScheduleStep", "check_scheduler", "schedule_step"]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

Channels = Float[Tensor, "batch 2 y x"]


@dataclass(frozen=True)
class ScheduleStep:
    """One reverse step, t -> t-1.

    Attributes:
        alpha: factor of the clean image in the noisy one.
        sigma: factor of the noise.
        alpha_next: factor of the clean image after the step.
        direction: factor of the predicted noise after the step; 0 if the step ends in the clean image.
        prediction_type: what the network predicts, one of `PREDICTION_TYPES`.
    """

    alpha: float
    sigma: float
    alpha_next: float
    direction: float
    prediction_type: str

    def denoise(self, model_output: Channels, noisy: Channels) -> tuple[Channels, Channels]:
        """Clean image and noise (x0, eps) that a model output stands for (paper Eq. 4)."""
        if self.prediction_type == "epsilon":
            return (noisy - self.sigma * model_output) / self.alpha, model_output
        if self.prediction_type == "v_prediction":
            return self.alpha * noisy - self.sigma * model_output, self.alpha * model_output + self.sigma * noisy
        return model_output, (noisy - self.alpha * model_output) / self.sigma

    def to_model_output(self, x0: Channels, noisy: Channels) -> Channels:
        """Model output that stands for the clean image `x0`: the inverse of `denoise`."""
        if self.prediction_type == "epsilon":
            return (noisy - self.alpha * x0) / self.sigma
        if self.prediction_type == "v_prediction":
            return (self.alpha * noisy - x0) / self.sigma
        return x0

    def shift(self, x0: Channels, consistent: Channels, push: Channels) -> Channels:
        """What the scheduler's own result lacks to paper Eq. 13.

        Args:
            x0: the clean image that the scheduler assumed.
            consistent: x0', the data-consistent one that replaces it.
            push: gamma times the guidance gradient, added to the predicted noise.
        """
        return self.alpha_next * (consistent - x0) + self.direction * push


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler whose steps the pipeline does not reproduce exactly.

    Raises:
        TypeError: the scheduler is not a `DDIMScheduler`.
        ValueError: it clips or thresholds x0, has an unknown prediction type, or starts from pure noise with a network
            that predicts eps.
    """
    name = type(scheduler).__name__
    if not isinstance(scheduler, DDIMScheduler):
        raise TypeError(
            f"`scheduler` must be a DDIMScheduler, got {name}. Its steps are not supported; set "
            "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    config = scheduler.config
    if config.clip_sample or config.thresholding:
        raise ValueError(
            f"`scheduler` must not clip the predicted image, got clip_sample={config.clip_sample}, "
            f"thresholding={config.thresholding}: real and imaginary parts of an image are not limited to [-1, 1]. "
            f"Set `pipe.scheduler = {name}.from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)`."
        )
    if config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`scheduler` must have a prediction_type of {PREDICTION_TYPES}, got {config.prediction_type!r}. Create "
            "it with the one that the prior was trained for."
        )
    if config.prediction_type == "epsilon" and float(scheduler.alphas_cumprod[-1]) == 0.0:
        raise ValueError(
            "`scheduler` has rescale_betas_zero_snr=True, from whose first step no image can be computed with "
            "prediction_type='epsilon'. Create it with rescale_betas_zero_snr=False."
        )


def schedule_step(scheduler: SchedulerMixin, timestep: int | Tensor, eta: float) -> ScheduleStep:
    """Constants of the step that starts at `timestep`.

    Args:
        scheduler: one that `check_scheduler` accepts, after `set_timesteps`.
        timestep: one of `scheduler.timesteps`.
        eta: share of fresh noise, 0 (deterministic DDIM) to 1 (DDPM).
    """
    config = scheduler.config
    t = int(timestep)
    t_next = t - config.num_train_timesteps // scheduler.num_inference_steps
    abar = scheduler.alphas_cumprod[t].double()
    abar_next = (scheduler.alphas_cumprod[t_next] if t_next >= 0 else scheduler.final_alpha_cumprod).double()
    noise_variance = eta**2 * (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)
    return ScheduleStep(
        alpha=float(abar.sqrt()),
        sigma=float((1 - abar).sqrt()),
        alpha_next=float(abar_next.sqrt()),
        direction=float((1 - abar_next - noise_variance).clamp_min(0.0).sqrt()),
        prediction_type=config.prediction_type,
    )
