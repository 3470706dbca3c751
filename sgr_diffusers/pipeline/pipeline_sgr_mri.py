"""Reconstructs undersampled k-space into upper and lower bound images, with their segmentations."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from jaxtyping import Complex, Float
from torch import Generator, Tensor, nn

from ..bounds import tissue_masks, volume_mm3
from ..guidance.guiders import Guidance, SegmentationGuidance, compare_with_goals
from ..guidance.plan import scale_guidance
from ..guidance.strength import PAPER_STRENGTH
from ..guidance.targets import TARGETS
from ..hub.model_index import check_settings
from ..hub.registration import register
from ..hub.repository import RepositoryMixin
from ..mri.noise import noise_residual, warn_of_residual
from ..schedulers.checks import noise_fingerprint
from .branches import Branches
from .calibrated import calibrated_call, copy_calibration
from .components import ComponentsMixin
from .denoise import Denoiser, Step
from .inputs import Slices, latents_of_callback
from .networks import check_complete, segment, size_multiple
from .output import SGRMRIPipelineOutput
from .preparation import PreparationMixin, image_generators
from .settings import CallSettings
from .symmetry import Symmetry

__all__ = ["SGRMRIPipeline"]


@register
class SGRMRIPipeline(PreparationMixin, ComponentsMixin, RepositoryMixin, DiffusionPipeline):
    """Segmentation-guided reconstruction (SGR) of undersampled multi-coil MRI, slice by slice.

    A diffusion prior proposes an image, conjugate gradients pull it to the measured data, and in each step the
    gradient of a segmentation loss pushes one tissue to be as large (upper) or as small (lower) as the data allows.

    The noise of a slice comes from a stream of its own, seeded by one draw from `generator`, and is shared by all of
    its branches (class and target). Their difference is guidance alone, and no result depends on `batch_size`.

    Args:
        unet: the prior; 2 channels in (real, imaginary), 2 out, or 4 with learned sigma. Priors of other kinds are
            adapted by `models.adapted_priors`.
        scheduler: scheduler of diffusers that does not clip, see `schedulers.support`. DDIM is the reference.
        segmentation_model: any module from magnitude `(batch, 1, y, x)` to logits `(batch, n_classes + 1, y, x)`,
            channel 0 the background. It may name its classes by `config.class_names` or an attribute `class_names`,
            and the multiple that its input's sides must have by an attribute `size_multiple` (default: that of the
            prior). `None` serves target "none" only.
        scale_quantile: quantile of abs(A^H y) that each slice is divided by (paper Sec. 3.3).
        scale_correction: factor that this divisor is multiplied by.
        cg_iterations: default of the call's `cg_iterations`. Few iterations fit less noise: to be chosen on validation
            scans.
        guidance_strength: b of paper Eq. 14, for 100 steps of DDIM with eta=1, of which a call's default is made.
            The paper's is for its image size; smaller images need more (`guidance.strength.strength_for_size`).
        guidance_from: timestep below which images are pushed, as share of the training time; 1 for all steps, as in
            the paper. Pushes at high noise are forgotten with the fresh noise of later steps, those in the middle cost
            image quality and precision (docs/how-to/schedulers.md, "When to push"): to be chosen on validation scans.
        consistency: default of the call's `consistency`.
        denoising_variance: mean squared "error" of the prior at values of "noise_to_signal", as
            `NoiseLevel.open_variance` takes them, for consistency "noise_aware". To be measured on validation images.
        is_equivariant: flag for a prior that was trained on images in all orientations and phases. Each step then
            shows it the images turned, mirrored and with another phase, and turns its output back, so that its errors
            average out over the steps (Terris et al., "Equivariant plug-and-play image reconstruction", CVPR 2024).
        noise_of_mean: factor of all noise that is drawn with `combine="mean"`, above 0 and up to 1. For a Gaussian
            prior the mean does not depend on it. For others, the mean of samples with less noise can have less error:
            to be chosen on validation scans.
        timestep_of_mean: factor of the timestep that the prior is given with `combine="mean"`, above 0 and up to 1. A
            prior whose clean images are too smooth leaves more detail where it is told of less noise: to be chosen on
            validation scans. Unless it is 1, the prior must take timesteps between whole numbers.
        deviation_of_mean: deviation of the samples that these two leave, as share of that of samples with all of the
            noise, above 0 and up to 1; it is divided by this for the `standard_deviation` of a call. For a Gaussian
            prior it is `noise_of_mean`: to be measured on validation scans.
        trained_with: `noise_fingerprint` that schedulers set later must fit; `None` takes it from this one.
    """

    # The segmentation model stays on the device: it runs between the forward and the backward pass of the prior, whose
    # weights must not leave in between.
    model_cpu_offload_seq = "unet"
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["segmentation_model"]
    _optional_components: ClassVar[list[str]] = ["segmentation_model"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "model_output", "x0", "x0_consistent", "push"]
    # Of a `Guidance`, for the images of one batch: the noisy image at the model's input, the noise and the clean image
    # that the prior predicts, the data-consistent one, all (image, 2, y, x); logits of the latter; label and direction
    # of the image's branch (0 and false for target "none") and number of its slice, (image,).
    _guidance_tensor_inputs: ClassVar[list[str]] = [
        "noisy", "eps", "x0", "x0_consistent", "logits", "class_number", "is_upper", "slice_number"
    ]  # fmt: skip

    def __init__(
        self,
        unet: UNet2DModel | nn.Module,
        scheduler: SchedulerMixin,
        segmentation_model: nn.Module | None = None,
        scale_quantile: float = 0.99,
        scale_correction: float = 1.0,
        cg_iterations: int = 5,
        guidance_strength: float = PAPER_STRENGTH,
        trained_with: dict[str, Any] | None = None,
        guidance_from: float = 1.0,
        consistency: str = "cg",
        denoising_variance: dict[str, list[float]] | None = None,
        is_equivariant: bool = False,
        noise_of_mean: float = 1.0,
        timestep_of_mean: float = 1.0,
        deviation_of_mean: float = 1.0,
    ):
        """Register the components.

        Raises:
            TypeError: a component is of a wrong type.
            ValueError: a setting is out of range, or a network was loaded from files that lack some of its weights.
        """
        super().__init__()
        check_complete(unet=unet, segmentation_model=segmentation_model)
        settings = {
            "scale_quantile": scale_quantile,
            "scale_correction": scale_correction,
            "cg_iterations": cg_iterations,
            "guidance_strength": guidance_strength,
            "trained_with": trained_with,
            "guidance_from": guidance_from,
            "consistency": consistency,
            "denoising_variance": denoising_variance,
            "is_equivariant": is_equivariant,
            "noise_of_mean": noise_of_mean,
            "timestep_of_mean": timestep_of_mean,
            "deviation_of_mean": deviation_of_mean,
        }
        check_settings(settings)
        self.register_modules(unet=unet, scheduler=scheduler, segmentation_model=segmentation_model)
        if trained_with is None and scheduler is not None:
            settings["trained_with"] = noise_fingerprint(scheduler)
        self.register_to_config(**settings)

    def save_config(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the configuration, and the calibration that the checkpoint carries."""
        super().save_config(save_directory, **kwargs)
        copy_calibration(self.name_or_path, save_directory)

    def segment(self, images: Complex[Tensor, "batch y x"]) -> Float[Tensor, "batch out_class y x"]:
        """Return the logits `(batch, n_classes + 1, y, x)`, float32, of complex images `(batch, y, x)` of any size.

        The images must be scaled as for training: each slice divided by the 0.99 quantile of its magnitude.
        """
        return segment(self.segmentation_model, images, size_multiple(self.unet))

    # Not in inference mode even if the caller is: guided steps differentiate with respect to tensors made here.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        kspace: Slices,
        mask: Slices,
        target: str = "both",
        classes: Sequence[str | int] | str | int | None = None,
        coil_maps: Slices | None = None,
        num_inference_steps: int = 100,
        eta: float = 1.0,
        guidance_strength: float | None = None,
        guidance_scale: float = 1.0,
        cg_iterations: int | None = None,
        consistency: str | None = None,
        noise_std: float | Tensor | np.ndarray | None = None,
        calibration_width: int | None = None,
        kernel_width: int | None = None,
        crop: float | None = None,
        final_consistency: str = "replace",
        num_samples: int = 1,
        combine: str | None = None,
        voxel_size_mm: Sequence[float] | None = None,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        batch_size: int | None = None,
        guidance: Guidance | Sequence[Guidance] | None = None,
        coverage: float | None = None,
        timesteps: Sequence[int] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> SGRMRIPipelineOutput | tuple:
        """Reconstruct slices, each once for every class and target.

        `kspace`, `mask` and `coil_maps` are tensors or arrays, or lists of one for each slice.

        Args:
            kspace: k-space, complex `(batch, coil, y, x)`, `(coil, y, x)` or `(y, x)`, any unit; zero if not measured.
            mask: sampling mask `(y, x)` or `(batch, y, x)`, bool or 0/1, true where measured.
            target: "upper", "lower", "both" (in the order lower, upper), or "none" for plain reconstruction.
            classes: names or label numbers (from 1) of the classes to bound; `None` for all. For target "none": those
                whose volume is reported.
            coil_maps: complex `(batch, coil, y, x)`, or `(coil, y, x)` for all slices. `None`: ones for a single coil,
                else estimated from the calibration region.
            num_inference_steps: reverse steps, 100 in the paper. Some schedulers evaluate the prior twice a step.
            eta: share of fresh noise in each step, from 0 (deterministic) to 1 (the authors' runs); for DDIM only.
            guidance_strength: b of paper Eq. 14, per step; `None` for `default_strength`, which leaves the bounds
                as wide as by the checkpoint's `pipe.config.guidance_strength` in each of 100 steps of DDIM with eta=1,
                whatever the scheduler and its steps.
            guidance_scale: factor on every strength, so also on the default one, whatever the scheduler.
            cg_iterations: most conjugate gradient iterations in each step (paper Eq. 5), 0 for none; `None` for the
                checkpoint's `pipe.config.cg_iterations`, or for 100 with "noise_aware".
            consistency: method by which each step meets the data: "cg" by that number of iterations, as in the
                paper, or "noise_aware", weighing the measurement by its noise and the prior by the noise level of the
                step; `None` for the checkpoint's `pipe.config.consistency`.
            noise_std: standard deviation of the real part of the noise in the unit of `kspace`: a number (1 for
                prewhitened k-space), `(coil,)` or `(batch, coil)`; `None` to estimate it from the outermost k-space.
            calibration_width: largest side of the region that coil maps are estimated from; `None` for 24. This
                and the next two are for calls without `coil_maps`.
            kernel_width: side of the kernel that coil maps are estimated with; `None` to choose it by the size of the
                region, see `mri.coils.estimate_coil_maps`.
            crop: eigenvalue, 0 to 1, below which estimated coil maps are set to zero; `None` for 0.8, or for 0 where
                pixels with signal would be lost.
            final_consistency: method of the last step: "replace" measured entries of coil k-space (as in the paper's
                experiments), "regularized", or "least_squares".
            num_samples: number of independent reconstructions of each slice, along the target axis, for target "none".
            combine: "mean" for the mean of the samples and their standard deviation in place of the samples. They come
                in pairs whose noise has opposite signs (antithetic variates), so that the mean of two is about as
                close to the posterior mean as that of many independent ones. `None` for all samples.
            voxel_size_mm: edge lengths (x, y, z) of a voxel in mm; `None` counts voxels.
            generator: generator of all noise; one, or a list of one for each slice. One draw is taken from it for each
                slice, the seed of that slice. `None`: a fresh seed.
            latents: x_T `(batch, 2, y, x)`, shared by the branches of a slice. With `eta=0` nothing else is random.
            batch_size: most images in one network call, to bound memory; does not change the result. `None`: no bound.
                A CPU gets fewer where fewer take less time.
            guidance: guidance that pushes the images, one or several; `None` for `SegmentationGuidance()`, which
                pushes each branch's class in its target's direction, and for nothing with target "none".
            coverage: probability, for example 0.9, with which an interval shall hold the volume of a class in all
                slices together. The images are then those at the ends of this interval, for target "both"; only
                where the checkpoint carries a calibration for the mask and all settings. Without `timesteps` and with
                the default `num_inference_steps`, steps and scheduler are those of the calibration.
            timesteps: falling timesteps, in place of `num_inference_steps` of the scheduler's choice; for schedulers
                whose `set_timesteps` takes them.
            callback_on_step_end: `callback(pipe, step, timestep, tensors)` after each step; may return new `latents`,
                set `pipe._guidance_scale`, or end the call with the images of this step by `pipe._interrupt = True`.
            callback_on_step_end_tensor_inputs: names of the tensors `(batch * class * target, 2, y, x)` it is given,
                out of `pipe._callback_tensor_inputs`; `None` for none.
            output_type: "pt" for torch tensors or "np" for numpy arrays.
            return_dict: flag to return an `SGRMRIPipelineOutput` rather than a tuple of its fields.

        Returns:
            Images, segmentations, volumes, residuals and more, as `SGRMRIPipelineOutput` says.

        Raises:
            TypeError, ValueError: an argument or a component does not fit; before the prior is called.
        """
        if coverage is not None:
            arguments = {name: value for name, value in locals().items() if name not in ("self", "coverage")}
            return calibrated_call(self, coverage, **arguments)

        # 1. Check the settings, all other arguments and the networks
        settings = CallSettings(
            target=target,
            num_inference_steps=num_inference_steps,
            eta=eta,
            guidance_strength=guidance_strength,
            guidance_scale=guidance_scale,
            cg_iterations=cg_iterations,
            consistency=consistency,
            noise_std=noise_std,
            calibration_width=calibration_width,
            kernel_width=kernel_width,
            crop=crop,
            final_consistency=final_consistency,
            num_samples=num_samples,
            combine=combine,
            batch_size=batch_size,
        ).with_defaults(self.config)
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if guidance is None:
            guidance = [SegmentationGuidance()] if target != "none" else []
        guidance = list(guidance) if isinstance(guidance, Sequence) else [guidance]
        data, sampling, output, callback = (
            (kspace, mask, coil_maps, noise_std),
            (generator, latents),
            (voxel_size_mm, output_type),
            (callback_on_step_end, callback_on_step_end_tensor_inputs),
        )
        measurement, class_names, class_numbers = self.check_inputs(
            *data, settings, classes, guidance, timesteps, *sampling, *output, *callback
        )
        self._guidance_scale, self._interrupt = guidance_scale, False

        # 2. Forward operator, and measurement in the scale of the prior
        coil_maps = measurement.known_or_estimated_maps(settings)
        assert settings.consistency is not None and settings.cg_iterations is not None  # by `with_defaults`
        problem = self.prepare_problem(measurement, coil_maps, settings.consistency)
        n_slices, _, *size = problem.kspace.shape  # slice, coil, y, x

        # 3. Branches: one image for each slice, class and target, in this order along the batch axis
        targets = TARGETS[target] if num_samples == 1 else tuple(f"sample_{k}" for k in range(num_samples))
        branches = Branches(n_slices, (0,) if target == "none" else class_numbers, targets)

        # 4. Timesteps, plan of guidance and noise
        in_pairs = combine == "mean"
        generators = image_generators(
            generator, n_slices, branches.per_slice, num_samples, self._execution_device, in_pairs
        )
        noise_factors = None
        if in_pairs:
            noise_factors = self.config.noise_of_mean * branches.alternating_signs(self._execution_device)
        sampler = self.prepare_sampler(settings, generators, timesteps, noise_factors)
        plan = self.prepare_guidance(guidance, sampler, guidance_strength)
        latents = self.prepare_latents(branches, size, generators, sampler.init_noise_sigma, latents)  # image, 2, y, x
        latents = latents if noise_factors is None else noise_factors[:, None, None, None] * latents

        # 5. Reverse steps; the last ends in the clean image, so that no noise is left whatever the scheduler ends with
        denoiser = Denoiser(self.unet, self.segmentation_model, problem, branches, batch_size)
        self._num_timesteps = len(sampler.timesteps)
        last = self._num_timesteps - 1
        for i, t in enumerate(self.progress_bar(sampler.timesteps)):
            noisy, level = sampler.model_input(latents, t), sampler.level(t)
            pushing = scale_guidance(plan[i], self._guidance_scale)
            n_iterations = 0 if i == last else settings.cg_iterations
            symmetry = Symmetry.of_step(i) if self.config.is_equivariant else Symmetry()
            timestep = sampler.network_timesteps[i]
            if in_pairs and self.config.timestep_of_mean != 1:
                timestep = self.config.timestep_of_mean * timestep
            estimate = denoiser(noisy, Step(timestep, level, n_iterations, pushing, symmetry))
            latents = estimate.x0
            if i < last:
                latents = sampler.step(level, t, estimate.x0_consistent, estimate.eps + estimate.push)  # Eq. 13
            if callback_on_step_end is not None:
                tensors = {"latents": latents, **vars(estimate)}
                given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs or ()}
                before, version = latents, latents._version
                latents = latents_of_callback(callback_on_step_end(self, i, t, given), latents)
                denoiser.are_equal &= latents is before and latents._version == version
            if self.interrupt and i < last:
                latents = estimate.x0
                break
        denoiser.check_networks()

        # 6. Full data consistency and segmentation, of the mean where it is asked for
        deviation = None
        if combine == "mean":
            of_samples = Denoiser(self.unet, None, problem, branches, batch_size)  # only the mean is segmented
            samples = of_samples.finish(latents, final_consistency)[0]  # slice, 1, sample, y, x
            deviation = samples.std(dim=2, correction=0) / self.config.deviation_of_mean  # slice, 1, y, x
            noise = problem.finishing_noise(final_consistency, [generators[k] for k in branches.first_of_slices])
            deviation = (deviation**2 + noise[:, None]).sqrt() * problem.scale[:, None, None, None]
            latents, targets = latents.unflatten(0, (n_slices, num_samples)).mean(dim=1), ("mean",)
            denoiser = Denoiser(
                self.unet, self.segmentation_model, problem, Branches(n_slices, (0,), targets), batch_size
            )
        images, residual, segmentations = denoiser.finish(latents, final_consistency)  # slice, class, target, (y, x)
        residual_of_noise = noise_residual(problem.kspace, measurement.mask, problem.noise_std)
        warn_of_residual(residual, residual_of_noise)

        # 7. Unit of the k-space, volumes and names
        images = images * problem.scale[:, None, None, None, None]
        volumes = None
        if segmentations is not None:
            tissues = tissue_masks(segmentations, class_numbers)
            tissues = tissues.any(dim=1, keepdim=True) if target == "none" else tissues
            volumes = volume_mm3(tissues, voxel_size_mm)  # slice, class, target
        names = tuple(class_names[number - 1] for number in class_numbers)
        if target == "none":
            names = ("all" if len(names) == len(class_names) else "+".join(names),)
        self.maybe_free_model_hooks()
        voxel_mm3 = math.prod((1.0, 1.0, 1.0) if voxel_size_mm is None else voxel_size_mm)
        goals, attained = compare_with_goals(guidance, volumes, class_numbers, targets, voxel_mm3)
        output = SGRMRIPipelineOutput(
            images=images,
            segmentations=segmentations,
            volumes_mm3=volumes,
            data_residual=residual,
            noise_residual=residual_of_noise,
            classes=names,
            targets=targets,
            zero_filled=problem.zero_filled,
            scale=problem.scale,
            standard_deviation=deviation,
            target_volumes_mm3=goals,
            attained=attained,
        )
        if output_type == "np":
            output = output.numpy()
        return output if return_dict else output.all_fields()
