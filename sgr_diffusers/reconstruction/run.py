"""Reconstruct a file of raw k-space and write a folder of NIfTI files, a table and a figure."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..io.bids import describe_derivatives
from ..io.dicom_series import read_series
from ..io.raw_slices import RawSlices, collected_suspicions
from ..pipeline.calibrated import scheduler_settings
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..utils.claims import Part
from ..utils.files import RECORD_FILE, check_replaceable, whole_folder
from ..utils.processes import is_helper
from ..utils.versions import library_versions
from ..utils.weights import weights_hash
from .estimate import estimated_seconds
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
from .source import ScanFile, ScanSource
from .volume import (
    VolumeReconstruction,
    check_measured,
    load_pipeline,
    n_progress_steps,
    reconstruct_volume,
    slice_parts,
    with_calibrated_steps,
)
from .work import Parts

__all__ = ["reconstruct_file", "reconstruct_with_progress", "write_record"]


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
    dry_run: bool = False,
    part: Part | None = None,
    further_processes: AbstractContextManager | None = None,
) -> list[dict[str, Any]]:
    """Reconstruct slices of a scan, write images, segmentations, volumes.csv and figure.png, and print the table.

    Slices are read as they are needed, and their results kept in a hidden folder beside `output` until all of them are
    made: a run that was killed goes on where it was, and any number of processes share the slices.

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
        dry_run: whether to print an estimate of the duration and to stop.
        part: part of the slices to begin with, where several processes share them; `None` for the order of the scan.
        further_processes: context in which further processes do the same, see `utils.processes.helpers`; `None` for
            this process alone.

    Returns:
        The rows of volumes.csv, see `results.volume_table`; none in a further process and after a dry run.

    Raises:
        FileExistsError: `output` is taken, or an unfinished run with other settings is kept for it.
        ValueError, IndexError, OSError: the file, a slice, the series, the model or a setting cannot be used.
    """
    output, settings = Path(output), settings or SamplingSettings()
    parts = Parts(output)
    check_replaceable(output, overwrite)
    series = None if dicom is None else read_series(dicom)
    needs_size = settings.target != "none" and series is None
    scan = ScanFile(file, echo, mask, voxel_size_mm, n_coils, repetition, group, needs_size)
    source = ScanSource(scan, slices, series, at_once=settings.coverage is not None)
    pipe = load_pipeline(model, device, dtype)
    settings = with_calibrated_steps(pipe, settings)
    units = [source.numbers[chosen] for chosen in slice_parts(pipe, len(source.numbers), settings)]
    if dry_run:
        print(_estimate(pipe, source, units, settings))
        return []
    request = _request(scan, pipe, settings, dtype=dtype, dicom=dicom)
    if not parts.are_begun:  # what cannot be used is found before anything is reconstructed
        with collected_suspicions() as more:
            for unit in units:
                check_measured(source.read(unit))
        source.suspicions.extend(more)
    try:
        token = parts.open(request, overwrite)
        with further_processes or nullcontext():
            _make_parts(pipe, source, settings, parts, units, part)
        if is_helper():
            return []
        with parts.finish(units) as made:
            if made is None:
                print(f"{output} was finished by another process.")
                return []
            volume, suspicions = made
            texts = list(dict.fromkeys([*source.suspicions, *suspicions]))
            read = {"file": file, "echo": echo, "repetition": repetition, "group": group, "mask": mask}
            with whole_folder(output, overwrite) as folder:
                rows = _write_results(folder, volume, source, settings, ismrmrd, Path(file).name)
                volumes = {} if settings.coverage is None else {"volumes": rows}
                known = {"geometry": source.head.known_geometry, "dicom": dicom, "warnings": texts}
                numbers = list(source.numbers)
                write_record(folder, settings, token=token, model=model, slices=numbers, **read, **known, **volumes)
    except BaseException as error:
        parts.leave()
        if parts.folder.exists() and not is_helper() and not isinstance(error, FileExistsError):
            print(f"\nWhat is made is kept in {parts.folder}: the same command goes on from there.", file=sys.stderr)
        raise
    head, shown = "Volumes", rows
    if volume.voxel_size_mm is None:  # of target "none" alone, whose images are the same for every class
        head = "Voxel size unknown: no volumes"
        shown = [{name: rows[0][name] for name in ("sampling", "residual", "noise_residual")}]
    n_slices = len(volume.numbers)
    slices_read = "1 slice" if n_slices == 1 else f"{n_slices} slices together"
    print(f"{head} of {slices_read}:\n\n{table_text(shown)}\n\n{table_note(settings)}")
    print(f"Written to {output}")
    if source.head.affine is None:
        print(f"Place of the images in the patient: {source.head.known_geometry}")
    return rows


def _write_results(
    folder: Path,
    volume: VolumeReconstruction,
    source: ScanSource,
    settings: SamplingSettings,
    ismrmrd: bool,
    file_name: str,
) -> list[dict[str, Any]]:
    """Write tables, images and figure; returns the rows of volumes.csv."""
    rows = volume_table(volume)
    write_table(folder / "volumes.csv", rows)
    write_images(folder, volume, source.head.orientation, source.head.affine, ismrmrd)
    if source.placement is not None:
        write_dicom(folder / "dicom", volume, source.placement)
    describe_derivatives(folder, file_name, dict(zip(volume.labels, volume.classes, strict=True)), __version__)
    bounds_figure([volume], f"{file_name}: {figure_title(settings)}").savefig(folder / "figure.png")
    return rows


def _request(scan: ScanFile, pipe: SGRMRIPipeline, settings: SamplingSettings, **more: Any) -> dict[str, Any]:
    """All that the parts of a reconstruction depend on, but for the number of threads and the device."""
    state = Path(scan.file).stat() if Path(scan.file).is_file() else None
    networks = {
        name: weights_hash(network)
        for name, network in pipe.components.items()
        if isinstance(network, torch.nn.Module)
    }
    of_checkpoint = {
        name: value for name, value in pipe.config.items() if name not in pipe.components and not name.startswith("_")
    }
    return {
        "scan": {**dataclasses.asdict(scan), "file": str(Path(scan.file).resolve())},
        "file": None if state is None else [state.st_size, state.st_mtime_ns],
        "settings": dataclasses.asdict(settings),
        "networks": networks,
        "checkpoint": of_checkpoint,
        "scheduler": scheduler_settings(pipe),
        "versions": library_versions(),
        **more,
    }


def _estimate(
    pipe: SGRMRIPipeline, source: ScanSource, parts: Sequence[tuple[int, ...]], settings: SamplingSettings
) -> str:
    """Say how long the reconstruction takes, by the first of its parts."""
    first = source.read(parts[0])

    def seconds_of(fewer: SamplingSettings) -> float:
        start = time.monotonic()
        reconstruct_volume(pipe, first, fewer)
        return time.monotonic() - start

    seconds = estimated_seconds(seconds_of, settings)
    size = f" All slices are held in memory: {source.head.kspace.nbytes / 1e9:.2g} GB." if source.is_whole else ""
    return (
        f"{len(source.numbers)} slices in {len(parts)} parts of up to {len(parts[0])}: {seconds:.1f} s for a part, "
        f"{len(parts) * seconds / 3600:.2f} hours on one process (one part timed, nothing else running).{size}"
    )


def _make_parts(
    pipe: SGRMRIPipeline,
    source: ScanSource,
    settings: SamplingSettings,
    parts: Parts,
    units: Sequence[tuple[int, ...]],
    part: Part | None,
) -> None:
    """Reconstruct the parts that are not made, together with all other processes that do so, under a progress bar."""
    from tqdm import tqdm

    n_steps = n_progress_steps(pipe, len(units[0]), settings)

    def n_made() -> int:
        return n_steps * sum(parts.is_done(unit) for unit in units)

    bar = tqdm(initial=n_made(), total=len(units) * n_steps, unit="step", desc=source.head.label, disable=is_helper())
    with bar, closing(parts.hand_out(units, part)) as to_do:
        for unit in to_do:
            with collected_suspicions() as suspicions:
                volume = reconstruct_volume(pipe, source.read(unit), settings, bar.update)
            parts.save(unit, volume, suspicions)
            bar.n = n_made()  # what other processes have made included
            bar.refresh()


def reconstruct_with_progress(
    pipe: SGRMRIPipeline, scans: Sequence[RawSlices], settings: SamplingSettings
) -> list[VolumeReconstruction]:
    """Reconstruct one scan, or one at several accelerations, under a single progress bar."""
    from tqdm import tqdm

    volumes = []
    with tqdm(
        total=sum(n_progress_steps(pipe, len(scan.slice_indices), settings) for scan in scans), unit="step"
    ) as bar:

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
