"""Reconstructs both bounds of the chosen tissues in one slice of a case, or raises an error that can be shown."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from ..io.raw_slices import RawSlices
from ..mri.operators import SenseOperator, ifft2c
from ..pipeline.inputs import check_measurement
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..reconstruction.results import volume_table
from ..reconstruction.run import read_scan
from ..reconstruction.settings import SamplingSettings
from ..reconstruction.volume import VolumeReconstruction, n_progress_steps, reconstruct_volume
from .limits import AppLimits, RunRefused, RunStopped
from .uploads import USABLE, CaseInfo, readable

__all__ = ["CaseResult", "RunRequest", "SliceRequest", "preview_slice", "run_case"]

_STEPS_TO_JUDGE = 3  # the first ones take longer than those that follow


@dataclass(frozen=True)
class SliceRequest:
    """Choice of a measurement: a slice of a case as it was undersampled.

    Attributes:
        case: description of the file.
        slice_number: number of the slice, from 0.
        mask_name: name of the sampling mask, one of `case.masks`; `None` for k-space as it is.
        echo: number of the echo, from 1.
        voxel_size_mm: edge lengths of a voxel (slice, y, x) in mm where the file does not state them.
    """

    case: CaseInfo
    slice_number: int = 0
    mask_name: str | None = None
    echo: int = 1
    voxel_size_mm: tuple[float, float, float] | None = None

    def read(self) -> RawSlices:
        """Read the measurement.

        Raises:
            ValueError: the measurement is not in the file, or the voxel size is not known; the text can be shown.
        """
        case = self.case
        if self.mask_name is not None and self.mask_name not in case.masks:
            raise ValueError(f"{case.name} has no stored mask {self.mask_name!r}; it has {', '.join(case.masks)}.")
        size = case.voxel_size_mm or self.voxel_size_mm
        if size is None or not all(0 < edge < 100 for edge in size):
            raise ValueError(
                f"{case.name} does not state its voxel size. Enter the three edge lengths in mm, above 0 and below "
                "100: volumes cannot be given without them."
            )
        chosen = slice(self.slice_number, self.slice_number + 1)
        try:
            return read_scan(case.path, chosen, self.echo, self.mask_name, size)
        except USABLE as error:
            raise ValueError(readable(error, case.path, case.name)) from error


@dataclass(frozen=True)
class RunRequest:
    """A reconstruction to make.

    Attributes:
        measurement: choice of the slice and its sampling.
        classes: names of the tissues to bound.
        n_steps: number of reverse steps.
        fast: whether to make the steps where they count, as `SamplingSettings` says.
        strength: strength of the guidance, as a multiple of the default (1).
        seed: seed of the noise.
    """

    measurement: SliceRequest
    classes: tuple[str, ...]
    n_steps: int = 25
    fast: bool = False
    strength: float = 1.0
    seed: int = 0

    def settings(self) -> SamplingSettings:
        """The settings of both bounds."""
        return SamplingSettings(
            classes=self.classes,
            num_inference_steps=self.n_steps,
            fast=self.fast,
            guidance_scale=self.strength,
            seed=self.seed,
        )


@dataclass(frozen=True)
class CaseResult:
    """Result of a run.

    Attributes:
        request: request that was run.
        scan: measurement that was reconstructed.
        bounds: lower and upper reconstructions of each tissue.
        plain: unguided reconstruction, if there is no fully sampled image to compare with.
        seconds: duration of the run in seconds.
    """

    request: RunRequest
    scan: RawSlices
    bounds: VolumeReconstruction
    plain: VolumeReconstruction | None
    seconds: float

    def rows(self) -> list[dict]:
        """Rows of `results.volume_table`; with `plain_mm3` where the plain reconstruction was made."""
        rows = volume_table(self.bounds)
        if self.plain is not None:
            for row, plain in zip(rows, volume_table(self.plain), strict=True):
                row["plain_mm3"] = plain["unguided_mm3"]
        return rows


def run_case(
    pipe: SGRMRIPipeline,
    request: RunRequest,
    limits: AppLimits,
    on_progress: Callable[[int, int, float], None] = lambda done, total, seconds_left: None,
    is_stopped: Callable[[], bool] = lambda: False,
    read: Callable[[SliceRequest], RawSlices] = SliceRequest.read,
) -> CaseResult:
    """Reconstruct both bounds, within the time there is.

    Args:
        pipe: pipeline with a segmentation model.
        request: reconstruction to make.
        limits: limits on time and steps.
        on_progress: function called after each step with the number of steps done, their total number, and the seconds
            that are left.
        is_stopped: function asked after each step, and once coil maps are estimated, whether to stop.
        read: function that reads the measurement; for untrusted files, in a process that can be killed.

    Raises:
        RunStopped: `is_stopped` returned true.
        RunRefused: the run takes too long; the text says what would be shorter.
        ValueError: the request or the data cannot be used.
    """
    if not request.classes:
        raise ValueError("Choose at least one tissue.")
    if not 2 <= request.n_steps <= limits.max_steps:
        raise ValueError(f"The number of steps must be from 2 to {limits.max_steps}, got {request.n_steps}.")
    if not 0 <= request.strength <= 100:
        raise ValueError(f"The strength must be from 0 to 100, got {request.strength}.")
    if not 0 <= request.seed < 2**31:
        raise ValueError(f"The seed must be from 0 to {2**31 - 1}, got {request.seed}.")
    case = request.measurement.case
    scan = read(request.measurement)
    settings = request.settings()
    plain_settings = None if scan.fully_sampled is not None else replace(settings, target="none", guidance_scale=1.0)
    total = n_progress_steps(pipe, scan, settings)
    if plain_settings is not None:
        total += n_progress_steps(pipe, scan, plain_settings)
    start, done, max_seconds, setup = time.monotonic(), 0, 60 * limits.max_minutes, 0.0

    def after_step() -> None:
        nonlocal done
        done += 1
        if is_stopped():
            raise RunStopped
        elapsed = time.monotonic() - start
        expected = setup + (elapsed - setup) / done * total
        if elapsed > max_seconds or (done >= _STEPS_TO_JUDGE and expected > 1.5 * max_seconds):
            raise RunRefused(
                f"This would take about {expected / 60:.1f} minutes, but at most {limits.max_minutes:g} are allowed "
                "here. Choose fewer steps or fewer tissues."
            )
        on_progress(done, total, expected - elapsed)

    try:
        known = scan
        if scan.coil_maps is None:  # once for both reconstructions, and within the time
            measurement = check_measurement(scan.kspace, scan.mask, None, scan.kspace.device)
            known = replace(scan, coil_maps=measurement.known_or_estimated_maps())
            setup = time.monotonic() - start
            if is_stopped():
                raise RunStopped
            if setup > max_seconds:
                raise RunRefused(
                    f"To estimate the coil maps alone took {setup / 60:.1f} minutes, but at most "
                    f"{limits.max_minutes:g} are allowed here. Store coil maps in the file, or fewer coils."
                )
        bounds = reconstruct_volume(pipe, known, settings, after_step)
        plain = None if plain_settings is None else reconstruct_volume(pipe, known, plain_settings, after_step)
    except (RunRefused, RunStopped):
        raise
    except USABLE as error:
        raise ValueError(readable(error, case.path, case.name)) from error
    return CaseResult(request, scan, bounds, plain, time.monotonic() - start)


def preview_slice(
    request: SliceRequest,
) -> tuple[RawSlices, Float[np.ndarray, "y x"], Float[np.ndarray, "y x"] | None]:
    """The measurement, its zero-filled image, and the fully sampled one if it is known, both magnitudes.

    Without stored coil maps the coils are combined by the root of the sum of squares: a preview must not make others
    wait for an estimate.

    Raises:
        ValueError: as `SliceRequest.read`, or the data cannot be used.
    """
    scan = request.read()
    try:
        measurement = check_measurement(scan.kspace, scan.mask, scan.coil_maps, scan.kspace.device)
        if measurement.coil_maps is None:
            zero_filled = torch.linalg.vector_norm(ifft2c(measurement.kspace)[0], dim=0).numpy()
        else:
            operator = SenseOperator(measurement.coil_maps, measurement.mask)
            zero_filled = operator.adjoint(measurement.kspace)[0].abs().numpy()
    except USABLE as error:
        raise ValueError(readable(error, request.case.path, request.case.name)) from error
    return scan, zero_filled, None if scan.fully_sampled is None else scan.fully_sampled[0].abs().numpy()
