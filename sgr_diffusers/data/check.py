"""Checks a data folder in the SKM-TEA layout scan by scan and reports what is there, missing or damaged."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import scan_files
from .scan_files import DataFault
from .scan_labels import file_labels

__all__ = ["ScanReport", "check_folder", "report_text"]


@dataclass(frozen=True)
class ScanReport:
    """What was found of a scan.

    Attributes:
        split: split of the annotations that list the scan.
        scan_id: name of the scan.
        matrix_shape: matrix size (slice, y, x) that the annotations state.
        n_coils: number of receive coils; `None` if the k-space file cannot be read.
        n_echoes: number of echoes; `None` if the k-space file cannot be read.
        masks: names of the stored masks.
        n_bytes: size of the files of the scan, in bytes.
        n_labelled: number of slices that show a tissue class; `None` if the segmentation was not read.
        faults: descriptions of what is missing or damaged; empty if the scan can be used.
    """

    split: str
    scan_id: str
    matrix_shape: tuple[int, int, int]
    n_coils: int | None
    n_echoes: int | None
    masks: tuple[str, ...]
    n_bytes: int
    n_labelled: int | None
    faults: tuple[str, ...]


def check_folder(root: str | os.PathLike, read_arrays: bool = False) -> Iterator[ScanReport]:
    """Look at every scan that the annotations list: k-space file, masks, segmentation.

    Args:
        root: folder in the SKM-TEA layout.
        read_arrays: flag to read all slices of k-space (first echo), maps and target as well, to find what is not
            finite or cannot be read; takes as long as reading the whole data set.

    Raises:
        FileNotFoundError: there are no annotations.
    """
    root = str(Path(root).absolute())
    for split in scan_files.split_names(root) or ["train"]:  # without any, the error says what is missing
        for entry in scan_files.read_annotations(root, split):
            yield _check_scan(root, split, entry["scan_id"], entry["matrix_shape"], read_arrays)
    scan_files.close_files()


def _check_scan(root: str, split: str, scan_id: str, shape: tuple[int, int, int], read_arrays: bool) -> ScanReport:
    path, labels = scan_files.kspace_path(root, scan_id), scan_files.labels_path(root, scan_id)
    faults: list[str] = []
    masks: tuple[str, ...] = ()
    n_coils = n_echoes = n_labelled = None
    try:
        scan_files.check_kspace_file(scan_id, path, shape, echo=1, acceleration=None)
        n_echoes, n_coils = scan_files.array_shape(scan_id, path, "kspace")[3:]
        masks = scan_files.mask_names(scan_id, path)
        if not masks:
            faults.append(f"{path}: holds no masks")
        for name in masks:
            try:
                scan_files.read_mask(scan_id, path, name)
            except DataFault as fault:
                faults.append(f"{fault.file}: {fault.reason}")
        for number in range(shape[0]) if read_arrays else ():
            try:
                scan_files.read_kspace(scan_id, path, number, 1)
                scan_files.read_coil_maps(scan_id, path, number)
                scan_files.read_target(scan_id, path, number, 1)
            except DataFault as fault:
                faults.append(f"{fault.file}: {fault.reason}")
    except DataFault as fault:
        faults.append(f"{fault.file}: {fault.reason}")
    try:
        n_labelled = int(file_labels(scan_id, labels, shape).counts[:, 1:].any(axis=1).sum())
    except DataFault as fault:
        faults.append(f"{fault.file}: {fault.reason}")
    n_bytes = sum(os.path.getsize(file) for file in (path, labels) if os.path.exists(file))
    return ScanReport(split, scan_id, shape, n_coils, n_echoes, masks, n_bytes, n_labelled, tuple(faults))


def report_text(reports: Iterable[ScanReport]) -> Iterator[str]:
    """Yield lines of a table, a line for each scan that was looked at, and a summary at the end."""
    yield f"{'split':11} {'scan':14} {'matrix':14} {'coils':>5} {'echoes':>6} {'MB':>8} {'labelled':>8}  masks"
    n_scans = n_bad = n_bytes = 0
    for report in reports:
        n_scans, n_bad, n_bytes = n_scans + 1, n_bad + bool(report.faults), n_bytes + report.n_bytes
        matrix = "x".join(map(str, report.matrix_shape))
        known = ["-" if value is None else value for value in (report.n_coils, report.n_echoes, report.n_labelled)]
        masks = " ".join(name.removeprefix("poisson_") for name in report.masks) or "-"
        yield (
            f"{report.split:11} {report.scan_id:14} {matrix:14} {known[0]:>5} {known[1]:>6} "
            f"{report.n_bytes / 1e6:8.1f} {known[2]:>8}  {masks}"
        )
        yield from (f"            {fault}" for fault in report.faults)
    yield f"{n_scans} scans, {n_bytes / 1e9:.2f} GB; {n_scans - n_bad} can be used, {n_bad} cannot"
