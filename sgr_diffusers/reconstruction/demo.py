"""Reconstruct the bundled case at several accelerations; print the table of its bounds and write the figure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..calibration.record import CalibrationMismatch
from ..io.raw_slices import RawSlices
from ..pipeline.calibrated import calibration_settings, load_calibration, measured_group
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..pretrained import PRETRAINED
from ..utils.files import whole_folder
from .results import bounds_figure, figure_title, table_note, table_text, volume_table, write_table
from .run import reconstruct_with_progress, write_record
from .settings import SamplingSettings
from .source import read_scan
from .volume import load_pipeline, with_fast_scheduler

__all__ = ["CASE", "COVERAGE", "run_demo"]

CASE = PRETRAINED / "case.h5"
COVERAGE = 0.9  # of the intervals, where the pipeline is calibrated for the demo


def run_demo(
    output: str | Path = "sgr_demo",
    accelerations: Sequence[float] = (4.0, 8.0, 16.0),
    n_steps: int = 12,
    seed: int = 0,
    model: str | None = None,
    case: str | Path = CASE,
) -> Path:
    """Reconstruct both bounds of every class at several accelerations; print a table, write a figure and a CSV file.

    Where the pipeline is calibrated for these steps and masks, as the bundled one is for 12 steps, the bounds are
    images at the ends of an interval that holds the volume in 90 % of such scans.

    Args:
        output: folder to make; that of an earlier demo is replaced.
        accelerations: accelerations of the masks stored with the case.
        n_steps: number of reverse steps of the fast setting.
        seed: seed of the noise.
        model: folder or Hub repository; `None` for the bundled pipeline.
        case: file in the layout of SKM-TEA's k-space, all slices of which are used.

    Returns:
        Path of the figure.

    Raises:
        FileExistsError: `output` holds something else than an earlier demo.
        ValueError: an argument, the case or the model cannot be used.
    """
    output, settings = Path(output), SamplingSettings(num_inference_steps=n_steps, fast=True, seed=seed)
    with whole_folder(output, overwrite=True) as folder:
        scans = [read_scan(case, mask=f"poisson_{acceleration:.1f}x") for acceleration in accelerations]
        pipe = load_pipeline(model)
        if _is_calibrated(pipe, settings, scans):
            settings = replace(settings, coverage=COVERAGE)
        volumes = reconstruct_with_progress(pipe, scans, settings)
        rows = [row for volume in volumes for row in volume_table(volume)]
        write_table(folder / "volumes.csv", rows)
        bounds_figure(volumes, figure_title(settings)).savefig(folder / "figure.png")
        write_record(folder, settings, file=case, model=model, accelerations=list(accelerations))
    print(f"Bounds of the tissues in {len(scans[0].slice_indices)} slices of a synthetic knee together:\n")
    print(f"{table_text(rows)}\n\n{table_note(settings)}\nFigure: {output / 'figure.png'}")
    return output / "figure.png"


def _is_calibrated(pipe: SGRMRIPipeline, settings: SamplingSettings, scans: Sequence[RawSlices]) -> bool:
    """Whether the pipeline carries a calibration that holds for these settings and masks."""
    try:
        calibration = load_calibration(pipe.name_or_path)
        now = calibration_settings(with_fast_scheduler(pipe), settings, settings.visited_timesteps)
        calibration.check_settings(now)
        for scan in scans:
            calibration.check_slices(len(scan.slice_indices))
            calibration.quantiles_for(COVERAGE, *measured_group(scan.mask))
    except CalibrationMismatch:
        return False
    return True
