"""Calls a pipeline for calibrated bounds: an interval with a stated coverage, and an image at each end of it.

A calibrated call makes three plain ones: the bounds, the unguided images with the same noise, and unguided images with
other noise. The mean volume of the unguided ones is the point estimate. The interval lies around it, and is the wider,
the further apart the bounds are. An image at an end of the interval lies on the line from the unguided image through a
bound that fits the measurement equally well, at the place that has the volume of that end.
"""

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Generator, Tensor

from ..bounds import check_voxel_size, tissue_masks, volume_mm3
from ..calibration.record import FILE_NAME, Calibration, CalibrationMismatch, CalibrationSettings
from ..calibration.scores import N_SAMPLES
from ..guidance.guiders import SegmentationGuidance
from ..guidance.plan import guidance_plan
from ..guidance.targets import resolve_classes
from ..guidance.volume_goals import are_attained
from ..mri.consistency import data_residual, nearest_consistent
from ..mri.masks import mask_family
from ..mri.operators import SenseOperator
from ..schedulers.sampler import ScheduledSampler
from ..utils.weights import weights_hash
from .inputs import check_measurement
from .settings import CallSettings
from .volume_search import scale_to_goals

__all__ = [
    "CALLS_OF_A_CALIBRATED_ONE",
    "calibrated_call",
    "calibration_settings",
    "copy_calibration",
    "load_calibration",
    "measured_group",
    "scheduler_settings",
    "used_strength",
]


def scheduler_settings(pipe: Any) -> dict[str, Any]:
    """Return the class and configuration of the scheduler, in values that JSON keeps."""
    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {"class": type(pipe.scheduler).__name__, **json.loads(json.dumps(config, sort_keys=True, default=str))}


def used_strength(pipe: Any, settings: CallSettings, timesteps: Sequence[int] | None = None) -> float:
    """Compute the strength b that a call applies in a step.

    The default may differ from step to step; then it is the mean of the steps that are pushed, all but the last.

    Args:
        pipe: pipeline.
        settings: settings of the call.
        timesteps: timesteps to visit; `None` for the scheduler's own choice.
    """
    if settings.guidance_strength is not None:
        return settings.guidance_strength
    steps = settings.num_inference_steps, settings.eta
    sampler = ScheduledSampler(pipe.scheduler, *steps, [Generator()], pipe.device, timesteps)
    guidance_from = pipe.config.guidance_from
    strengths = sampler.strengths(pipe.config.guidance_strength, guidance_from)
    plan = guidance_plan([SegmentationGuidance()], strengths, sampler.is_guided_from(guidance_from))
    pushed = [strength_of_step for step in plan for _, strength_of_step in step] or strengths
    return sum(pushed) / len(pushed)


def calibration_settings(pipe: Any, settings: CallSettings, timesteps: Sequence[int] | None) -> CalibrationSettings:
    """Collect everything about a call that a calibration depends on.

    Args:
        pipe: pipeline with a segmentation model.
        settings: settings of the call.
        timesteps: timesteps to visit; `None` for the scheduler's own choice.
    """
    complete = settings.with_defaults(pipe.config)
    return CalibrationSettings(
        networks={name: weights_hash(getattr(pipe, name)) for name in ("unet", "segmentation_model")},
        scheduler=scheduler_settings(pipe),
        num_inference_steps=settings.num_inference_steps if timesteps is None else len(timesteps),
        timesteps=None if timesteps is None else tuple(int(t) for t in timesteps),
        eta=float(settings.eta),
        guidance_strength=round(settings.guidance_scale * used_strength(pipe, settings, timesteps), 9),
        guidance_from=float(pipe.config.guidance_from),
        is_equivariant=bool(pipe.config.is_equivariant),
        denoising_variance=json.loads(json.dumps(pipe.config.denoising_variance)),
        consistency=str(complete.consistency),
        cg_iterations=int(complete.cg_iterations or 0),
        final_consistency=settings.final_consistency,
    )


def measured_group(mask: np.ndarray | Tensor) -> tuple[float, str]:
    """Return the measured acceleration of a mask `(y, x)` or `(slice, y, x)`, and its kind, by the first slice."""
    mask = np.asarray(mask).astype(bool)
    return mask.size / max(int(mask.sum()), 1), mask_family(mask.reshape(-1, *mask.shape[-2:])[0])


def load_calibration(source: str | os.PathLike | None, **options: Any) -> Calibration:
    """Read the calibration of a checkpoint.

    Args:
        source: folder or Hub repository that a pipeline was loaded from; `None` for a pipeline made of components.
        **options: `revision`, `token`, `cache_dir` and `local_files_only` of the Hub.

    Raises:
        CalibrationMismatch: the checkpoint has none.
        ValueError: the file is damaged.
    """
    way_out = "Calibrate it by `sgr calibrate`, or leave out `coverage`."
    if source is None:
        raise CalibrationMismatch(
            f"`coverage` needs a pipeline that was loaded from a checkpoint with {FILE_NAME}. {way_out}"
        )
    try:
        if not Path(source).is_dir():
            from huggingface_hub import hf_hub_download

            return Calibration.load(Path(hf_hub_download(str(source), FILE_NAME, **options)).parent)
        return Calibration.load(source)
    except OSError as error:  # missing here, or on the Hub
        raise CalibrationMismatch(f"`coverage` needs {FILE_NAME}, which {source} does not have. {way_out}") from error


CALLS_OF_A_CALIBRATED_ONE = 3  # bounds, unguided, and unguided with other noise
_CG_ITERATIONS = 10  # 40 give the same data residual, to four digits


def copy_calibration(source: str | os.PathLike | None, folder: str | os.PathLike) -> None:
    """Copy the calibration of the folder that a pipeline was loaded from, if it has one.

    Args:
        source: folder or Hub repository that the pipeline was loaded from.
        folder: folder that the pipeline is saved to.
    """
    if source and Path(source, FILE_NAME).is_file():
        Calibration.load(source).save(folder)


def calibrated_call(pipe: Any, coverage: float, output_type: str, return_dict: bool, **call: Any) -> Any:
    """Reconstruct at both ends of the calibrated interval of each class.

    Args:
        pipe: pipeline, loaded from a checkpoint that carries a calibration.
        coverage: wanted probability that the interval of a class holds its volume.
        output_type: type of the arrays, as in `SGRMRIPipeline.__call__`.
        return_dict: whether to return an object rather than a tuple.
        **call: all other arguments of `SGRMRIPipeline.__call__`.

    Raises:
        CalibrationMismatch: the checkpoint is not calibrated for this call; the message says what is missing.
    """
    # 1. Take the calibrated sampling where the call chooses none, and check that the calibration holds for this call
    calibration = load_calibration(pipe.name_or_path)
    if call["timesteps"] is None and call["num_inference_steps"] == CallSettings.num_inference_steps:
        pipe = _with_scheduler(pipe, calibration.settings.scheduler)
        call["timesteps"] = calibration.settings.timesteps
        call["num_inference_steps"] = calibration.settings.num_inference_steps
    settings = _checked_settings(call)
    device, voxel_size_mm = pipe._execution_device, call["voxel_size_mm"]
    calibration.check_settings(calibration_settings(pipe, settings, call["timesteps"]))
    measurement = check_measurement(call["kspace"], call["mask"], call["coil_maps"], device, call["noise_std"])
    calibration.check_slices(len(measurement.kspace))
    quantiles = calibration.quantiles_for(coverage, *measured_group(measurement.mask.cpu().numpy()))
    call["coil_maps"] = measurement.known_or_estimated_maps(settings)
    call |= {"calibration_width": None, "kernel_width": None, "crop": None}

    # 2. Bounds, unguided images which share their noise, others which do not, and the interval
    generator = call.pop("generator") or Generator(device).manual_seed(torch.seed())
    out = pipe(**call, generator=_copy_of(generator))
    call |= {"target": "none", "classes": out.classes}
    plain = pipe(**call, generator=generator)
    others = pipe(**{**call, "num_samples": N_SAMPLES - 1, "latents": None}, generator=generator)  # of other noise
    numbers = resolve_classes(out.classes, pipe.class_names)
    samples = torch.cat([plain.segmentations, others.segmentations], dim=2)  # slice, 1, sample, y, x
    of_samples = volume_mm3(tissue_masks(samples, numbers), voxel_size_mm, axes=(0, -2, -1))  # class, sample
    point = of_samples.double().mean(dim=1).cpu().numpy()
    lower, upper = out.volumes_mm3.double().sum(dim=0).cpu().numpy().T  # class
    voxel_mm3 = math.prod((1.0, 1.0, 1.0) if voxel_size_mm is None else voxel_size_mm)
    interval = np.stack(quantiles.interval(point, lower, upper, voxel_mm3, out.classes), axis=1)  # class, end

    def label(images: Tensor) -> Tensor:
        """Segment images `(slice, class, target, y, x)`."""
        scaled = images / out.scale[:, None, None, None, None]
        parts = scaled.flatten(0, 2).split(settings.batch_size or len(scaled))
        labels = [pipe.segment(part).argmax(dim=1).to(torch.uint8) for part in parts]
        return torch.cat(labels).reshape(images.shape)

    def volumes_of(images: Tensor) -> Tensor:
        """Add up the volume of each class in its own images, `(class, target)`."""
        return volume_mm3(tissue_masks(label(images), numbers), voxel_size_mm, axes=(0, -2, -1)).float()

    # 3. Images at the ends of the interval: what guidance changed, but for what the measurement sees of it, is scaled
    # until their volumes are there. So their data residual stays that of the unguided images.
    operator, kspace = SenseOperator(call["coil_maps"], measurement.mask), measurement.kspace
    unguided = plain.images[:, 0, 0]
    measured = operator.forward(unguided)
    columns = [
        nearest_consistent(operator, images, measured, max_iterations=_CG_ITERATIONS).solution
        for images in out.images.flatten(1, 2).unbind(dim=1)
    ]
    guided = torch.stack(columns, dim=1).reshape(out.images.shape)
    wanted = torch.from_numpy(interval).float().to(device)
    is_above = wanted > of_samples[:, :1]  # both ends can lie on the same side of the unguided volume
    guided = torch.where(is_above[..., None, None], guided[:, :, 1:], guided[:, :, :1])
    out.target_volumes_mm3 = wanted
    out.images = scale_to_goals(guided, unguided, volumes_of, wanted)
    out.segmentations = label(out.images)
    out.volumes_mm3 = volume_mm3(tissue_masks(out.segmentations, numbers), voxel_size_mm)
    out.attained = are_attained(out.volumes_mm3.sum(dim=0), wanted, voxel_mm3)
    residuals = [data_residual(operator, images, kspace) for images in out.images.flatten(1, 2).unbind(dim=1)]
    out.data_residual = torch.stack(residuals, dim=1).reshape(out.data_residual.shape)
    out.point_estimates_mm3 = torch.from_numpy(point).float().to(device)
    out = out.numpy() if output_type == "np" else out
    return out if return_dict else out.all_fields()


def _checked_settings(call: Mapping[str, Any]) -> CallSettings:
    """Check the settings of a call with `coverage`.

    Raises:
        ValueError: a setting is out of range or does not go with `coverage`.
    """
    if call["target"] != "both" or call["guidance"] is not None:
        raise ValueError(
            f"`coverage` needs target='both' and no `guidance`, got target={call['target']!r} and guidance "
            f"{type(call['guidance']).__name__}: it takes the bounds of the checkpoint to the ends of its interval."
        )
    check_voxel_size(call["voxel_size_mm"])
    return CallSettings(**{entry.name: call[entry.name] for entry in fields(CallSettings)})


def _with_scheduler(pipe: Any, scheduler: Mapping[str, Any]) -> Any:
    """Make a pipeline of the same components with a scheduler like the calibrated one; `pipe` stays as it is.

    Raises:
        ValueError: the scheduler of the calibration is none of diffusers.
    """
    scheduler_class: Any = getattr(diffusers, scheduler["class"], None)
    if SchedulerMixin not in getattr(scheduler_class, "__mro__", ()):
        raise ValueError(f"`scheduler` of {FILE_NAME} must be a class of diffusers, got {scheduler['class']!r}.")
    calibrated = copy.copy(pipe)
    calibrated.scheduler = scheduler_class.from_config({k: v for k, v in scheduler.items() if k != "class"})
    return calibrated


def _copy_of(generator: Generator | list[Generator]) -> Generator | list[Generator]:
    """Copy a generator, or each of several: the copy draws what the given one will draw next."""
    if isinstance(generator, list):
        return [same for entry in generator if isinstance(same := _copy_of(entry), Generator)]
    same = Generator(generator.device)
    same.set_state(generator.get_state())
    return same
