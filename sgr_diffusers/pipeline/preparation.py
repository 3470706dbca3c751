"""Prepares a call of the pipeline: checks its inputs, and sets up the problem, sampler, guidance and noise."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Complex, Float
from torch import Generator, Tensor

from ..bounds import check_voxel_size
from ..guidance.guiders import Guidance, check_guidance
from ..guidance.plan import check_windows, guidance_plan
from ..guidance.targets import resolve_classes
from ..schedulers.checks import check_scheduler
from ..schedulers.sampler import ScheduledSampler
from .branches import Branches
from .inputs import OUTPUT_TYPES, Measurement, Slices, check_callback, check_measurement, check_sampling_inputs
from .networks import check_components, check_networks
from .problem import Problem
from .settings import CallSettings, one_of, whole_number

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base
else:  # diffusers takes every pipeline class of a repository's code for the pipeline
    _Base = object

__all__ = ["PreparationMixin", "image_generators"]


class PreparationMixin(_Base):
    """Steps of a call before the first network evaluation; each can be called by itself."""

    def check_inputs(
        self,
        kspace: Slices,
        mask: Slices,
        coil_maps: Slices | None,
        noise_std: float | Tensor | np.ndarray | None,
        settings: CallSettings,
        classes: Sequence[str | int] | str | int | None,
        guidance: Sequence[Guidance],
        timesteps: Sequence[int] | None,
        generator: Generator | list[Generator] | None,
        latents: Tensor | None,
        voxel_size_mm: Sequence[float] | None,
        output_type: str,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None,
    ) -> tuple[Measurement, tuple[str, ...], tuple[int, ...]]:
        """Refuse a call that cannot work, before the prior is called; arguments as in `__call__`.

        Returns:
            The measurement, on the device of the networks; the names of all classes, and the label numbers of those
            asked for (both empty without a segmentation model).

        Raises:
            TypeError, ValueError: naming the argument or component, what was expected, what came, and the way out.
        """
        check_components(self.unet, self.scheduler)
        device, n_steps = self._execution_device, settings.num_inference_steps
        check_scheduler(self.scheduler, self.config.trained_with, bool(guidance), timesteps, n_steps)
        measurement = check_measurement(kspace, mask, coil_maps, device, noise_std)
        n_train_timesteps = self.scheduler.config.num_train_timesteps
        whole_number(1, n_train_timesteps).check("num_inference_steps", n_steps)
        check_sampling_inputs(tuple(measurement.kspace.shape), settings, generator, latents)
        check_voxel_size(voxel_size_mm)
        one_of(OUTPUT_TYPES).check("output_type", output_type)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        if self.segmentation_model is None and (settings.target != "none" or classes is not None):
            raise ValueError(
                f"`segmentation_model` is needed for target={settings.target!r} and classes={classes!r}, but it is "
                "None. Add one by `pipe.register_modules(segmentation_model=...)`, or reconstruct with target='none'."
            )
        size, needs_gradient = tuple(measurement.kspace.shape[-2:]), bool(guidance)
        class_names = check_networks(self.unet, self.segmentation_model, size, device, needs_gradient)
        voxel_mm3 = math.prod((1.0, 1.0, 1.0) if voxel_size_mm is None else voxel_size_mm)
        check_guidance(guidance, self._guidance_tensor_inputs, class_names, voxel_mm3)
        if settings.target == "none" and any(entry.has_goals for entry in guidance):
            raise ValueError(
                "`target_volume_mm3` needs a class to reach it, got target='none'. Call with target='upper' and "
                "`classes`; the direction does not matter."
            )
        return measurement, class_names, resolve_classes(classes, class_names) if class_names else ()

    def prepare_problem(
        self, measurement: Measurement, coil_maps: Complex[Tensor, "batch coil y x"], consistency: str
    ) -> Problem:
        """Set up the forward operator, and bring the measurement to the scale of the prior (paper Sec. 3.3).

        Args:
            measurement: measured k-space, sampling mask and noise of all slices.
            coil_maps: given or estimated coil maps.
            consistency: method by which each step meets the data, as in `__call__`.
        """
        scale = self.config.scale_quantile, self.config.scale_correction
        return Problem.from_measurement(measurement, coil_maps, consistency, *scale, self.config.denoising_variance)

    def prepare_sampler(
        self,
        settings: CallSettings,
        generators: list[Generator],
        timesteps: Sequence[int] | None = None,
        noise_factors: Float[Tensor, " image"] | None = None,
    ) -> ScheduledSampler:
        """Set the timesteps of the scheduler.

        Args:
            settings: settings of the call.
            generators: generator of the noise of each image.
            timesteps: falling timesteps to visit; `None` for the scheduler's choice.
            noise_factors: factor of the fresh noise of each image; `None` for 1.
        """
        steps = settings.num_inference_steps, settings.eta
        return ScheduledSampler(self.scheduler, *steps, generators, self._execution_device, timesteps, noise_factors)

    def prepare_guidance(
        self, guidance: Sequence[Guidance], sampler: ScheduledSampler, strength: float | None
    ) -> list[list[tuple[Guidance, float]]]:
        """Plan which guidance pushes in which network evaluation, and how much before `guidance_scale`.

        Args:
            guidance: guidance of the call.
            sampler: sampler from `prepare_sampler`.
            strength: `guidance_strength` of the call.

        Raises:
            ValueError: there are too few steps for anything to be pushed.
        """
        has_set_in = sampler.is_guided_from(self.config.guidance_from)
        check_windows(guidance, has_set_in, self.config.guidance_from)
        defaults = sampler.strengths(self.config.guidance_strength, self.config.guidance_from)
        return guidance_plan(guidance, defaults, has_set_in, strength)

    def prepare_latents(
        self,
        branches: Branches,
        size: Sequence[int],
        generators: list[Generator],
        init_noise_sigma: float,
        latents: Tensor | None = None,
    ) -> Float[Tensor, "image 2 y x"]:
        """Draw the noise to start with, or repeat the given one for the branches of each slice.

        Args:
            branches: slice, class and target of each image.
            size: size of the images, (y, x).
            generators: generator of the noise of each image.
            init_noise_sigma: standard deviation of the noise that the scheduler starts with.
            latents: noise of each slice of standard deviation 1, `(slice, 2, y, x)`; `None` to draw it.
        """
        device = self._execution_device
        if latents is None:
            latents = randn_tensor((len(branches), 2, *size), generator=generators, device=device, dtype=torch.float32)
        else:
            latents = branches.expand(latents.to(device, torch.float32))
        return latents * init_noise_sigma


def image_generators(
    generator: torch.Generator | list[torch.Generator] | None,
    n_slices: int,
    n_branches: int,
    n_samples: int,
    device: torch.device,
    in_pairs: bool = False,
) -> list[torch.Generator]:
    """Make a generator for each image, in the order (slice, branch or sample).

    A slice takes one draw from the caller's generator, its seed: no slice's noise depends on another's. The branches
    of a slice start from that same seed and so get equal noise; samples start from seeds drawn from it, and two
    samples in a row share one where they are to be `in_pairs`.
    """
    if generator is None:
        generator = torch.Generator(device)
        generator.seed()
    parents = generator if isinstance(generator, list) else [generator] * n_slices
    generators = []
    for parent in parents:
        seed = _draw_seed(parent)
        stream = torch.Generator(parent.device).manual_seed(seed)
        seeds = [_draw_seed(stream) for _ in range(n_samples)] if n_samples > 1 else [seed] * n_branches
        if in_pairs:
            seeds = [seeds[k // 2] for k in range(n_samples)]
        generators += [torch.Generator(parent.device).manual_seed(seed) for seed in seeds]
    return generators


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device))
