"""Drives a diffusers scheduler: gives alpha and sigma, converts x0 <-> eps <-> model output, and takes its steps.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Generator, Tensor

from ..guidance.strength import default_strength
from .support import (
    FRESH_NOISE,
    NATIVE_TYPES,
    NOISE_LEVEL,
    PUSH_EXPONENT,
    prediction_type_of,
    setting_of,
    supported_name,
)

__all__ = ["NoiseLevel", "ScheduledSampler"]

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

    def open_variance(self, measured: Mapping[str, Sequence[float]] | None = None) -> float:
        """Return the variance r_t^2 of a real channel of a clean image that the noisy one leaves open.

        Args:
            measured: "noise_to_signal", rising values of s^2 = (sigma / alpha)^2, and "error", the mean squared error
                of the prior's clean images there; interpolated in the logarithms, and proportional to s^2 below the
                first value. `None` for s^2 / (1 + s^2), the variance for images of unit variance: larger than that of
                a prior that knows more.
        """
        if measured is None:
            return self.sigma**2 / (self.alpha**2 + self.sigma**2)
        levels, errors = (np.log(measured[key]) for key in ("noise_to_signal", "error"))
        level = 2 * math.log(self.sigma / self.alpha) if self.alpha else math.inf  # noise alone
        return float(np.exp(np.interp(level, levels, errors) + min(level - levels[0], 0)))

    def denoise(self, model_output: Channels, noisy: Channels) -> tuple[Channels, Channels]:
        """Compute the clean image and noise (x0, eps) that a model output stands for (paper Eq. 4)."""
        if self.prediction_type == "epsilon":
            return (noisy - self.sigma * model_output) / self.alpha, model_output
        if self.prediction_type == "v_prediction":
            # Exact for alpha^2 + sigma^2 = 1, as in every schedule that such a model is trained with.
            return self.alpha * noisy - self.sigma * model_output, self.alpha * model_output + self.sigma * noisy
        if self.prediction_type == "flow_prediction":  # alpha = 1 - sigma, the model predicts eps - x0
            return noisy - self.sigma * model_output, noisy + self.alpha * model_output
        return model_output, (noisy - self.alpha * model_output) / self.sigma

    def noisy_image(self, x0: Channels, eps: Channels) -> Channels:
        """Compute the noisy image alpha x0 + sigma eps."""
        return self.alpha * x0 + self.sigma * eps

    def to_model_output(self, x0: Channels, eps: Channels) -> Channels:
        """Compute the model output for a clean image and noise: the inverse of `denoise` at their noisy image."""
        return {
            "epsilon": lambda: eps,
            "v_prediction": lambda: self.alpha * eps - self.sigma * x0,
            "flow_prediction": lambda: eps - x0,
            "sample": lambda: x0,
        }[self.prediction_type]()


class ScheduledSampler:
    """A scheduler set up for one run. Latents are in the scheduler's own space; images and noise in the model's.

    Use: `level = sampler.level(t)` and `sampler.model_input(latents, t)` before the network, `sampler.step` after it,
    in the order of `sampler.timesteps`, which may visit a noise level more than once (Heun, PNDM).

    Attributes:
        prediction_type: what the network predicts, one of `PREDICTION_TYPES`.
        network_timesteps: timestep at the input of the network, on its device, for each evaluation.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        num_inference_steps: int,
        eta: float,
        generators: list[Generator],
        device: torch.device,
        timesteps: Sequence[int] | None = None,
        noise_factors: Float[Tensor, " image"] | None = None,
    ) -> None:
        """Set the timesteps.

        Args:
            scheduler: one that `check_scheduler` accepts. It is stepped itself, unless its class does not know the
                prior's prediction type: then a copy that takes eps instead.
            num_inference_steps: number of steps, as in `scheduler.set_timesteps`.
            eta: share of fresh noise, for DDIM; others have their own or none.
            generators: generators of fresh noise, one for each image; equal ones give equal noise.
            device: device of the networks.
            timesteps: timesteps to visit, in place of `num_inference_steps` of the scheduler's own choice.
            noise_factors: factor, not 0, of the fresh noise of each image; `None` for 1.

        Raises:
            ValueError: by the scheduler, if it cannot make that many steps; or it would start without noise, as
                many do with a single step.
        """
        self.prediction_type = prediction_type_of(scheduler)
        self._name = supported_name(scheduler) or type(scheduler).__name__
        if self.prediction_type not in NATIVE_TYPES[self._name]:
            scheduler = type(scheduler).from_config(scheduler.config, prediction_type="epsilon")
        self._scheduler, self._generators = scheduler, generators
        self._factors = 1.0 if noise_factors is None else noise_factors[:, None, None, None]
        self._has_own_timesteps = timesteps is not None
        # Schedulers compute with the numbers of their steps on the host: on another device each would be waited for.
        try:
            if timesteps is None:
                scheduler.set_timesteps(num_inference_steps, device="cpu")
            else:
                scheduler.set_timesteps(timesteps=list(timesteps), device="cpu")
        except (ValueError, TypeError, LookupError, RuntimeError) as error:
            raise ValueError(
                f"`scheduler` {self._name} cannot make these steps with its settings: {error} Change them by "
                f"`pipe.scheduler = {self._name}.from_config(pipe.scheduler.config, ...)`."
            ) from error
        latest = scheduler.config.get("num_train_timesteps", float("inf"))
        if not 0 <= float(scheduler.timesteps.min()) <= float(scheduler.timesteps.max()) <= latest:
            raise ValueError(
                f"`scheduler` {self._name} visits timesteps outside of the {latest} of its training: check its "
                "`steps_offset` and `timestep_spacing`."
            )
        if float(scheduler.timesteps[0]) < 1:
            raise ValueError(
                f"`scheduler` {self._name} starts at timestep 0, where the prior expects an image without noise. Ask "
                "for 2 steps or more, or set timestep_spacing='trailing'."
            )
        self.network_timesteps = scheduler.timesteps.to(device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else it is looked up by the timestep, which need not be unique
        parameters = inspect.signature(scheduler.step).parameters
        self._step_arguments: dict[str, Any] = {"eta": eta} if self._name.startswith("DDIM") else {}
        if "generator" in parameters:
            self._step_arguments["generator"] = generators
        if self._name == "DPMSolverSDEScheduler":  # draws from a Brownian tree for each image, seeded alike for equals
            scheduler.noise_sampler, scheduler.noise_sampler_seed = None, [g.initial_seed() for g in generators]

    @property
    def timesteps(self) -> Tensor:
        """Timestep of each evaluation, on the host; `network_timesteps` are the same on the device."""
        return self._scheduler.timesteps

    @property
    def pushes_per_step(self) -> int:
        """Evaluations of a step whose push has an effect."""
        return 1 if self._name == "DPMSolverSDEScheduler" else self._scheduler.order

    @property
    def times(self) -> list[float]:
        """Timestep of each evaluation as share of the training time, 1 for pure noise."""
        return [float(t) / self._scheduler.config.num_train_timesteps for t in self._scheduler.timesteps]

    def shares(self, guidance_from: float = 1.0) -> list[float]:
        """Return the part of the training time that each step covers, the same for both evaluations of a step.

        Lengths in t, whatever the spacing, so that a sum over them does not depend on where and how many they are.
        Where the caller's timesteps start within the guided time, they share the whole push: nothing is pushed above.

        Args:
            guidance_from: share of the training time below which images are pushed, as in `SGRMRIPipeline`.
        """
        scheduler, times = self._scheduler, self.times
        starts = times[:: scheduler.order]  # a second evaluation goes with the first
        whole = min(starts[0] / guidance_from, 1.0) if self._has_own_timesteps else 1.0
        spans = [(start - max((t for t in starts if t < start), default=0.0)) / whole for start in starts]
        return [spans[k // scheduler.order] for k in range(len(times))]

    @property
    def fresh_noise(self) -> float:
        """Eta of the sampler: 1 if each step adds all of its noise afresh, 0 if it follows the predicted noise."""
        if self._name == "LTXEulerAncestralRFScheduler":
            return float(self._scheduler.config.eta)
        share = FRESH_NOISE.get(setting_of(self._scheduler, "algorithm_type"), FRESH_NOISE.get(self._name, 0.0))
        return float(self._step_arguments.get("eta", share))

    @property
    def push_exponent(self) -> float:
        """How the push of a step has to go with its share of the training time (`default_strength`)."""
        exponent = PUSH_EXPONENT.get(setting_of(self._scheduler, "algorithm_type"), PUSH_EXPONENT.get(self._name, 1.0))
        if "eta" not in self._step_arguments:
            return exponent
        return exponent + (PUSH_EXPONENT["DDPMScheduler"] - exponent) * self.fresh_noise**2

    def is_guided_from(self, guidance_from: float) -> list[bool]:
        """Return whether guidance has set in by each evaluation; `guidance_from` as in `SGRMRIPipeline`."""
        return [guidance_from >= 1 or time < guidance_from for time in self.times]

    def strengths(self, strength: float, guidance_from: float = 1.0) -> list[float]:
        """Compute the default strength b of each evaluation, from that of 100 steps of DDIM with eta = 1.

        Where a step has two evaluations that are both pushed, each counts as half a step.
        """
        parts = [share / self.pushes_per_step for share in self.shares(guidance_from)]
        kind = (self.fresh_noise, self.push_exponent, strength, guidance_from)
        return [default_strength(part, *kind) for part in parts]

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the latents to start with."""
        return float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def model_input(self, latents: Channels, timestep: Tensor) -> Channels:
        """Return the noisy images at the input of the network. To be called once before each `step`."""
        if hasattr(self._scheduler, "scale_model_input"):
            return self._scheduler.scale_model_input(latents, timestep)
        return latents

    def level(self, timestep: Tensor) -> NoiseLevel:
        """Return the noise level of the next evaluation, at `timestep`. To be called after `model_input`."""
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
        """Compute the latents after the step, from its (data-consistent) clean image and (pushed) noise."""
        # A step is linear in images and noise: f times a step of the image over f has f times the noise.
        scheduler, x0, eps = self._scheduler, x0 / self._factors, eps / self._factors
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
        told = NoiseLevel(level.alpha, level.sigma, prediction_type_of(scheduler))
        output = told.to_model_output(x0, eps)
        self._latents = scheduler.step(output, timestep, latents, **self._step_arguments).prev_sample
        return self._factors * self._latents

    def _sigma(self) -> Tensor:
        """Return sigma of the next evaluation, in the scheduler's own count."""
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
        """Move the start of a step to the new pair before its second evaluation, which repeats the step from there.

        The step then ends in alpha_next x0 + sigma_next eps, the form of Eq. 13. Its own start was made consistent by
        the first evaluation, and the difference between the two consistent images, which is no derivative, would be
        extrapolated to the end of the step: up to 9 dB of PSNR were lost, and a push had the opposite effect.
        DPMSolverSDE interpolates between them and keeps its start, whose noise the second evaluation does not know.
        """
        scheduler = self._scheduler
        sigma = float(scheduler.sigmas[(scheduler.step_index or 0) - 1])
        is_flow = NOISE_LEVEL[self._name] == "flow"
        scheduler.sample = ((1 - sigma) * x0 if is_flow else x0) + sigma * eps
        if hasattr(scheduler, "prev_derivative"):  # Heun averages the derivatives of both
            scheduler.prev_derivative = eps - x0 if is_flow else eps

    def _move_block_start(self, level: NoiseLevel, latents: Tensor) -> None:
        """Move the start of a block of steps, from which this solver computes each step, so that the step moves too.

        The start is moved so far that, multiplied by the factor that the step gives it, it moves as far as the image
        has been moved.
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
