"""Reconstructs both bounds of the chosen tissues in one slice of a case, or raises an error that can be shown.

What visitors ask for is done by `run_isolated` and `read_isolated`, in processes that can be killed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..calibration.record import CalibrationMismatch
from ..io.raw_slices import RawSlices
from ..mri.operators import SenseOperator, ifft2c
from ..pipeline.calibrated import load_calibration, measured_group
from ..pipeline.inputs import check_measurement
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..reconstruction.results import volume_table
from ..reconstruction.settings import SamplingSettings
from ..reconstruction.source import read_scan
from ..reconstruction.volume import (
    VolumeReconstruction,
    load_pipeline,
    n_progress_steps,
    reconstruct_volume,
    with_calibrated_steps,
)
from .isolation import call_isolated
from .limits import AppLimits, RunRefused
from .uploads import USABLE, CaseInfo, readable

__all__ = [
    "CaseResult",
    "RunRequest",
    "SliceRequest",
    "preview_slice",
    "read_isolated",
    "run_case",
    "run_isolated",
]

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

    def read(self, all_slices: bool = False) -> RawSlices:
        """Read the measurement.

        Args:
            all_slices: whether to read all slices of the file rather than the one.

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
        chosen = slice(None) if all_slices else slice(self.slice_number, self.slice_number + 1)
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
        coverage: probability with which the calibrated interval of a tissue shall hold its volume in all slices of the
            file together; steps and strength are then those of the calibration. `None` for plain bounds of the slice.
    """

    measurement: SliceRequest
    classes: tuple[str, ...]
    n_steps: int = 25
    fast: bool = False
    strength: float = 1.0
    seed: int = 0
    coverage: float | None = None

    def settings(self) -> SamplingSettings:
        """The settings of both bounds."""
        return SamplingSettings(
            classes=self.classes,
            num_inference_steps=self.n_steps,
            fast=self.fast,
            guidance_scale=self.strength,
            seed=self.seed,
            coverage=self.coverage,
        )

    def for_model(self, pipe: SGRMRIPipeline) -> "RunRequest":
        """Return the same request, with the steps and the strength of the model's calibration where it asks for it."""
        if self.coverage is None:
            return self
        calibrated = with_calibrated_steps(pipe, SamplingSettings(coverage=self.coverage))
        return replace(self, n_steps=calibrated.num_inference_steps, fast=calibrated.fast, strength=1.0)


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

    @property
    def shown(self) -> int:
        """Place of the slice chosen among those that were reconstructed."""
        return self.scan.slice_indices.index(self.request.measurement.slice_number)

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
) -> CaseResult:
    """Reconstruct both bounds, within the time there is.

    Args:
        pipe: pipeline with a segmentation model.
        request: reconstruction to make.
        limits: limits on time and steps.
        on_progress: function called after each step with the number of steps done, their total number, and the seconds
            that are left.

    Raises:
        RunRefused: the run takes too long; the text says what would be shorter.
        ValueError: the request or the data cannot be used.
    """
    request = request.for_model(pipe)
    if not request.classes:
        raise ValueError("Choose at least one tissue.")
    if not 2 <= request.n_steps <= limits.max_steps:
        raise ValueError(f"The number of steps must be from 2 to {limits.max_steps}, got {request.n_steps}.")
    if not 0 <= request.strength <= 100:
        raise ValueError(f"The strength must be from 0 to 100, got {request.strength}.")
    if not 0 <= request.seed < 2**31:
        raise ValueError(f"The seed must be from 0 to {2**31 - 1}, got {request.seed}.")
    case, is_calibrated = request.measurement.case, request.coverage is not None
    if is_calibrated and case.n_slices > limits.max_slices:
        raise ValueError(
            f"A calibrated interval is of all slices of a file together, at most {limits.max_slices} here, and "
            f"{case.name} has {case.n_slices}. Cut out those that show the tissue, or untick the interval."
        )
    scan = request.measurement.read(all_slices=is_calibrated)
    if is_calibrated:
        _check_calibrated(pipe, request.coverage, scan)
    settings = request.settings()
    plain_settings = None
    if scan.fully_sampled is None:
        plain_settings = replace(settings, target="none", guidance_scale=1.0, coverage=None)
    total = n_progress_steps(pipe, len(scan.slice_indices), settings)
    if plain_settings is not None:
        total += n_progress_steps(pipe, len(scan.slice_indices), plain_settings)
    start, done, max_seconds, setup = time.monotonic(), 0, 60 * limits.max_minutes, 0.0

    def after_step() -> None:
        nonlocal done
        done += 1
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
            known = replace(scan, coil_maps=measurement.known_or_estimated_maps(settings))
            setup = time.monotonic() - start
        bounds = reconstruct_volume(pipe, known, settings, after_step)
        plain = None if plain_settings is None else reconstruct_volume(pipe, known, plain_settings, after_step)
    except RunRefused:
        raise
    except USABLE as error:
        raise ValueError(readable(error, case.path, case.name)) from error
    return CaseResult(request, scan, bounds, plain, time.monotonic() - start)


def _check_calibrated(pipe: SGRMRIPipeline, coverage: float | None, scan: RawSlices) -> None:
    """Check that the model's calibration holds for the sampling and the number of slices of a scan.

    Raises:
        ValueError: it does not; the text says what it holds for, in the words of the page.
    """
    calibration, n_slices = load_calibration(pipe.name_or_path), len(scan.slice_indices)
    try:
        calibration.check_slices(n_slices)
    except CalibrationMismatch as error:
        raise ValueError(
            "There is no calibrated interval for this file: the model was calibrated for the volume in "
            f"{calibration.slices_text} of a scan together, and the file has {n_slices}. Cut out as many, or untick "
            "the interval."
        ) from error
    try:
        calibration.quantiles_for(coverage or 0.0, *measured_group(scan.mask))
    except CalibrationMismatch as error:
        known = dict.fromkeys(f"{entry.group.acceleration:g}x" for entry in calibration.quantiles)
        raise ValueError(
            f"There is no calibrated interval for this measurement: the model was calibrated at {', '.join(known)}, "
            "with sampling masks of its own kind. Choose one of these accelerations if the file has it, or untick the "
            "interval."
        ) from error


def run_isolated(
    pipe: SGRMRIPipeline,
    request: RunRequest,
    limits: AppLimits,
    on_progress: Callable[[int, int, float], None],
    is_stopped: Callable[[], bool],
) -> CaseResult:
    """Reconstruct as `run_case` does, in a process of its own, which is killed at a limit or once it is stopped.

    Args:
        pipe: pipeline, which the process loads again from where this one comes from.
        request: reconstruction to make.
        limits: limits on time, memory and steps.
        on_progress: function called as by `run_case`.
        is_stopped: function asked a few times a second whether to stop.

    Raises:
        RunStopped: `is_stopped` returned true.
        RunRefused: the run takes too long or too much memory; the text says what would be shorter.
        ValueError: the request or the data cannot be used.
    """
    device = str(pipe.device)
    try:
        return call_isolated(
            _load_and_run,
            pipe.name_or_path,
            device,
            request,
            limits,
            seconds=60 * limits.max_minutes,
            memory_mb=limits.max_run_mb if device == "cpu" else None,
            on_report=on_progress,
            is_stopped=is_stopped,
        )
    except TimeoutError as error:
        raise RunRefused(
            f"This takes longer than the {limits.max_minutes:g} minutes that are allowed here. Choose fewer steps or "
            "fewer tissues, or store coil maps in the file."
        ) from error
    except (MemoryError, ChildProcessError) as error:
        raise RunRefused(
            f"This takes more memory than there is, or than the {limits.max_run_mb:g} MB that are allowed here. Cut "
            "out a part of the image, or store fewer (virtual) coils in the file."
        ) from error


def _load_and_run(
    model: str,
    device: str,
    request: RunRequest,
    limits: AppLimits,
    on_progress: Callable[[int, int, float], None],
) -> CaseResult:
    return run_case(load_pipeline(model, device), request, limits, on_progress)


def read_isolated(function: Callable[..., Any], *arguments: Any, limits: AppLimits) -> Any:
    """Call a function that reads an upload, in a process of its own, which is killed at a limit.

    Args:
        function: `describe_case`, or another function of a module.
        *arguments: arguments of the function.
        limits: limits on time and memory.

    Raises:
        ValueError: the file cannot be read, or not within the limits.
    """
    try:
        return call_isolated(function, *arguments, seconds=limits.max_reading_seconds, memory_mb=limits.max_reading_mb)
    except TimeoutError as error:
        raise ValueError(
            f"The file takes longer to read than the {limits.max_reading_seconds:g} seconds that are allowed here. It "
            "may be damaged: write it again, or cut out the slices of interest."
        ) from error
    except MemoryError as error:
        raise ValueError(
            f"The file takes more memory to read than the {limits.max_reading_mb:g} MB that are allowed here. Cut out "
            "the slices of interest."
        ) from error
    except ChildProcessError as error:
        raise ValueError("The file cannot be read: it is damaged. Write it again.") from error


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
