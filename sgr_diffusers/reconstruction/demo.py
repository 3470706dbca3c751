"""Reconstruct the bundled case at several accelerations; print the table of its bounds and write the figure."""

from collections.abc import Sequence
from pathlib import Path

from ..pretrained import PRETRAINED
from ..utils.files import whole_folder
from .results import TABLE_NOTE, bounds_figure, table_text, volume_table, write_table
from .run import read_scan, reconstruct_with_progress, write_record
from .settings import SamplingSettings
from .volume import load_pipeline

__all__ = ["CASE", "run_demo"]

CASE = PRETRAINED / "case.h5"


def run_demo(
    output: str | Path = "sgr_demo",
    accelerations: Sequence[float] = (4.0, 8.0, 16.0),
    n_steps: int = 20,
    seed: int = 0,
    model: str | None = None,
    case: str | Path = CASE,
) -> Path:
    """Reconstruct both bounds of every class at several accelerations; print a table, write a figure and a CSV file.

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
        volumes = reconstruct_with_progress(pipe, scans, settings)
        rows = [row for volume in volumes for row in volume_table(volume)]
        write_table(folder / "volumes.csv", rows)
        title = "Lower and upper bound of each tissue; volumes of the slice shown"
        bounds_figure(volumes, title).savefig(folder / "figure.png")
        write_record(folder, settings, file=case, model=model, accelerations=list(accelerations))
    print(f"Bounds of the tissues in {len(scans[0].slice_indices)} slices of a synthetic knee together:\n")
    print(f"{table_text(rows)}\n\n{TABLE_NOTE}\nFigure: {output / 'figure.png'}")
    return output / "figure.png"
