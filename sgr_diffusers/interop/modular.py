"""The steps of the pipeline as blocks of a modular pipeline of diffusers.

The blocks call the functions that `SGRMRIPipeline.__call__` calls, in the same order, so that the result is the same
to the last bit. Each can be replaced or left out; samples and calibrated intervals are the pipeline's alone.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin, ModularPipeline, SchedulerMixin, UNet2DModel
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam

from ..bounds import tissue_masks, volume_mm3
from ..guidance.guiders import SegmentationGuidance
from ..guidance.plan import scale_guidance
from ..guidance.targets import TARGETS
from ..mri.noise import noise_residual, warn_of_residual
from ..pipeline.branches import Branches
from ..pipeline.denoise import Denoiser, Step
from ..pipeline.networks import batches
from ..pipeline.output import SGRMRIPipelineOutput
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..pipeline.preparation import image_generators
from ..pipeline.settings import CallSettings
from ..pipeline.symmetry import Symmetry

__all__ = ["SGRBlocks", "save_modular"]

_COMPONENTS = {"unet": UNet2DModel, "scheduler": SchedulerMixin, "segmentation_model": ModelMixin}
_PARAMETERS = inspect.signature(SGRMRIPipeline.__init__).parameters
_CONFIG = {name: entry.default for name, entry in _PARAMETERS.items() if name not in ("self", *_COMPONENTS)}
_SETTINGS = {
    entry.name: entry.default for entry in fields(CallSettings) if entry.name not in ("num_samples", "combine")
}
_DATA = ("classes", "coil_maps", "voxel_size_mm", "guidance", "generator", "latents", "timesteps")


class _Block(ModularPipelineBlocks):
    """A block; what it reads has a default, or none where it is required."""

    model_name = "sgr-mri"
    reads: ClassVar[dict[str, Any]] = {}
    writes: ClassVar[Sequence[str]] = ()

    @property
    def description(self) -> str:
        """What the block does."""
        return inspect.getdoc(type(self)) or ""

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Prior, scheduler and segmentation model."""
        return [ComponentSpec(name, kind) for name, kind in _COMPONENTS.items()]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """Settings of the checkpoint."""
        return [ConfigSpec(name, default) for name, default in _CONFIG.items()]

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments of the pipeline's call, and what earlier blocks leave."""
        return [InputParam(name, default=value, required=value is ...) for name, value in self.reads.items()]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What later blocks read."""
        return [OutputParam(name) for name in self.writes]

    def __call__(self, components: ModularPipeline, state: Any) -> tuple[ModularPipeline, Any]:
        """Run the block on the state."""
        block = self.get_block_state(state)
        config = {name: components.config[name] for name in _CONFIG}
        networks: dict[str, Any] = {name: getattr(components, name, None) for name in _COMPONENTS}
        self.run(SGRMRIPipeline(**networks, **config), block)
        self.set_block_state(state, block)
        return components, state

    def run(self, pipe: SGRMRIPipeline, block: Any) -> None:
        """Read from and write to the attributes of `block`."""
        raise NotImplementedError


class MapsStep(_Block):
    """Check all arguments and networks, and estimate coil maps where none are given."""

    reads: ClassVar[dict[str, Any]] = {"kspace": ..., "mask": ..., **dict.fromkeys(_DATA), **_SETTINGS}
    writes = ("measurement", "settings", "class_names", "class_numbers", "guidance", "coil_maps")

    def run(self, pipe: SGRMRIPipeline, block: Any) -> None:
        """Step 1 of the call, and the maps of step 2."""
        given = {name: getattr(block, name) for name in _SETTINGS}
        block.settings = CallSettings(**given).with_defaults(pipe.config)
        guidance = block.guidance
        if guidance is None:
            guidance = [SegmentationGuidance()] if block.target != "none" else []
        block.guidance = list(guidance) if isinstance(guidance, Sequence) else [guidance]
        data = block.kspace, block.mask, block.coil_maps, block.noise_std
        rest: list[Any] = [block.timesteps, block.generator, block.latents, block.voxel_size_mm, "pt", None, None]
        checked = pipe.check_inputs(*data, block.settings, block.classes, block.guidance, *rest)
        block.measurement, block.class_names, block.class_numbers = checked
        block.coil_maps = block.measurement.known_or_estimated_maps(block.settings)


class PrepareStep(_Block):
    """Set up the forward operator, the branches, the sampler, the plan of guidance and the noise."""

    reads: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("measurement", "settings", "class_numbers", "guidance", "coil_maps"), ...),
        **dict.fromkeys(("generator", "latents", "timesteps")),
    }
    writes = ("problem", "branches", "sampler", "plan", "latents")

    def run(self, pipe: SGRMRIPipeline, block: Any) -> None:
        """Steps 2 to 4 of the call."""
        settings, device = block.settings, pipe._execution_device
        block.problem = pipe.prepare_problem(block.measurement, block.coil_maps, settings.consistency)
        n_slices, _, *size = block.problem.kspace.shape
        numbers = (0,) if settings.target == "none" else block.class_numbers
        block.branches = Branches(n_slices, numbers, TARGETS[settings.target])
        generators = image_generators(block.generator, n_slices, block.branches.per_slice, 1, device)
        block.sampler = pipe.prepare_sampler(settings, generators, block.timesteps)
        block.plan = pipe.prepare_guidance(block.guidance, block.sampler, settings.guidance_strength)
        noise = generators, block.sampler.init_noise_sigma, block.latents
        block.latents = pipe.prepare_latents(block.branches, size, *noise)


class DenoiseStep(_Block):
    """Take all reverse steps, each pulled to the data and pushed by the guidance."""

    reads: ClassVar[dict[str, Any]] = dict.fromkeys((*PrepareStep.writes, "settings"), ...)
    writes = ("latents",)

    def run(self, pipe: SGRMRIPipeline, block: Any) -> None:
        """Step 5 of the call."""
        settings, sampler, latents = block.settings, block.sampler, block.latents
        networks = pipe.unet, pipe.segmentation_model
        denoiser = Denoiser(*networks, block.problem, block.branches, settings.batch_size)
        last = len(sampler.timesteps) - 1
        for i, t in enumerate(sampler.timesteps):
            noisy, level = sampler.model_input(latents, t), sampler.level(t)
            pushing = scale_guidance(block.plan[i], settings.guidance_scale)
            symmetry = Symmetry.of_step(i) if pipe.config.is_equivariant else Symmetry()
            n_iterations, timestep = 0 if i == last else settings.cg_iterations, sampler.network_timesteps[i]
            estimate = denoiser(noisy, Step(timestep, level, n_iterations, pushing, symmetry))
            latents = estimate.x0
            if i < last:
                latents = sampler.step(level, t, estimate.x0_consistent, estimate.eps + estimate.push)
        denoiser.check_networks()
        block.latents = latents


class ConsistencyStep(_Block):
    """Make the clean images agree with the measurement in full."""

    reads: ClassVar[dict[str, Any]] = dict.fromkeys(("latents", "settings", "problem", "branches", "measurement"), ...)
    writes = ("images", "data_residual", "noise_residual")

    def run(self, pipe: SGRMRIPipeline, block: Any) -> None:
        """Step 6 of the call; images are in the scale of the prior."""
        settings, problem = block.settings, block.problem
        denoiser = Denoiser(pipe.unet, None, problem, block.branches, settings.batch_size)
        block.images, block.data_residual, _ = denoiser.finish(block.latents, settings.final_consistency)
        block.noise_residual = noise_residual(problem.kspace, block.measurement.mask, problem.noise_std)
        warn_of_residual(block.data_residual, block.noise_residual)


class SegmentStep(_Block):
    """Segment the images, and return images, volumes and names as the pipeline does."""

    reads: ClassVar[dict[str, Any]] = {
        **dict.fromkeys((*ConsistencyStep.writes, "settings", "problem", "branches"), ...),
        **dict.fromkeys(("class_names", "class_numbers"), ...),
        "voxel_size_mm": None,
    }
    writes = ("output",)

    def run(self, pipe: SGRMRIPipeline, block: Any) -> None:
        """Step 7 of the call."""
        is_plain, numbers, names = block.settings.target == "none", block.class_numbers, block.class_names
        segmentations = volumes = None
        if pipe.segmentation_model is not None:
            flat = block.images.flatten(0, 2)
            parts = batches(list(range(len(flat))), block.settings.batch_size)
            labels = [pipe.segment(flat[part]).argmax(dim=1).to(torch.uint8) for part in parts]
            segmentations = block.branches.unflatten(torch.cat(labels))
            tissues = tissue_masks(segmentations, numbers)
            tissues = tissues.any(dim=1, keepdim=True) if is_plain else tissues
            volumes = volume_mm3(tissues, block.voxel_size_mm)
        classes = tuple(names[number - 1] for number in numbers)
        if is_plain:
            classes = ("all" if len(classes) == len(names) else "+".join(classes),)
        block.output = SGRMRIPipelineOutput(
            images=block.images * block.problem.scale[:, None, None, None, None],
            segmentations=segmentations,
            volumes_mm3=volumes,
            data_residual=block.data_residual,
            noise_residual=block.noise_residual,
            classes=classes,
            targets=block.branches.targets,
            zero_filled=block.problem.zero_filled,
            scale=block.problem.scale,
        )


class SGRBlocks(SequentialPipelineBlocks):
    """Segmentation-guided reconstruction, step by step; `output` has the fields of `SGRMRIPipelineOutput`."""

    block_classes: ClassVar[list[type]] = [MapsStep, PrepareStep, DenoiseStep, ConsistencyStep, SegmentStep]
    block_names: ClassVar[list[str]] = ["maps", "prepare", "denoise", "consistency", "segment"]

    @property
    def description(self) -> str:
        """What the blocks do together."""
        return inspect.getdoc(type(self)) or ""


def save_modular(pipe: SGRMRIPipeline, folder: str | Path, repo_id: str | None = None) -> None:
    """Save a pipeline so that it also loads as a modular one, where this package is installed.

    `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` finds the blocks, its `load_components()` the
    networks.

    Args:
        pipe: pipeline.
        folder: folder to make or to write to.
        repo_id: name of the Hub repository that the folder will become; `None` for one that stays a folder.
    """
    folder = Path(folder)
    pipe.save_pretrained(folder)
    blocks = SGRBlocks()
    blocks.save_pretrained(folder)
    (folder / "modular.py").write_text(f"from {SGRBlocks.__module__} import SGRBlocks  # noqa: F401\n")
    index = {"_class_name": ModularPipeline.__name__, "_blocks_class_name": SGRBlocks.__name__}
    for name in _COMPONENTS:
        component = getattr(pipe, name)
        if component is not None:
            kind = type(component)
            library = kind.__module__.split(".")[0]
            spec = {"pretrained_model_name_or_path": repo_id, "subfolder": name, "variant": None, "revision": None}
            index[name] = [library, kind.__name__, spec | {"type_hint": [library, kind.__name__]}]
    index |= {name: pipe.config[name] for name in _CONFIG}
    (folder / ModularPipeline.config_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
