"""Compute the row that the store keeps of a unit of work: reconstructions, segmentations, scores and costs.

A row depends on the unit, the settings, the networks and the data alone: noise is seeded by (seed, scan, slice).
"""

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.scan_files import read_coil_maps, read_kspace, read_mask, read_noise_free, read_target
from ..data.synthetic.findings import labels_without_findings
from ..pipeline.calibrated import used_strength
from ..pipeline.inputs import slice_scale
from ..pipeline.networks import check_networks, segment, size_multiple
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..pipeline.settings import whole_number
from ..schedulers.checks import check_scheduler
from ..utils.weights import weights_hash
from .metrics import ssim
from .network_meter import NetworkMeter
from .plan import Unit
from .settings import EvaluationSettings
from .slices import EvaluationData, manual_labels
from .store import pack_labels, pack_magnitude

__all__ = ["UnitComputer"]


class UnitComputer:
    """Computes units one by one.

    Args:
        pipe: pipeline with a segmentation model, on its device.
        second: another segmentation model, which guidance never sees; may be missing.
        settings: settings of all units.
        data: scans and slices to evaluate.
        examples: (scan, slice) pairs of which images are kept.
        with_manual: whether manual labels are read.
    """

    def __init__(
        self,
        pipe: SGRMRIPipeline,
        second: nn.Module | None,
        settings: EvaluationSettings,
        data: EvaluationData,
        examples: Collection[tuple[str, int]] = (),
        with_manual: bool = True,
    ) -> None:
        """Check that the networks fit the settings, and compute the hash of their weights."""
        if pipe.segmentation_model is None:
            raise ValueError("`model` has no segmentation model, so that there is nothing to bound or to measure.")
        self.pipe, self.second, self.settings, self.data = pipe, second, settings, data
        self.examples, self.with_manual = set(examples), with_manual
        size = next(iter(data.scans.values())).matrix_shape[1:]
        self._check_settings()
        self.class_names = check_networks(pipe.unet, pipe.segmentation_model, size, pipe.device)
        if second is not None and check_networks(pipe.unet, second, size, pipe.device) != self.class_names:
            raise ValueError(
                f"`second_segmentation` must have the classes of the pipeline's model, {self.class_names}, got "
                f"{check_networks(pipe.unet, second, size, pipe.device)}."
            )
        other = {scan.class_names for scan in data.scans.values()} - {self.class_names}
        if with_manual and other:
            raise ValueError(
                f"`model` has the classes {self.class_names}, but the labels of the data have {other.pop()}. Take a "
                "model of these classes, or leave out the manual labels by --reference fully_sampled."
            )
        networks = [pipe.unet, pipe.segmentation_model, *([] if second is None else [second])]
        self.weights_hash = "-".join(weights_hash(network) for network in networks)
        self._peak = lru_cache(maxsize=256)(self._volume_peak)

    def _check_settings(self) -> None:
        """Refuse what the pipeline would refuse at the first unit."""
        pipe, settings = self.pipe, self.settings
        check_scheduler(pipe.scheduler, pipe.config.trained_with, True, settings.visited_timesteps)
        n_train_timesteps = pipe.scheduler.config.num_train_timesteps
        whole_number(1, n_train_timesteps).check("num_inference_steps", settings.num_inference_steps)

    def compute(self, unit: Unit) -> dict[str, Any]:
        """Return the row of a unit, without the unit's own fields.

        Raises:
            DataFault: a file is damaged; scan and file are named.
            ValueError: a reconstruction is not finite.
        """
        start = time.perf_counter()
        with NetworkMeter(self.pipe.unet, self.pipe.segmentation_model) as meter:
            row = self._reference(unit) if unit.kind == "reference" else self._reconstruct(unit)
        row |= {f"seconds_{name}": seconds for name, seconds in meter.seconds.items()}
        return row | {
            "weights_hash": self.weights_hash,
            "n_forward": meter.n_forward,
            "n_backward": meter.n_backward,
            "n_threads": torch.get_num_threads(),
            "seconds": time.perf_counter() - start,
        }

    def _volume_peak(self, scan_id: str) -> float:
        """Return the largest magnitude of the fully sampled slices that are evaluated."""
        return max(float(np.abs(self._target(scan_id, index)).max()) for index in self.data.slices[scan_id])

    def _target(self, scan_id: str, index: int) -> np.ndarray:
        return read_target(scan_id, str(self.data.scans[scan_id].kspace_file), index, self.settings.echo)

    def _labels(self, images: Tensor, model: nn.Module) -> np.ndarray:
        """Return the labels (image, y, x) of complex images in the scale of the prior."""
        parts = images.split(self.settings.batch_size)
        multiple = size_multiple(self.pipe.unet)
        with torch.no_grad():
            labels = [segment(model, part, multiple).argmax(dim=1).to(torch.uint8).cpu() for part in parts]
        return torch.cat(labels).numpy()

    def _reference(self, unit: Unit) -> dict[str, Any]:
        scan, pipe = self.data.scans[unit.scan_id], self.pipe
        target = self._target(unit.scan_id, unit.slice)
        image = torch.from_numpy(target)[None].to(pipe.device)
        image = image / slice_scale(image, pipe.config.scale_quantile)[:, None, None]
        row: dict[str, Any] = {
            **self._common(unit, [target]),
            "voxel_size_mm": list(scan.voxel_size_mm),
            "findings": json.dumps(scan.findings or []),
            "fully_sampled": pack_labels(self._labels(image, pipe.segmentation_model)[0]),
        }
        if self.second is not None:
            row["second_fully_sampled"] = pack_labels(self._labels(image, self.second)[0])
        if self.with_manual:
            row["manual"] = pack_labels(manual_labels(scan, unit.slice))
            without = labels_without_findings(scan, unit.slice)
            row["without_finding"] = None if without is None else pack_labels(without)
        if (unit.scan_id, unit.slice) in self.examples:
            row["target_magnitude"] = pack_magnitude(np.abs(target), row["peak"])
        return row

    def _common(self, unit: Unit, arrays: Sequence[np.ndarray]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        height, width = self.data.scans[unit.scan_id].matrix_shape[1:]
        size = {"height": height, "width": width, "peak": self._peak(unit.scan_id)}
        return {**size, "data_hash": digest.hexdigest()[:16], "images": []}

    def _reconstruct(self, unit: Unit) -> dict[str, Any]:
        pipe, settings = self.pipe, self.settings
        path = str(self.data.scans[unit.scan_id].kspace_file)
        mask = read_mask(unit.scan_id, path, unit.acceleration)
        kspace = read_kspace(unit.scan_id, path, unit.slice, settings.echo, mask)
        maps = read_coil_maps(unit.scan_id, path, unit.slice)
        row = self._common(unit, [kspace, mask, maps])
        seed = _seed(settings.seed, unit)
        strength = settings.guidance_strength if unit.strength is None else unit.strength
        is_guided = unit.kind == "SGR"
        if is_guided:
            call = replace(settings, target="both", guidance_strength=strength)
        else:
            call = replace(settings, target="none", guidance_strength=None, num_samples=unit.n_samples)
        generator = _generator(seed, is_guided)
        out: Any = pipe(kspace[None], mask.copy(), coil_maps=maps[None], generator=generator, **call.call_arguments())
        row["seed"] = seed
        row["strength_used"] = used_strength(pipe, call, settings.visited_timesteps) if is_guided else None
        images, n_targets = out.images[0].flatten(0, 1), len(out.targets)
        second = None
        if self.second is not None:  # in the scale that the pipeline gives its own model
            second = self._labels(images / out.scale, self.second)
        target = torch.from_numpy(self._target(unit.scan_id, unit.slice))
        noise_free = read_noise_free(unit.scan_id, path, unit.slice, settings.echo)
        is_example, peak = (unit.scan_id, unit.slice) in self.examples, row["peak"]
        labels = out.segmentations[0].flatten(0, 1).cpu().numpy()
        residuals = out.data_residual[0].flatten().tolist()
        magnitudes = images.abs().float().cpu()
        if not torch.isfinite(magnitudes).all():
            raise ValueError(
                f"the reconstruction of scan {unit.scan_id}, slice {unit.slice}, is not finite: `model` does not fit "
                "this data, or `dtype` is too coarse for it. Try --dtype float32, or a smaller --strength."
            )
        for k, magnitude in enumerate(magnitudes):
            row["images"].append(
                {
                    "class_number": k // n_targets + 1 if is_guided else 0,
                    "target": out.targets[k % n_targets] if is_guided else "sample",
                    "sample": 0 if is_guided else unit.first_sample + k,
                    "labels": pack_labels(labels[k]),
                    "second_labels": None if second is None else pack_labels(second[k]),
                    "magnitude": pack_magnitude(magnitude.numpy(), peak) if is_example else None,
                    "ssim": _slice_ssim(magnitude, target, peak),
                    "squared_error": _squared_error(magnitude, target, peak),
                    "squared_error_noise_free": (
                        None if noise_free is None else _squared_error(magnitude, torch.from_numpy(noise_free), peak)
                    ),
                    "residual": residuals[k],
                }
            )
        if is_example:
            row["zero_filled"] = pack_magnitude(out.zero_filled[0].abs().cpu().numpy(), peak)
        return row


def _squared_error(magnitude: Tensor, target: Tensor, peak: float) -> float:
    """Sum over pixels of the squared difference of magnitudes, in units of `peak` squared."""
    return float(((magnitude.double() - target.abs().double()) / peak).square().sum())


def _slice_ssim(magnitude: Tensor, target: Tensor, peak: float) -> float | None:
    if min(target.shape) < 11:  # smaller than the window; in tests
        return None
    return ssim(magnitude[None], target.abs()[None], data_range=peak)


def _seed(seed: int, unit: Unit) -> int:
    """Return the seed of a slice's noise: one for each unit of samples, shared by accelerations and strengths."""
    name = int.from_bytes(hashlib.sha256(unit.scan_id.encode()).digest()[:4], "big")
    state = np.random.SeedSequence([seed, name, unit.slice, unit.first_sample]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _generator(seed: int, is_guided: bool) -> torch.Generator:
    """Make the generator that the pipeline is given for a slice.

    The pipeline draws the slice's seed from it, and the seed of each sample from the generator with that seed. SGR is
    given the second generator, so that its noise is that of the first sample, to which it reduces at strength 0.
    """
    generator = torch.Generator().manual_seed(seed)
    if is_guided:
        drawn = int(torch.randint(2**63 - 1, (1,), generator=generator))
        generator = torch.Generator().manual_seed(drawn)
    return generator
