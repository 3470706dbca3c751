"""A file of raw k-space enters; a folder of NIfTI files, a table and a figure leaves."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .io.raw_file import read_raw
from .output_folder import RECORD_FILE, check_replaceable, whole_folder
from .pipeline.pipeline_sgr_mri import SGRMRIPipeline
from .reconstruct import (
    SamplingSettings,
    ScanSlices,
    VolumeReconstruction,
    load_pipeline,
    n_progress_steps,
    reconstruct_volume,
)
from .results import bounds_figure, table_text, volume_table, write_images, write_table

__all__ = [
    "mask_label",
    "read_scan",
    "reconstruct_file",
    "reconstruct_with_progress",
    "stored_voxel_size",
    "write_record",
]


def reconstruct_file(
    file: str | Path,
    output: str | Path,
    settings: SamplingSettings | None = None,
    *,
    slices: slice = slice(None),
    echo: int = 1,
    mask_name: str | None = None,
    voxel_size_mm: Sequence[float] | None = None,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    n_coils: int | None = None,
    ismrmrd: bool = False,
) -> list[dict[str, Any]]:
    """Reconstruct slices of a scan, write images, segmentations, volumes.csv and figure.png, and print the table.

    Args:
        file: raw k-space of any kind that `io.raw_file.read_raw` reads.
        output: folder to make. It is there as a whole or, after an error or an interrupt, not at all.
        settings: how to sample; `None` for the defaults.
        slices: range of slices.
        echo: from 1.
        mask_name: stored mask to undersample by, for example "poisson_8.0x"; `None` for k-space as it is.
        voxel_size_mm: edge lengths (slice, y, x); `None` for those of the file or of the annotations beside it.
        model: folder or Hub repository; `None` for the bundled pipeline.
        device: of the networks.
        dtype: of the prior.
        overwrite: whether the folder of an earlier run may be replaced.
        n_coils: virtual coils to compress to; `None` keeps the coils.
        ismrmrd: also write images and segmentations in the ISMRMRD format, to images.h5.

    Returns:
        The rows of volumes.csv, see `results.volume_table`.

    Raises:
        FileExistsError: `output` is taken.
        ValueError, IndexError, OSError: the file, a slice, the model or a setting cannot be used.
    """
    output, settings = Path(output), settings or SamplingSettings()
    check_replaceable(output, overwrite)
    scan = read_scan(file, slices, echo, mask_name, voxel_size_mm, n_coils)
    pipe = load_pipeline(model, device, dtype)
    with whole_folder(output, overwrite) as folder:
        [volume] = reconstruct_with_progress(pipe, [scan], settings)
        rows = volume_table(volume)
        write_table(folder / "volumes.csv", rows)
        write_images(folder, volume, scan.orientation, scan.affine, ismrmrd)
        bounds_figure([volume], f"{Path(file).name}; volumes of the slice shown").savefig(folder / "figure.png")
        write_record(folder, settings, file=file, model=model, slices=list(scan.numbers), echo=echo, mask=mask_name)
    print(table_text(rows))
    print(f"\nVolumes in mm^3 of {len(scan.numbers)} slices together. Written to {output}")
    return rows


def read_scan(
    file: str | Path,
    slices: slice = slice(None),
    echo: int = 1,
    mask_name: str | None = None,
    voxel_size_mm: Sequence[float] | None = None,
    n_coils: int | None = None,
) -> ScanSlices:
    """Read slices as `reconstruct_volume` takes them; arguments as for `reconstruct_file`.

    Coil maps and fully sampled images are optional in the file, as is an attribute `voxel_size_mm` of three numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_raw` says, or the voxel size is not known.
    """
    stored_size = stored_voxel_size(Path(file))
    raw = read_raw(file, slices, echo, mask_name, n_coils)
    size = next((size for size in (voxel_size_mm, stored_size, raw.voxel_size_mm) if size is not None), None)
    if size is None:
        raise ValueError(
            f"`voxel-size` is needed: {file} does not state it, and no annotations lie beside it. For SKM-TEA: "
            "--voxel-size 0.3125 0.3125 0.8"
        )
    if len(size) != 3 or not all(0 < edge < float("inf") for edge in size):
        raise ValueError(f"`voxel-size` must be three positive edge lengths in mm, got {tuple(size)}.")
    acceleration = float(raw.mask.numel() / raw.mask.sum().clamp_min(1))
    return ScanSlices(
        kspace=raw.kspace,
        mask=raw.mask,
        coil_maps=raw.coil_maps,
        target=raw.target,
        numbers=raw.slice_indices,
        voxel_size_mm=tuple(float(edge) for edge in size),
        orientation=raw.orientation,
        affine=raw.affine,
        label=f"as stored ({acceleration:.2g}x)" if mask_name is None else mask_label(mask_name),
    )


def stored_voxel_size(file: Path) -> tuple[float, ...] | None:
    """The attribute `voxel_size_mm` of an HDF5 file; `None` for a file without it, or one that cannot be read."""
    import h5py

    try:
        with h5py.File(file, "r") as content:
            size = content.attrs.get("voxel_size_mm")
            return None if size is None else tuple(float(edge) for edge in size)
    except OSError:
        return None  # the reader says what is wrong


def mask_label(mask_name: str) -> str:
    """ "poisson_8.0x" to "8x"; other names stay as they are."""
    number = mask_name.removeprefix("poisson_").removesuffix("x")
    try:
        return f"{float(number):g}x"
    except ValueError:
        return mask_name


def reconstruct_with_progress(
    pipe: SGRMRIPipeline, scans: Sequence[ScanSlices], settings: SamplingSettings
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
    from . import __version__

    record = {"sgr_diffusers": __version__, "torch": torch.__version__, **dataclasses.asdict(settings), **more}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2, default=str) + "\n")
