"""Undersampled k-space enters, upper and lower bound reconstructions with their segmentations leave."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Complex, Float
from torch import Generator, Tensor, nn

from ..guidance.guiders import Guidance, SegmentationGuidance, check_guidance, images_to_push
from ..guidance.losses import guidance_weight, loss_gradient, tissue_volumes_mm3
from ..guidance.strength import PAPER_STRENGTH
from ..guidance.targets import TARGETS, resolve_classes
from ..hub.repository import RepositoryMixin
from ..mri.consistency import NOISE_AWARE_ITERATIONS, StepConsistency, data_residual, fully_consistent
from ..mri.noise import noise_residual, warn_of_residual
from ..mri.operators import SenseOperator, channels_to_complex, complex_to_channels
from ..schedulers.checks import check_scheduler, noise_fingerprint
from ..schedulers.sampler import NoiseLevel, ScheduledSampler
from .inputs import Measurement, check_measurement, check_settings, image_generators, slice_scale
from .networks import batches, check_complete, check_networks, class_names_of, predict, segment, size_multiple
from .output import SGRMRIPipelineOutput

__all__ = ["SGRMRIPipeline"]


class SGRMRIPipeline(RepositoryMixin, DiffusionPipeline):
    """Segmentation-guided reconstruction (SGR) of undersampled multi-coil MRI, slice by slice.

    A diffusion prior proposes an image, conjugate gradients pull it to the measured data, and in each step the
    gradient of a segmentation loss pushes one tissue to be as large (upper) or as small (lower) as the data allows.

    The noise of a slice comes from a stream of its own, seeded by one draw from `generator`, and is shared by all of
    its branches (class and target). Their difference is guidance alone, and no result depends on `batch_size`.

    Args:
        unet: the prior; 2 channels in (real, imaginary), 2 out, or 4 with learned sigma.
        scheduler: of diffusers, see `schedulers.support`; one that does not clip. DDIM is the reference.
        segmentation_model: any module from magnitude `(batch, 1, y, x)` to logits `(batch, n_classes + 1, y, x)`,
            channel 0 the background. It may name its classes by `config.class_names` or an attribute `class_names`,
            and the multiple that its input's sides must have by an attribute `size_multiple` (default: that of the
            prior). `None` serves target "none" only.
        scale_quantile: each slice is divided by this quantile of abs(A^H y) (paper Sec. 3.3), ...
        scale_correction: ... times this factor.
        cg_iterations: default of the call's. Few iterations fit less noise: to be chosen on validation scans.
        guidance_strength: b of paper Eq. 14, for 100 steps of DDIM with eta=1, of which a call's default is made.
            The paper's is for its image size; smaller images need more (`guidance.strength.strength_for_size`).
        guidance_from: timestep below which images are pushed, as share of the training time; 1 for all steps, as in
            the paper. Pushes at high noise are forgotten with the fresh noise of later steps, those in the middle cost
            image quality and precision (pipelines/SCHEDULERS.md, "When to push"): to be chosen on validation scans.
        consistency: default of the call's.
        denoising_variance: mean squared "error" of the prior at values of "noise_to_signal", as
            `NoiseLevel.open_variance` takes them, for consistency "noise_aware". To be measured on validation images.
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
        unet: UNet2DModel,
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
    ):
        """Register the components.

        Raises:
            ValueError: a network was loaded from files that lack some of its weights.
        """
        super().__init__()
        check_complete(unet=unet, segmentation_model=segmentation_model)
        self.register_modules(unet=unet, scheduler=scheduler, segmentation_model=segmentation_model)
        trained_with = trained_with or noise_fingerprint(scheduler)
        self.register_to_config(
            scale_quantile=scale_quantile,
            scale_correction=scale_correction,
            cg_iterations=cg_iterations,
            guidance_strength=guidance_strength,
            trained_with=trained_with,
            guidance_from=guidance_from,
            consistency=consistency,
            denoising_variance=denoising_variance,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """As in diffusers, but a scheduler set in place of another is refused here if it would give a wrong image.

        Raises:
            TypeError, ValueError: as `check_scheduler` says.
        """
        if name == "scheduler" and name in self.__dict__:
            check_scheduler(value, self.config.get("trained_with"))
        super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        """Device of the prior; the base class would ask the segmentation model, which need not know its own."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the prior; physics and losses are in single precision whatever it is."""
        return self.unet.dtype

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names that the segmentation model gives to its classes, label 1 first; `None` if it gives none."""
        return class_names_of(self.segmentation_model)

    def to(self, *args: Any, **kwargs: Any) -> "SGRMRIPipeline":
        """Move the networks as `DiffusionPipeline.to` does, including a segmentation model that is a plain module."""
        model = self.segmentation_model
        if model is None or (hasattr(model, "dtype") and hasattr(model, "device")):
            return super().to(*args, **kwargs)
        previous_dtype = self.dtype
        self.register_modules(segmentation_model=None)
        try:
            super().to(*args, **kwargs)
            model.to(self.device, None if self.dtype == previous_dtype else self.dtype)
        finally:
            self.register_modules(segmentation_model=model)
        return self

    def segment(self, images: Complex[Tensor, "batch y x"]) -> Float[Tensor, "batch out_class y x"]:
        """Logits `(batch, n_classes + 1, y, x)`, float32, of complex images `(batch, y, x)` of any size.

        The images must be scaled as for training: each slice divided by the 0.99 quantile of its magnitude.
        """
        return segment(self.segmentation_model, images, size_multiple(self.unet))

    def check_inputs(
        self,
        kspace: Tensor | np.ndarray,
        mask: Tensor | np.ndarray,
        coil_maps: Tensor | np.ndarray | None,
        target: str,
        classes: Sequence[str | int] | str | int | None,
        guidance: Sequence[Guidance],
        timesteps: Sequence[int] | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
        noise_std: float | Tensor | np.ndarray | None = None,
        **settings: Any,
    ) -> tuple[Measurement, tuple[str, ...], tuple[int, ...]]:
        """Refuse a call that cannot work, before the prior is called; arguments as in `__call__`.

        Returns:
            The measurement, on the device of the networks; the names of all classes, and the label numbers of those
            asked for (both empty without a segmentation model).

        Raises:
            TypeError, ValueError: naming the argument or component, what was expected, what came, and the way out.
        """
        n_steps = settings["num_inference_steps"]
        check_scheduler(self.scheduler, self.config.trained_with, bool(guidance), timesteps, n_steps)
        device = self._execution_device
        measurement = check_measurement(kspace, mask, coil_maps, device, noise_std)
        n_train_timesteps = self.scheduler.config.num_train_timesteps
        check_settings(slices=measurement.kspace.shape, n_train_timesteps=n_train_timesteps, target=target, **settings)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` must be among "
                f"{self._callback_tensor_inputs}, got {sorted(unknown)}."
            )
        if self.segmentation_model is None and (target != "none" or classes is not None):
            raise ValueError(
                f"`segmentation_model` is needed for target={target!r} and classes={classes!r}, but it is None. Add "
                "one by `pipe.register_modules(segmentation_model=...)`, or reconstruct with target='none'."
            )
        class_names = check_networks(self.unet, self.segmentation_model, tuple(measurement.kspace.shape[-2:]), device)
        check_guidance(guidance, self._guidance_tensor_inputs, class_names)
        return measurement, class_names, resolve_classes(classes, class_names) if class_names else ()

    # Not in inference mode even if the caller is: guided steps differentiate with respect to tensors made here.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        kspace: Tensor | np.ndarray,
        mask: Tensor | np.ndarray,
        target: str = "both",
        classes: Sequence[str | int] | str | int | None = None,
        coil_maps: Tensor | np.ndarray | None = None,
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
        voxel_size_mm: Sequence[float] | None = None,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        batch_size: int | None = None,
        guidance: Guidance | Sequence[Guidance] | None = None,
        timesteps: Sequence[int] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> SGRMRIPipelineOutput | tuple:
        """Reconstruct slices, each once for every class and target.

        Args:
            kspace: complex `(batch, coil, y, x)`, `(coil, y, x)` or `(y, x)`, any unit; zero where not measured.
            mask: `(y, x)` or `(batch, y, x)`, bool or 0/1, true where measured.
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
                checkpoint's `pipe.config.cg_iterations`, or for 30 with "noise_aware".
            consistency: how each step meets the data: "cg" by that number of iterations, as in the paper, or
                "noise_aware", weighing the measurement by its noise and the prior by the noise level of the step;
                `None` for the checkpoint's `pipe.config.consistency`.
            noise_std: standard deviation of the real part of the noise in the unit of `kspace`: a number (1 for
                prewhitened k-space), `(coil,)` or `(batch, coil)`; `None` to estimate it from the outermost k-space.
            calibration_width: largest side of the region that coil maps are estimated from; `None` for 24. It
                and the next two do nothing where `coil_maps` are given.
            kernel_width: side of the kernel that coil maps are estimated with; `None` to choose it by the size of the
                region, see `mri.coils.estimate_coil_maps`.
            crop: eigenvalue, 0 to 1, below which estimated coil maps are set to zero; `None` for 0.8, or for 0 where
                pixels with signal would be lost.
            final_consistency: last step: "replace" measured entries of coil k-space (as in the paper's experiments),
                "regularized", or "least_squares".
            num_samples: for target "none": independent reconstructions of each slice, along the target axis.
            voxel_size_mm: edge lengths (x, y, z) of a voxel in mm; `None` counts voxels.
            generator: of all noise; one, or a list of one for each slice. One draw is taken from it for each slice,
                the seed of that slice. `None`: a fresh seed.
            latents: x_T `(batch, 2, y, x)`, shared by the branches of a slice. With `eta=0` nothing else is random.
            batch_size: most images in one network call, to bound memory; does not change the result. `None`: no bound.
            guidance: what pushes the images, one or several; `None` for `SegmentationGuidance()`, which pushes each
                branch's class in its target's direction, and for nothing with target "none".
            timesteps: falling, in place of `num_inference_steps` of the scheduler's choice; for schedulers whose
                `set_timesteps` takes them.
            callback_on_step_end: `callback(pipe, step, timestep, tensors)` after each step; may return new `latents`.
            callback_on_step_end_tensor_inputs: names of the tensors `(batch * class * target, 2, y, x)` it is given,
                out of `pipe._callback_tensor_inputs`.
            output_type: "pt" for torch tensors or "np" for numpy arrays.
            return_dict: return an `SGRMRIPipelineOutput` rather than a tuple of its fields.

        Returns:
            Images, segmentations, volumes, residuals, names of classes and of targets, as `SGRMRIPipelineOutput` says.

        Raises:
            TypeError, ValueError: an argument or a component does not fit; before the prior is called.
        """
        # 1. Check the networks and all arguments
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if guidance is None:
            guidance = [SegmentationGuidance()] if target != "none" else []
        guidance = list(guidance) if isinstance(guidance, Sequence) else [guidance]
        consistency = self.config.consistency if consistency is None else consistency
        if cg_iterations is None:
            cg_iterations = NOISE_AWARE_ITERATIONS if consistency == "noise_aware" else self.config.cg_iterations
        measurement, class_names, class_numbers = self.check_inputs(
            kspace,
            mask,
            coil_maps,
            target,
            classes,
            guidance,
            timesteps,
            callback_on_step_end_tensor_inputs,
            noise_std,
            num_inference_steps=num_inference_steps,
            eta=eta,
            guidance_strength=guidance_strength,
            guidance_scale=guidance_scale,
            cg_iterations=cg_iterations,
            consistency=consistency,
            final_consistency=final_consistency,
            num_samples=num_samples,
            voxel_size_mm=voxel_size_mm,
            generator=generator,
            latents=latents,
            batch_size=batch_size,
            output_type=output_type,
        )

        # 2. The forward operator, and the problem in the scale of the prior
        device, kspace = self._execution_device, measurement.kspace
        n_slices, _, *size = kspace.shape
        operator = SenseOperator(
            measurement.known_or_estimated_maps(calibration_width, kernel_width, crop), measurement.mask
        )
        scale = slice_scale(operator.adjoint(kspace), self.config.scale_quantile, self.config.scale_correction)
        kspace, noise_std = (
            kspace / scale[:, None, None, None],
            measurement.known_or_estimated_noise() / scale[:, None],
        )
        step_consistency = StepConsistency(operator, kspace, noise_std, consistency)

        # 3. Branches: one image for each (slice, class, target), in this order along the batch axis
        targets = TARGETS[target] if num_samples == 1 else tuple(f"sample_{k}" for k in range(num_samples))
        guided_classes = (0,) if target == "none" else class_numbers
        branches = [(number, name == "upper") for number in guided_classes for name in targets]
        n_branches, n_images = len(branches), n_slices * len(branches)
        class_of = torch.tensor([number for number, _ in branches] * n_slices, device=device)
        is_upper = torch.tensor([is_upper for _, is_upper in branches] * n_slices, device=device)

        def slices_of(images: list[int]) -> list[int]:
            slices = [k // n_branches for k in images]
            return slices[:1] if slices[0] == slices[-1] else slices  # one slice: its maps are broadcast, not copied

        def guidance_inputs(active: list[Guidance], images: list[int], *tensors: Tensor) -> dict[str, Tensor]:
            named = dict(zip(self._guidance_tensor_inputs, tensors, strict=False))
            if any("logits" in g.tensor_inputs for g in active):
                named["logits"] = self.segment(channels_to_complex(named["x0_consistent"]))
            named["slice_number"] = torch.tensor([k // n_branches for k in images], device=device)
            return named | {"class_number": class_of[images], "is_upper": is_upper[images]}

        def make_consistent(x0: Tensor, images: list[int], level: NoiseLevel, iterations: int) -> Tensor:
            image, slices = channels_to_complex(x0), slices_of(images)
            return complex_to_channels(
                step_consistency(image, slices, level.open_variance(self.config.denoising_variance), iterations)
            )

        # 4. Timesteps and noise
        generators = image_generators(generator, n_slices, n_branches, num_samples, device)
        sampler = ScheduledSampler(self.scheduler, num_inference_steps, eta, generators, device, timesteps)
        if latents is None:
            latents = randn_tensor((n_images, 2, *size), generator=generators, device=device, dtype=torch.float32)
        else:
            latents = latents.to(device, torch.float32).repeat_interleave(n_branches, dim=0)
        latents = latents * sampler.init_noise_sigma
        defaults = sampler.strengths(self.config.guidance_strength, self.config.guidance_from)
        is_from = sampler.is_guided_from(self.config.guidance_from)
        if not any(is_from[:-1]) and any(g.config.start is None for g in guidance):
            raise ValueError(
                f"`num_inference_steps` must leave a step before the last below {self.config.guidance_from:g} of the "
                f"training time (`guidance_from`), or nothing is pushed; got {len(is_from)} evaluations. Ask for more "
                "steps, or guide all of them by guidance=SegmentationGuidance(start=0.0)."
            )

        # 5. Reverse steps. Only images with something to push get a graph. Which they are is known after the forward
        # pass: those of the step before are expected again, and the others looked at without one first.
        n_steps = len(sampler.timesteps)
        is_pushed = {k: target == "none" or bool(is_upper[k]) for k in range(n_images)}  # few slices have all classes
        for i, t in enumerate(self.progress_bar(sampler.timesteps)):
            noisy, level = sampler.model_input(latents, t), sampler.level(t)
            is_last = i == n_steps - 1
            iterations = 0 if is_last else cg_iterations  # the last step ends in full consistency instead
            default = defaults[i] if guidance_strength is None else guidance_strength
            own = {g: default if g.config.strength is None else g.config.strength for g in guidance}
            strengths = {g: guidance_scale * strength for g, strength in own.items()}
            active = [g for g in guidance if strengths[g] > 0 and not is_last and g.is_on(i, n_steps, is_from[i])]
            model_output, x0, eps, x0_consistent = (torch.empty_like(latents) for _ in range(4))
            push = torch.zeros_like(latents)

            # Branches of a slice are the same image until one is pushed: computed once.
            is_one = not active and torch.equal(noisy, noisy[::n_branches].repeat_interleave(n_branches, dim=0))
            every = n_branches if is_one else 1
            unguided = [k for k in range(0, n_images, every) if not (active and is_pushed[k])]
            for images in batches(unguided, batch_size):
                model_output[images] = predict(self.unet, noisy[images], t)
                x0[images], eps[images] = level.denoise(model_output[images], noisy[images])  # Eq. 4
                x0_consistent[images] = make_consistent(x0[images], images, level, iterations)  # Eq. 5
                if active:
                    tensors = (noisy[images], eps[images], x0[images], x0_consistent[images])
                    wants = images_to_push(active, guidance_inputs(active, images, *tensors))
                    is_pushed |= dict(zip(images, wants, strict=True))
            for whole in (model_output, x0, eps, x0_consistent) if is_one else ():
                whole.copy_(whole[::n_branches].repeat_interleave(n_branches, dim=0))

            for images in batches([k for k in range(n_images) if active and is_pushed[k]], batch_size):
                with torch.enable_grad():
                    start = noisy[images].requires_grad_()
                    output = predict(self.unet, start, t)
                    # The graph is cut behind the network, so that its backward pass can be entered in another scale.
                    leaves = [tensor.detach().requires_grad_() for tensor in (start, output)]
                    denoised, noise = level.denoise(leaves[1], leaves[0])  # Eq. 4
                    consistent = make_consistent(denoised, images, level, iterations)  # Eq. 5
                    tensors = guidance_inputs(active, images, leaves[0], noise, denoised, consistent)
                    wants = images_to_push(active, tensors)
                    for g in active if any(wants) else ():
                        score = g(self, i, t, {name: tensors[name] for name in g.tensor_inputs})["score"]  # Eq. 12
                        gradient = loss_gradient(score, start, output, *leaves, keep_graph=g is not active[-1])
                        gamma = guidance_weight(noise.detach(), gradient, strengths[g])  # Eq. 14
                        push[images] += gamma[:, None, None, None] * gradient
                parts = (output, denoised, noise, consistent)
                for whole, part in zip((model_output, x0, eps, x0_consistent), parts, strict=True):
                    whole[images] = part.detach()
                is_pushed |= dict(zip(images, wants, strict=True))

            # Eq. 13. The last step ends in the clean image: no noise is left behind, whatever the scheduler ends with.
            latents = x0 if is_last else sampler.step(level, t, x0_consistent, eps + push)
            if callback_on_step_end is not None:
                values = (latents, model_output, x0, x0_consistent, push)
                tensors = dict(zip(self._callback_tensor_inputs, values, strict=True))
                given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                latents = (callback_on_step_end(self, i, t, given) or {}).get("latents", latents)

        # 6. Full data consistency, segmentation and scores, in the unit of the k-space again
        parts, residuals, labels = [], [], []
        for images in batches(list(range(n_images)), batch_size):
            problem, measured = operator[slices_of(images)], kspace[slices_of(images)]
            image = fully_consistent(problem, channels_to_complex(latents[images]), measured, final_consistency)
            parts.append(image)
            residuals.append(data_residual(problem, image, measured))
            if self.segmentation_model is not None:
                labels.append(self.segment(image).argmax(dim=1).to(torch.uint8))
        shape = (n_slices, len(guided_classes), len(targets))
        image = torch.cat(parts).reshape(*shape, *size) * scale[:, None, None, None, None]
        segmentation = torch.cat(labels).reshape(*shape, *size) if labels else None
        tissues = [class_numbers] if target == "none" else [(number,) for number in class_numbers]
        volume = tissue_volumes_mm3(segmentation, tissues, voxel_size_mm) if labels else None
        residual = torch.cat(residuals).reshape(shape)
        residual_of_noise = noise_residual(kspace, measurement.mask, noise_std)
        warn_of_residual(residual, residual_of_noise)
        names = tuple(class_names[number - 1] for number in class_numbers)
        if target == "none":
            names = ("all" if len(names) == len(class_names) else "+".join(names),)
        self.maybe_free_model_hooks()
        fields = [image, segmentation, volume, residual, residual_of_noise]
        if output_type == "np":
            fields = [None if field is None else field.cpu().numpy() for field in fields]
        return SGRMRIPipelineOutput(*fields, names, targets) if return_dict else (*fields, names, targets)
