# Made from the Python package sgr_diffusers (Apache-2.0) by `sgr publish bundle`.
# To change it, change the package.
"""A diffusers scheduler enters; alpha and sigma, conversions x0 <-> eps <-> model output, and its steps leave.

In the space of the model's input the noisy image is x_in = alpha x0 + sigma eps, for every scheduler. Symbols, code to
paper (Eqs. 4, 6 and 13), for `DDIMScheduler`:

| code    | paper            |
|---------|------------------|
| `alpha` | sqrt(abar_t)     |
| `sigma` | sqrt(1 - abar_t) |

Data consistency replaces x0 by x0', guidance adds a push to eps. Both enter by moving the noisy image to where the new
pair belongs, alpha x0' + sigma (eps + push), and stepping from there with the model output that stands for the pair.
The scheduler's own `step` does the rest: for DDIM the result is Eq. 13, for every other scheduler the same in its own
update rule, its memory of earlier outputs included.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from .sgr_shapes import Float
from torch import Generator, Tensor

from .sgr_scheduler_table import (
    FORGETS_NOISE,
    FRESH_NOISE,
    NATIVE_TYPES,
    NOISE_LEVEL,
    PUSH_EXPONENT,
    refuse_reason,
    supported_name,
)

__all__ = [
    "PREDICTION_TYPES",
    "NoiseLevel",
    "ScheduledSampler",
    "check_scheduler",
    "fast_timesteps",
    "noise_fingerprint",
]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")

Channels = Float[Tensor, "batch 2 y x"]


@dataclass(frozen=True)
class NoiseLevel:
    """What a noisy image at the model's input consists of, and what the model predicts from it.

    Attributes:
        alpha: factor of the clean image.
        sigma: factor of the noise, positive.
        prediction_type: one of `PREDICTION_TYPES`.
    """

    alpha: float
    sigma: float
    prediction_type: str

    def denoise(self, model_output: Channels, noisy: Channels) -> tuple[Channels, Channels]:
        """Clean image and noise (x0, eps) that a model output stands for (paper Eq. 4)."""
        if self.prediction_type == "epsilon":
            return (noisy - self.sigma * model_output) / self.alpha, model_output
        if self.prediction_type == "v_prediction":
            # Exact for alpha^2 + sigma^2 = 1, as in every schedule that such a model is trained with.
            return self.alpha * noisy - self.sigma * model_output, self.alpha * model_output + self.sigma * noisy
        if self.prediction_type == "flow_prediction":  # alpha = 1 - sigma, the model predicts eps - x0
            return noisy - self.sigma * model_output, noisy + self.alpha * model_output
        return model_output, (noisy - self.alpha * model_output) / self.sigma

    def noisy_image(self, x0: Channels, eps: Channels) -> Channels:
        """alpha x0 + sigma eps."""
        return self.alpha * x0 + self.sigma * eps

    def to_model_output(self, x0: Channels, eps: Channels) -> Channels:
        """Model output that stands for a clean image and noise: the inverse of `denoise` at their noisy image."""
        return {
            "epsilon": lambda: eps,
            "v_prediction": lambda: self.alpha * eps - self.sigma * x0,
            "flow_prediction": lambda: eps - x0,
            "sample": lambda: x0,
        }[self.prediction_type]()


def fast_timesteps(n_steps: int = 25, start: int = 500, power: float = 1.5) -> list[int]:
    """Timesteps for few steps, dense where the measurement leaves something to decide.

    Above `start` the clean image is little more than what the measurement says, and below it data consistency gains
    most from short steps at low noise: t = start * (1 - k / (n_steps - 1)) ** power. Found on validation slices of the
    synthetic knee at 4x, 8x and 16x; for the linear betas of the paper and a scheduler that takes timesteps and adds
    fresh noise, such as `DDPMScheduler`.

    Args:
        n_steps: evaluations of the prior, at least 2.
        start: the first timestep.
        power: 1 for equal spacing; larger, the more of them are at low noise.

    Raises:
        ValueError: fewer than 2 steps.
    """
    if n_steps < 2:
        raise ValueError(f"`n_steps` must be at least 2, the first and the last, got {n_steps}.")
    times = [round(start * (1 - k / (n_steps - 1)) ** power) for k in range(n_steps)]
    return sorted(set(times), reverse=True)


def noise_fingerprint(scheduler: SchedulerMixin) -> dict[str, Any]:
    """What a prior must have been trained with to be sampled by this scheduler.

    Returns:
        `prediction_type`, and `alphas_cumprod`: abar at the start, the quarters and the end of training time; `None`
        for schedulers without (flow matching).
    """
    abar = getattr(scheduler, "alphas_cumprod", None)
    if abar is not None and _prediction_type(scheduler) != "flow_prediction":
        last = len(abar) - 1
        abar = [round(float(abar[last * quarter // 4]), 6) for quarter in range(5)]
    else:
        abar = None
    return {"prediction_type": _prediction_type(scheduler), "alphas_cumprod": abar}


def check_scheduler(
    scheduler: SchedulerMixin,
    trained_with: dict[str, Any] | None = None,
    is_guided: bool = False,
    timesteps: Sequence[int] | None = None,
) -> None:
    """Refuse a scheduler that would give a wrong image.

    Args:
        scheduler: of diffusers.
        trained_with: `noise_fingerprint` of the scheduler that the prior was trained with; `None` checks nothing.
        is_guided: the noise that the prior predicts will be pushed.
        timesteps: that the scheduler is to visit; `None` for its own choice.

    Raises:
        TypeError: the class is not supported; the message says why.
        ValueError: it clips or thresholds x0, has an unknown prediction type, starts from pure noise with a network
            that predicts eps, does not fit what the prior was trained with, would forget a push, or cannot visit
            the timesteps.
    """
    name = type(scheduler).__name__
    if supported_name(scheduler) is None:
        raise TypeError(
            f"`scheduler` {name} is not supported: {refuse_reason(scheduler)} Set for example "
            "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    if is_guided and supported_name(scheduler) in FORGETS_NOISE:
        raise ValueError(
            f"`scheduler` {name} replaces the predicted noise by fresh noise in each step, so that guidance has no "
            "effect. Reconstruct with target='none', or set for example `pipe.scheduler = "
            "DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    if timesteps is not None:
        _check_timesteps(scheduler, timesteps)
    config = scheduler.config
    # setting: (values that work, what to do instead)
    limits = {
        "clip_sample": ((False,), "real and imaginary parts of an image are not limited to [-1, 1]"),
        "thresholding": ((False,), "it would clip the image"),
        "use_dynamic_shifting": ((False,), "the shift depends on an image size that is not that of the prior"),
        "invert_sigmas": ((False,), "it goes from image to noise"),
        "timestep_type": (("discrete",), "the prior is trained on discrete timesteps"),
        "solver_p": ((None,), "another solver's memory is out of reach of data consistency"),
        "scale_factors": ((None,), "the image size must not change between steps"),
    }
    for setting, (good, reason) in limits.items():
        value = config.get(setting, good[0])
        if value not in good and not (setting == "scale_factors" and not value):
            raise ValueError(
                f"`scheduler` must have {setting}={good[0]}, got {value!r}: {reason}. Set "
                f"`pipe.scheduler = {name}.from_config(pipe.scheduler.config, {setting}={good[0]!r})`."
            )
    if str(config.get("variance_type", "")).startswith("learned"):
        raise ValueError(
            f"`scheduler` must have a fixed variance, got variance_type={config.variance_type!r}: a learned sigma of "
            f"the prior is not used. Set `pipe.scheduler = {name}.from_config(pipe.scheduler.config, "
            "variance_type='fixed_small')`."
        )
    prediction_type = _prediction_type(scheduler)
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`scheduler` must have a prediction_type of {PREDICTION_TYPES}, got {prediction_type!r}. Create it with "
            "the one that the prior was trained for."
        )
    if prediction_type == "flow_prediction":
        if NOISE_LEVEL[supported_name(scheduler)] != "flow" and not config.get("use_flow_sigmas"):
            raise ValueError(
                f"`scheduler` must have use_flow_sigmas=True for prediction_type='flow_prediction'. Set "
                f"`pipe.scheduler = {name}.from_config(pipe.scheduler.config, use_flow_sigmas=True)`."
            )
    elif config.get("use_flow_sigmas"):
        raise ValueError(
            f"`scheduler` must have use_flow_sigmas=False for prediction_type={prediction_type!r}: the prior knows "
            "the noise levels that it was trained with."
        )
    elif prediction_type == "epsilon" and float(scheduler.alphas_cumprod[-1]) < 1e-6:
        raise ValueError(
            "`scheduler` has rescale_betas_zero_snr=True, from whose first step no image can be computed with "
            "prediction_type='epsilon'. Create it with rescale_betas_zero_snr=False."
        )
    _check_trained_with(scheduler, trained_with)


def _check_timesteps(scheduler: SchedulerMixin, timesteps: Sequence[int]) -> None:
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(
            f"`timesteps` cannot be given to {type(scheduler).__name__}, which chooses its own. Leave them out or set "
            "`pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    n_train, given = scheduler.config.num_train_timesteps, list(timesteps)
    if not given or given != sorted(set(given), reverse=True) or not 0 <= given[-1] <= given[0] < n_train:
        raise ValueError(f"`timesteps` must fall from below {n_train} to 0 or more, without repetition, got {given}.")


def _check_trained_with(scheduler: SchedulerMixin, trained_with: dict[str, Any] | None) -> None:
    if trained_with is None:
        return
    found = noise_fingerprint(scheduler)
    if found["prediction_type"] != trained_with["prediction_type"]:
        raise ValueError(
            f"`scheduler` has prediction_type={found['prediction_type']!r}, but the prior predicts "
            f"{trained_with['prediction_type']!r}. Create it by `from_config(pipe.scheduler.config)` of the scheduler "
            "that came with the prior, or set its prediction_type."
        )
    if found["alphas_cumprod"] is not None and trained_with["alphas_cumprod"] is not None:
        pairs = zip(found["alphas_cumprod"], trained_with["alphas_cumprod"], strict=True)
        if max(abs(a - b) for a, b in pairs) > 1e-3:
            raise ValueError(
                "`scheduler` has other noise levels than the prior was trained with: abar at the quarters of training "
                f"time is {found['alphas_cumprod']}, not {trained_with['alphas_cumprod']}. Give it the prior's "
                "beta_start, beta_end and beta_schedule; class defaults differ between schedulers."
            )


class ScheduledSampler:
    """A scheduler set up for one run. Latents are in the scheduler's own space; images and noise in the model's.

    Use: `level = sampler.level(t)` and `sampler.model_input(latents, t)` before the network, `sampler.step` after it,
    in the order of `sampler.timesteps`, which may visit a noise level more than once (Heun, PNDM).
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        num_inference_steps: int,
        eta: float,
        generators: list[Generator],
        device: torch.device,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Set the timesteps.

        Args:
            scheduler: one that `check_scheduler` accepts. It is stepped itself, unless its class does not know the
                prior's prediction type: then a copy that is told eps instead.
            num_inference_steps: as in `scheduler.set_timesteps`.
            eta: share of fresh noise, for DDIM; others have their own or none.
            generators: of fresh noise, one for each image; equal ones give equal noise.
            device: of the latents.
            timesteps: to visit, in place of `num_inference_steps` of the scheduler's own choice.

        Raises:
            ValueError: by the scheduler, if it cannot make that many steps.
        """
        self.prediction_type = _prediction_type(scheduler)
        self._name = supported_name(scheduler)
        if self.prediction_type not in NATIVE_TYPES[self._name]:
            scheduler = type(scheduler).from_config(scheduler.config, prediction_type="epsilon")
        self._scheduler, self._generators = scheduler, generators
        if timesteps is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            scheduler.set_timesteps(timesteps=list(timesteps), device=device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else it is looked up by the timestep, which need not be unique
        parameters = inspect.signature(scheduler.step).parameters
        self._step_arguments = {"eta": eta} if self._name.startswith("DDIM") else {}
        if "generator" in parameters:
            self._step_arguments["generator"] = generators
        if self._name == "DPMSolverSDEScheduler":  # draws from a Brownian tree for each image, seeded alike for equals
            scheduler.noise_sampler, scheduler.noise_sampler_seed = None, [g.initial_seed() for g in generators]

    @property
    def timesteps(self) -> Tensor:
        """What the network is told, one for each of its evaluations."""
        return self._scheduler.timesteps

    @property
    def pushes_per_step(self) -> int:
        """Evaluations of a step whose push has an effect."""
        return 1 if self._name == "DPMSolverSDEScheduler" else self._scheduler.order

    @property
    def shares(self) -> list[float]:
        """Part of the training time that the step of each evaluation covers, the same for both evaluations of a step.

        Lengths in t, whatever the spacing, so that a sum over them does not depend on where and how many they are.
        """
        scheduler = self._scheduler
        times = [float(t) / scheduler.config.num_train_timesteps for t in scheduler.timesteps]
        starts = times[:: scheduler.order]  # a second evaluation goes with the first
        spans = [start - max((t for t in starts if t < start), default=0.0) for start in starts]
        return [spans[k // scheduler.order] for k in range(len(times))]

    @property
    def fresh_noise(self) -> float:
        """Eta of the sampler: 1 if each step adds all of its noise afresh, 0 if it follows the predicted noise."""
        is_sde = str(self._scheduler.config.get("algorithm_type", "")).startswith("sde")
        return float(self._step_arguments.get("eta", FRESH_NOISE.get(self._name, is_sde)))

    @property
    def push_exponent(self) -> float:
        """How the push of a step has to go with its share of the training time (`default_strength`)."""
        algorithm = self._scheduler.config.get("algorithm_type")
        own = PUSH_EXPONENT.get(algorithm, PUSH_EXPONENT.get(self._name, 1.0))
        if algorithm in PUSH_EXPONENT or FRESH_NOISE.get(self._name) == 1:
            return own
        return own + (PUSH_EXPONENT["DDPMScheduler"] - own) * self.fresh_noise**2

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the latents to start with."""
        return float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def model_input(self, latents: Channels, timestep: Tensor) -> Channels:
        """The noisy images that the network sees. To be called once before each `step`."""
        if hasattr(self._scheduler, "scale_model_input"):
            return self._scheduler.scale_model_input(latents, timestep)
        return latents

    def level(self, timestep: Tensor) -> NoiseLevel:
        """Noise level of the next evaluation, at `timestep`. To be called after `model_input`."""
        kind, scheduler = NOISE_LEVEL[self._name], self._scheduler
        if kind == "alphas_cumprod":
            abar = float(scheduler.alphas_cumprod[int(timestep)].double())
            return NoiseLevel(math.sqrt(abar), math.sqrt(1 - abar), self.prediction_type)
        sigma = float(self._sigma().double())
        if kind == "flow" or self.prediction_type == "flow_prediction":
            return NoiseLevel(1 - sigma, sigma, self.prediction_type)
        # Both other kinds count sigma relative to alpha, whatever space their latents are in.
        alpha = 1 / math.sqrt(1 + sigma**2)
        return NoiseLevel(alpha, sigma * alpha, self.prediction_type)

    def step(self, level: NoiseLevel, timestep: Tensor, x0: Channels, eps: Channels) -> Channels:
        """Latents after the step, from the (data-consistent) clean image and the (pushed) noise of this one."""
        scheduler = self._scheduler
        latents = level.noisy_image(x0, eps)
        if NOISE_LEVEL[self._name] == "exploding":
            latents = latents / level.alpha
        if getattr(scheduler, "last_sample", None) is not None:
            # UniPC and SA-Solver would correct the image by recomputing it from the one before; that image has been
            # made consistent since, and its correction would undo this.
            scheduler.last_sample = None
        if self._name == "DPMSolverSinglestepScheduler":
            self._move_block_start(level, latents)
        elif not getattr(scheduler, "state_in_first_order", True) and self._name != "DPMSolverSDEScheduler":
            self._restart_step(x0, eps)
        told = NoiseLevel(level.alpha, level.sigma, _prediction_type(scheduler))
        output = told.to_model_output(x0, eps)
        self._latents = scheduler.step(output, timestep, latents, **self._step_arguments).prev_sample
        return self._latents

    def _sigma(self) -> Tensor:
        """Sigma of the next evaluation, in the scheduler's own count."""
        scheduler, index = self._scheduler, self._scheduler.step_index or 0
        if getattr(scheduler, "state_in_first_order", True):
            return scheduler.sigmas[index]
        if self._name == "KDPM2DiscreteScheduler":
            return scheduler.sigmas_interpol[index]
        if self._name == "KDPM2AncestralDiscreteScheduler":
            return scheduler.sigmas_interpol[index - 1]
        if self._name == "DPMSolverSDEScheduler":
            return torch.as_tensor(scheduler.mid_point_sigma)
        return scheduler.sigmas[index]  # Heun

    def _restart_step(self, x0: Channels, eps: Channels) -> None:
        """Before the second evaluation of a step, which takes it again from its start: put the pair there.

        The step then ends in alpha_next x0 + sigma_next eps, the form of Eq. 13. Its own start was made consistent by
        the first evaluation, and the difference between the two consistent images, which is no derivative, would be
        extrapolated to the end of the step: up to 9 dB of PSNR were lost, and of a push the opposite was taken.
        DPMSolverSDE interpolates between them and keeps its start, whose noise the second evaluation does not know.
        """
        scheduler = self._scheduler
        sigma = float(scheduler.sigmas[(scheduler.step_index or 0) - 1])
        is_flow = NOISE_LEVEL[self._name] == "flow"
        scheduler.sample = ((1 - sigma) * x0 if is_flow else x0) + sigma * eps
        if hasattr(scheduler, "prev_derivative"):  # Heun averages the derivatives of both
            scheduler.prev_derivative = eps - x0 if is_flow else eps

    def _move_block_start(self, level: NoiseLevel, latents: Tensor) -> None:
        """Within a block of steps, this solver goes on from the block's start: move that, so that the step moves too.

        A step takes the start by a factor of the noise levels; the start is moved by what that factor turns into the
        displacement of the image here.
        """
        scheduler, index = self._scheduler, self._scheduler.step_index or 0
        order = scheduler.order_list[index]
        if order == 1:
            return
        start = float(scheduler.sigmas[index - order + 1].double())
        alpha = 1 - start if level.prediction_type == "flow_prediction" else 1 / math.sqrt(1 + start**2)
        sigma = start if level.prediction_type == "flow_prediction" else start * alpha
        factor = alpha / level.alpha if scheduler.config.algorithm_type == "dpmsolver" else sigma / level.sigma
        if scheduler.config.algorithm_type == "sde-dpmsolver++":
            factor *= (level.alpha * sigma) / (level.sigma * alpha)
        scheduler.sample = scheduler.sample + factor * (latents - self._latents)


def _prediction_type(scheduler: SchedulerMixin) -> str:
    if NOISE_LEVEL.get(supported_name(scheduler)) == "flow":
        return "flow_prediction"
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    return "sample" if prediction_type == "original_sample" else prediction_type
