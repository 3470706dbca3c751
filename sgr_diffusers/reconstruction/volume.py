"""Reconstruct and segment the undersampled slices of a scan with a pipeline."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from jaxtyping import Bool, Complex, Float, UInt8
from torch import Tensor

from ..bounds import tissue_masks, volume_mm3
from ..guidance.targets import TARGETS, resolve_classes
from ..io.raw_slices import RawSlices
from ..pipeline.calibrated import CALLS_OF_A_CALIBRATED_ONE, load_calibration
from ..pipeline.inputs import slice_scale
from ..pipeline.networks import check_networks
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..pipeline.settings import CallSettings
from ..pretrained import BUNDLED, PRETRAINED
from ..schedulers.checks import check_scheduler
from ..schedulers.timesteps import fast_timesteps
from ..utils.processes import local_rank
from ..utils.processor import has_fast_bfloat16
from .settings import DTYPES, SamplingSettings

__all__ = [
    "VolumeReconstruction",
    "can_be_fast",
    "check_measured",
    "load_pipeline",
    "n_progress_steps",
    "reconstruct_volume",
    "slice_parts",
    "with_calibrated_steps",
    "with_fast_scheduler",
]


@dataclass(frozen=True)
class VolumeReconstruction:
    """Reconstructions of all slices of a volume.

    Attributes:
        magnitudes: `(slice, class, target, y, x)`, float32, in the unit of the k-space; for target "none" the class
            axis has length 1.
        segmentations: `(slice, class, target, y, x)`, uint8 labels of all classes.
        data_residual: `(class, target)`, float64, ||A x - y|| / ||y|| over all slices together.
        noise_residual: the `data_residual` that noise alone would leave.
        energy: ||y||^2 over all slices together.
        zero_filled: `(slice, y, x)`, float32, magnitude of A^H y.
        fully_sampled: `(slice, y, x)`, float32 magnitude, if known.
        reference: `(slice, y, x)`, uint8, labels of the same network for the fully sampled images.
        classes: names of the classes asked for.
        labels: label number of each of them.
        targets: names of the target axis: "lower", "upper", or "none".
        numbers: place of each slice in its scan.
        voxel_size_mm: edge lengths (slice, y, x) of a voxel in mm; `None` where they are not known.
        label: label of the sampling, for example "8x".
        standard_deviation: `(slice, y, x)`, float32, of the samples in each pixel; `None` for a single sample.
        interval_mm3: ends `(class, target)` of the calibrated interval of each class; `None` without `coverage`.
        attained: whether the images came to these ends, bool `(class, target)`; `None` without `coverage`.
        point_estimate_mm3: mean volume `(class,)` of each class in unguided samples; `None` without `coverage`.
    """

    magnitudes: Float[np.ndarray, "slice class target y x"]
    segmentations: UInt8[np.ndarray, "slice class target y x"]
    data_residual: Float[np.ndarray, "class target"]
    noise_residual: float
    energy: float
    zero_filled: Float[np.ndarray, "slice y x"]
    fully_sampled: Float[np.ndarray, "slice y x"] | None
    reference: UInt8[np.ndarray, "slice y x"] | None
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    targets: tuple[str, ...]
    numbers: tuple[int, ...]
    voxel_size_mm: tuple[float, float, float] | None
    label: str
    standard_deviation: Float[np.ndarray, "slice y x"] | None = None
    interval_mm3: Float[np.ndarray, "class target"] | None = None
    attained: Bool[np.ndarray, "class target"] | None = None
    point_estimate_mm3: Float[np.ndarray, " class"] | None = None

    @cached_property
    def masks(self) -> Bool[np.ndarray, "slice class target y x"]:
        """Pixels of each class in its own reconstructions."""
        return tissue_masks(self.segmentations, self.labels)

    @cached_property
    def voxel_counts(self) -> Float[np.ndarray, "slice class target"]:
        """Number of voxels of each class in its own reconstructions, counted slice by slice."""
        return np.stack([volume_mm3(tissue_masks(labels[None], self.labels))[0] for labels in self.segmentations])

    @cached_property
    def reference_counts(self) -> Float[np.ndarray, "slice class"] | None:
        """Number of voxels of each class in the fully sampled images, if known."""
        if self.reference is None:
            return None
        return np.stack([volume_mm3(tissue_masks(labels[None, None], self.labels))[0] for labels in self.reference])

    @cached_property
    def reference_masks(self) -> Bool[np.ndarray, "slice class y x"] | None:
        """Pixels of each class in the fully sampled images, if known."""
        return None if self.reference is None else tissue_masks(self.reference[:, None], self.labels)


def load_pipeline(
    model: str | Path | None = None, device: str | None = None, dtype: str = "float32"
) -> SGRMRIPipeline:
    """Load a pipeline with its progress bar off.

    Args:
        model: folder, Hub repository, or name of a bundled checkpoint (a key of `BUNDLED`); `None` for that of the
            synthetic knees.
        device: device of the networks; `None` for a GPU if there is one, another for each process on this machine.
        dtype: data type of the prior, one of `DTYPES`; all else stays in single precision.

    Raises:
        ValueError: there is no such model, device or data type, or the model cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {DTYPES}, got {dtype!r}.")
    try:
        n_gpus = torch.cuda.device_count()
        torch_device = torch.device(device or (f"cuda:{local_rank() % n_gpus}" if n_gpus else "cpu"))
        torch.zeros(1, device=torch_device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {device!r} cannot be used ({str(error).splitlines()[0]}). Try 'cpu'.") from error
    if dtype == "bfloat16" and torch_device.type == "cpu" and has_fast_bfloat16() is False:
        warnings.warn(
            "`dtype` bfloat16 is much slower than float32 on this processor, which has neither AVX512_BF16 nor AMX. "
            "Leave it out.",
            stacklevel=2,
        )
    source = PRETRAINED if model is None else model
    if not Path(source).exists():
        source = BUNDLED.get(str(source), source)
    is_local = Path(source).exists()
    if is_local and not (Path(source) / "model_index.json").is_file():
        raise ValueError(f"`model` {source} holds no model_index.json: not the folder of a pipeline.")
    if not is_local and (model is None or str(source).count("/") != 1 or str(source).startswith((".", "/", "~"))):
        raise ValueError(f"`model` {source} is neither a folder nor the name of a Hub repository like 'org/name'.")
    try:
        pipe = SGRMRIPipeline.from_pretrained(
            str(source), dtype={"unet": getattr(torch, dtype), "default": torch.float32}
        )
    except Exception as error:  # whatever a foreign folder or the network can do
        where = "" if is_local else ", which is no folder here and was looked for on the Hub,"
        raise ValueError(f"`model` {source}{where} cannot be loaded: {type(error).__name__}: {error}") from error
    pipe.to(torch_device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reconstruct_volume(
    pipe: SGRMRIPipeline,
    scan: RawSlices,
    settings: SamplingSettings,
    on_step: Callable[[], None] = lambda: None,
) -> VolumeReconstruction:
    """Reconstruct slices a few at a time, so that memory does not grow with their number beyond the result.

    Args:
        pipe: pipeline, without a segmentation model for target "none" only; it stays as it is, also for
            `settings.fast`.
        scan: measured slices of the scan.
        settings: settings of the sampling.
        on_step: function called after each reverse step of each call of the pipeline, `n_progress_steps` times in all.

    Raises:
        TypeError, ValueError: as the pipeline says; or a slice is zero everywhere, or a reconstruction not finite.
        MemoryError: the device has too little memory.
    """
    has_classes = pipe.segmentation_model is not None
    if not has_classes and (settings.target != "none" or settings.classes is not None):
        raise ValueError(
            "`model` has no segmentation model, so that there is nothing to bound. Choose another model, or "
            "reconstruct with --target none and without --classes."
        )
    size, device = tuple(scan.kspace.shape[-2:]), pipe.device
    check_measured(scan)
    class_names = check_networks(pipe.unet, pipe.segmentation_model, size, device)
    labels = resolve_classes(settings.classes, class_names) if has_classes else ()
    if settings.fast:
        pipe = with_fast_scheduler(pipe)

    def report_step(pipe: SGRMRIPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return {}

    combine = "mean" if settings.num_samples > 1 else None
    arguments = settings.call_arguments() | {"classes": labels or None, "combine": combine}
    if settings.noise_std is None:
        arguments["noise_std"] = scan.noise_std
    coil_maps = None if settings.sets_maps else scan.coil_maps  # stored maps give way
    images, segmentations, zero_filled, deviations = [], [], [], []
    misfit_energy, noise_energy, energy = torch.zeros(1, 1, dtype=torch.float64), 0.0, 0.0
    for chosen in slice_parts(pipe, len(scan.slice_indices), settings):
        kspace = scan.kspace[chosen]
        try:
            out: Any = pipe(
                kspace,
                scan.mask if scan.mask.ndim == 2 else scan.mask[chosen],
                coil_maps=None if coil_maps is None else coil_maps[chosen],
                generator=[_slice_generator(settings.seed, number) for number in scan.slice_indices[chosen]],
                voxel_size_mm=scan.voxel_size_mm,
                **arguments,
                callback_on_step_end=report_step,
            )
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"{device} has too little memory for `batch_size` {settings.batch_size}; lower it."
            ) from error
        magnitudes = out.images.abs().float().cpu()
        if not torch.isfinite(magnitudes).all():
            raise ValueError(
                f"the reconstruction of slices {scan.slice_indices[chosen]} is not finite: `model` does not fit this "
                "data, or `dtype` is too coarse for it. Try --dtype float32, or a smaller --strength."
            )
        images.append(magnitudes)
        zero_filled.append(out.zero_filled.abs().cpu())
        if out.standard_deviation is not None:
            deviations.append(out.standard_deviation[:, 0].cpu())
        segmentations.append(
            out.segmentations.cpu() if has_classes else torch.zeros(out.images.shape, dtype=torch.uint8)
        )
        norms = torch.linalg.vector_norm(kspace, dim=(1, 2, 3)).double()[:, None, None]
        misfit_energy = misfit_energy + (out.data_residual.double().cpu() * norms).square().sum(dim=0)
        noise_energy += float((out.noise_residual.double().cpu() * norms[:, 0, 0]).square().sum())
        energy += float(norms.square().sum())
    reference = None
    if scan.fully_sampled is not None and has_classes:
        reference = _segment_fully_sampled(pipe, scan.fully_sampled, settings.batch_size)
    return VolumeReconstruction(
        magnitudes=torch.cat(images).numpy(),
        segmentations=torch.cat(segmentations).numpy(),
        data_residual=(misfit_energy / energy).sqrt().numpy(),
        noise_residual=(noise_energy / energy) ** 0.5,
        energy=energy,
        zero_filled=torch.cat(zero_filled).numpy(),
        fully_sampled=None if scan.fully_sampled is None else scan.fully_sampled.abs().numpy(),
        reference=reference,
        classes=tuple(class_names[label - 1] for label in labels),
        labels=labels,
        targets=TARGETS[settings.target],
        numbers=scan.slice_indices,
        voxel_size_mm=scan.voxel_size_mm,
        label=scan.label,
        standard_deviation=torch.cat(deviations).numpy() if deviations else None,
        interval_mm3=None if settings.coverage is None else out.target_volumes_mm3.cpu().numpy(),
        attained=None if settings.coverage is None else out.attained.cpu().numpy(),
        point_estimate_mm3=None if settings.coverage is None else out.point_estimates_mm3.cpu().numpy(),
    )


def check_measured(scan: RawSlices) -> None:
    """Check that all slices hold data.

    Raises:
        ValueError: some do not; the message names them.
    """
    empty = [number for number, y in zip(scan.slice_indices, scan.kspace, strict=True) if not y.any()]
    if empty:
        raise ValueError(f"`slices` {empty} hold no measured data at all. Leave them out.")


def with_fast_scheduler(pipe: SGRMRIPipeline) -> SGRMRIPipeline:
    """Make a pipeline of the same networks and settings with the fast scheduler; `pipe` stays as it is."""
    fast = copy.copy(pipe)
    fast.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return fast


def with_calibrated_steps(pipe: SGRMRIPipeline, settings: SamplingSettings) -> SamplingSettings:
    """Take the steps of the checkpoint's calibration for settings with `coverage` that choose none.

    Raises:
        CalibrationMismatch: the checkpoint has no calibration.
    """
    chooses = settings.fast or settings.timesteps is not None
    if settings.coverage is None or chooses or settings.num_inference_steps != CallSettings.num_inference_steps:
        return settings
    calibrated = load_calibration(pipe.name_or_path).settings
    n_steps = calibrated.num_inference_steps
    is_fast = calibrated.timesteps == tuple(fast_timesteps(n_steps)) if calibrated.timesteps else False
    return replace(settings, num_inference_steps=n_steps, fast=is_fast)


def can_be_fast(pipe: SGRMRIPipeline) -> bool:
    """Return whether the fast setting fits the noise that the prior was trained with."""
    try:
        check_scheduler(with_fast_scheduler(pipe).scheduler, pipe.config.trained_with, True, fast_timesteps())
    except ValueError:
        return False
    return True


def n_progress_steps(pipe: SGRMRIPipeline, n_slices: int, settings: SamplingSettings) -> int:
    """Count the steps that `reconstruct_volume` will report for a number of slices."""
    n_steps = len(settings.visited_timesteps or range(settings.num_inference_steps))
    n_calls = 1 if settings.coverage is None else CALLS_OF_A_CALIBRATED_ONE
    return n_calls * len(slice_parts(pipe, n_slices, settings)) * n_steps


def slice_parts(pipe: SGRMRIPipeline, n_slices: int, settings: SamplingSettings) -> list[slice]:
    """Runs of slices of which all branches fit one network call, or single ones; all slices for one interval."""
    if settings.coverage is not None:
        return [slice(0, n_slices)]
    n_classes = len(pipe.class_names or ()) if settings.classes is None else len(settings.classes)
    n_branches = (
        max(n_classes, 1) * len(TARGETS[settings.target]) if settings.target != "none" else settings.num_samples
    )
    length = max(settings.batch_size // n_branches, 1)
    return [slice(start, min(start + length, n_slices)) for start in range(0, n_slices, length)]


def _slice_generator(seed: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _segment_fully_sampled(
    pipe: SGRMRIPipeline, target: Complex[Tensor, "slice y x"], batch_size: int
) -> UInt8[np.ndarray, "slice y x"]:
    """S_f: labels that the network gives to the fully sampled images, scaled as for its training."""
    labels = []
    with torch.no_grad():
        for part in target.to(pipe.device).split(batch_size):
            scale = slice_scale(part, pipe.config.scale_quantile)
            labels.append(pipe.segment(part / scale[:, None, None]).argmax(dim=1).to(torch.uint8).cpu())
    return torch.cat(labels).numpy()
