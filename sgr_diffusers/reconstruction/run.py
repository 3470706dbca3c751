"""Reconstruct a file of raw k-space and write a folder of NIfTI files, a table and a figure."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..io.bids import describe_derivatives
from ..io.dicom_series import place_in_series, read_series
from ..io.raw_file import read_raw
from ..io.raw_slices import RawSlices, check_voxel_size, collected_suspicions, warn_suspect
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..utils.files import RECORD_FILE, check_replaceable, whole_folder
from .results import (
    bounds_figure,
    figure_title,
    table_note,
    table_text,
    volume_table,
    write_dicom,
    write_images,
    write_table,
)
from .settings import SamplingSettings
from .volume import (
    VolumeReconstruction,
    load_pipeline,
    n_progress_steps,
    reconstruct_volume,
    with_calibrated_steps,
)

__all__ = [
    "read_scan",
    "reconstruct_file",
    "reconstruct_with_progress",
    "write_record",
]


def reconstruct_file(
    file: str | Path,
    output: str | Path,
    settings: SamplingSettings | None = None,
    *,
    slices: slice = slice(None),
    echo: int = 1,
    repetition: int = 0,
    group: str | None = None,
    mask: float | str | None = None,
    voxel_size_mm: Sequence[float] | None = None,
    model: str = "general",
    device: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    n_coils: int | None = None,
    ismrmrd: bool = False,
    dicom: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Reconstruct slices of a scan, write images, segmentations, volumes.csv and figure.png, and print the table.

    Args:
        file: raw k-space of any kind that `io.read_raw` reads.
        output: folder to make. It is there as a whole or, after an error or an interrupt, not at all.
        settings: settings of the sampling; `None` for the defaults.
        slices: range of slices.
        echo: number of the echo from 1.
        repetition: number of the repetition from 0.
        group: HDF5 group of the scan; `None` for the only one there is.
        mask: stored mask to undersample by, its name or acceleration; in a fully sampled file without stored masks,
            acceleration of a mask made for it; `None` for k-space as it is.
        voxel_size_mm: edge lengths (slice, y, x); `None` for those of the file or of the annotations beside it.
        model: folder, Hub repository, or name of a bundled checkpoint, as for `load_pipeline`.
        device: device of the networks.
        dtype: data type of the prior.
        overwrite: whether the folder of an earlier run may be replaced.
        n_coils: number of virtual coils to compress to; `None` keeps the coils.
        ismrmrd: whether to write images and segmentations in the ISMRMRD format, too, to images.h5.
        dicom: folder of the DICOM series of the same scan: images and segmentations are also written as DICOM where
            its images lie, and a raw file that does not say where its slices lie takes their place from it.

    Returns:
        The rows of volumes.csv, see `results.volume_table`.

    Raises:
        FileExistsError: `output` is taken.
        ValueError, IndexError, OSError: the file, a slice, the series, the model or a setting cannot be used.
    """
    output, settings = Path(output), settings or SamplingSettings()
    check_replaceable(output, overwrite)
    series = None if dicom is None else read_series(dicom)
    needs_size = settings.target != "none" and series is None
    with collected_suspicions() as suspicions:
        scan = read_scan(file, slices, echo, mask, voxel_size_mm, n_coils, repetition, group, needs_size)
        if series is not None:
            scan, placement = place_in_series(scan, series)
    pipe = load_pipeline(model, device, dtype)
    settings = with_calibrated_steps(pipe, settings)
    with whole_folder(output, overwrite) as folder:
        [volume] = reconstruct_with_progress(pipe, [scan], settings)
        rows = volume_table(volume)
        write_table(folder / "volumes.csv", rows)
        write_images(folder, volume, scan.orientation, scan.affine, ismrmrd)
        if series is not None:
            write_dicom(folder / "dicom", volume, placement)
        describe_derivatives(
            folder, Path(file).name, dict(zip(volume.labels, volume.classes, strict=True)), __version__
        )
        bounds_figure([volume], f"{Path(file).name}: {figure_title(settings)}").savefig(folder / "figure.png")
        read = {"file": file, "slices": list(scan.slice_indices), "echo": echo, "repetition": repetition}
        known = {"group": group, "geometry": scan.known_geometry, "dicom": dicom, "warnings": suspicions}
        volumes = {} if settings.coverage is None else {"volumes": rows}
        write_record(folder, settings, model=model, mask=mask, **read, **known, **volumes)
    head = "Voxel size unknown: no volumes" if scan.voxel_size_mm is None else "Volumes"
    print(f"{head} of {len(scan.slice_indices)} slices together:\n\n{table_text(rows)}\n\n{table_note(settings)}")
    print(f"Written to {output}")
    if scan.affine is None:
        print(f"Place of the images in the patient: {scan.known_geometry}")
    return rows


def read_scan(
    file: str | Path,
    slices: slice = slice(None),
    echo: int = 1,
    mask: float | str | None = None,
    voxel_size_mm: Sequence[float] | None = None,
    n_coils: int | None = None,
    repetition: int = 0,
    group: str | None = None,
    needs_size: bool = True,
) -> RawSlices:
    """Read slices as `reconstruct_volume` takes them; arguments as for `reconstruct_file`.

    Coil maps and fully sampled images are optional in the file, as is an attribute `voxel_size_mm` of three numbers.

    Args:
        needs_size: whether an unknown voxel size is an error; bounds are volumes, a plain reconstruction is none.

    Raises:
        FileNotFoundError, PermissionError, BlockingIOError: as `read_raw` says.
        ValueError: as `read_raw` says, or the voxel size is not known.
    """
    given_size = None if voxel_size_mm is None else check_voxel_size(voxel_size_mm, "voxel-size")
    raw = read_raw(file, slices, echo, mask, n_coils, repetition, group)
    size = raw.voxel_size_mm if given_size is None else given_size
    if size is None and needs_size:
        raise ValueError(
            f"`voxel-size` is needed: {file} does not state it, and no annotations lie beside it. For SKM-TEA: "
            "--voxel-size 0.3125 0.3125 0.8"
        )
    return dataclasses.replace(raw, voxel_size_mm=size, affine=_fitting_affine(raw, size))


def _fitting_affine(raw: RawSlices, size: tuple[float, float, float] | None) -> np.ndarray | None:
    """The affine of the file, unless the user says that voxels have another size."""
    if raw.affine is None or size is None or raw.voxel_size_mm is None:
        return None
    if np.allclose(size, raw.voxel_size_mm, rtol=1e-3):
        return raw.affine
    warn_suspect(
        f"`voxel-size` {size} contradicts the file, which says {raw.voxel_size_mm}: it is used, and the position of "
        "the slices is taken as unknown."
    )
    return None


def reconstruct_with_progress(
    pipe: SGRMRIPipeline, scans: Sequence[RawSlices], settings: SamplingSettings
) -> list[VolumeReconstruction]:
    """Reconstruct one scan, or one at several accelerations, under a single progress bar."""
    from tqdm import tqdm

    volumes = []
    with tqdm(total=sum(n_progress_steps(pipe, scan, settings) for scan in scans), unit="step") as bar:

        def advance() -> None:
            bar.update()

        for scan in scans:
            bar.set_description(scan.label)
            volumes.append(reconstruct_volume(pipe, scan, settings, advance))
    return volumes


def write_record(folder: Path, settings: SamplingSettings, **more: Any) -> None:
    """Write what made the results, so that they can be made again."""
    record = {"sgr_diffusers": __version__, "torch": torch.__version__, **dataclasses.asdict(settings), **more}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2, default=str) + "\n")
