"""Reads scans and their slices from a folder in the SKM-TEA raw-data layout, and offers them as a PyTorch data set.

Layout (SKM-TEA v1.0.0)::

    <root>/annotations/v1.0.0/<split>.json                     train, val and test in SKM-TEA
    <root>/files_recon_calib-24/<scan>.h5                      kspace, maps, target, masks/poisson_<acceleration>x
    <root>/segmentation_masks/raw-data-track/<scan>.nii.gz     labels 0..6

Data with other classes names them in its annotation files, `"segmentation_classes": ["tumour"]`: label 1 is then the
first of them. There can be six.

Files are indexed (x, ky, kz), here called (slice, y, x): axial slices in anatomical order, rows anterior-posterior,
columns left-right. k-space is hybrid: the slice direction is an image axis already.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Integer, UInt8
from torch.utils.data import Dataset

from ..mri.operators import complex_to_channels
from . import scan_files
from .scan_labels import FileLabels, file_labels
from .transforms import center_fit, scale_to_quantile

__all__ = [
    "CLASS_NAMES",
    "FILE_LABEL_TO_CLASS",
    "SKM_TEA",
    "SYNTHETIC",
    "SkmTeaScan",
    "SkmTeaSlices",
    "known_data",
    "list_scans",
    "merge_labels",
]

CLASS_NAMES = ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus")
# The files tell medial from lateral tibial cartilage (3, 4) and meniscus (5, 6); the paper does not.
FILE_LABEL_TO_CLASS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 4}
SKM_TEA, SYNTHETIC = "SKM-TEA", "Synthetic knees"


def class_of_file_label(class_names: Sequence[str] = CLASS_NAMES) -> UInt8[np.ndarray, " file_label"]:
    """Return the class of each label of a segmentation file, from label 0: merged for SKM-TEA, else as in the file."""
    if tuple(class_names) == CLASS_NAMES:
        return np.array([FILE_LABEL_TO_CLASS[label] for label in range(len(FILE_LABEL_TO_CLASS))], np.uint8)
    return np.arange(len(class_names) + 1, dtype=np.uint8)


def merge_labels(
    labels: Integer[np.ndarray, "*shape"], class_names: Sequence[str] = CLASS_NAMES
) -> UInt8[np.ndarray, "*shape"]:
    """Turn the labels of a file into classes: 0 background, then 1, 2, ... in the order of `class_names`.

    Raises:
        ValueError: a label has no class.
    """
    table = class_of_file_label(class_names)
    if labels.size and not (labels.min() >= 0 and labels.max() < len(table)):
        raise ValueError(
            f"`labels` must be in 0..{len(table) - 1} for the classes {', '.join(class_names)}, got {labels.min()} to "
            f"{labels.max()}. Other classes are named by `segmentation_classes` of the annotations."
        )
    return table[labels]


def known_data(scans: Iterable["SkmTeaScan"]) -> str | None:
    """Return `SKM_TEA` or `SYNTHETIC`, by the names and the size of the scans; `None` for other data."""
    scans = list(scans)
    if all(re.fullmatch(r"MTR_\d{3}", scan.scan_id) and scan.matrix_shape[:2] == (512, 512) for scan in scans):
        return SKM_TEA
    return SYNTHETIC if all(scan.scan_id.startswith("SYN_") for scan in scans) else None


@dataclass(frozen=True)
class SkmTeaScan:
    """One scan on disk. Nothing is read before a method asks for it.

    Attributes:
        scan_id: name of the scan, for example ``"MTR_005"``.
        subject_id: identifier of the subject, who may have several scans.
        kspace_file: the HDF5 file.
        labels_file: the NIfTI file of the segmentation; may not exist.
        matrix_shape: matrix size (slices, y, x).
        voxel_size_mm: size of a voxel (slice, y, x) in mm.
        orientation: directions in which the axes run, for example ``("SI", "AP", "LR")``.
        findings: findings that the annotation lists for the anatomy, in synthetic scans.
        class_names: names of the classes of the segmentation, from 1.
    """

    scan_id: str
    subject_id: Any
    kspace_file: Path
    labels_file: Path
    matrix_shape: tuple[int, int, int]
    voxel_size_mm: tuple[float, float, float]
    orientation: tuple[str, str, str]
    findings: Any = field(default=None, hash=False)
    class_names: tuple[str, ...] = CLASS_NAMES

    @property
    def n_slices(self) -> int:
        """Number of axial slices."""
        return self.matrix_shape[0]

    @property
    def mask_names(self) -> list[str]:
        """Names of the stored masks, such as ``"poisson_4.0x"``, by increasing acceleration."""
        return list(scan_files.mask_names(self.scan_id, str(self.kspace_file)))

    @property
    def foreground(self) -> Bool[np.ndarray, " slice"]:
        """For each slice, whether any tissue class occurs in it. Raises as `labels` does."""
        return np.asarray(self._labels().counts[:, 1:].any(axis=1))

    def target(self, index: int | slice = slice(None), echo: int = 1) -> Complex64[np.ndarray, "*slices y x"]:
        """Return the fully sampled, coil-combined image of one slice or a range of slices, in the scanner's unit.

        Args:
            index: a slice number, or a ``slice``.
            echo: number of the echo, 1 or 2; the paper uses 1.

        Raises:
            IndexError: for a slice or an echo outside the scan.
            DataFault: a `ValueError`; the file is missing or damaged, has another shape or values that are not finite.
        """
        if isinstance(index, slice):
            numbers = range(self.n_slices)[index]
            images = np.empty((len(numbers), *self.matrix_shape[1:]), np.complex64)
            for image, number in zip(images, numbers, strict=True):
                image[:] = self.target(number, echo)
            return images
        return scan_files.read_target(*self._checked("target", index, echo), echo)

    def kspace(self, index: int, echo: int = 1) -> Complex64[np.ndarray, "coil y x"]:
        """Return the fully sampled k-space of one slice. See `target` for the arguments and errors."""
        return scan_files.read_kspace(*self._checked("kspace", index, echo), echo)

    def coil_maps(self, index: int) -> Complex64[np.ndarray, "coil y x"]:
        """Return the coil sensitivity maps of one slice. See `target` for the errors."""
        return scan_files.read_coil_maps(*self._checked("maps", index))

    def mask(self, acceleration: float | int) -> Bool[np.ndarray, "y x"]:
        """Return the stored sampling mask, zero-padded about the centre to the size of k-space; true where measured.

        Args:
            acceleration: acceleration on the acquired grid (not on the padded one), for example 8.

        Raises:
            DataFault: a `ValueError`; the file holds no mask of this acceleration.
        """
        return scan_files.read_mask(self.scan_id, str(self.kspace_file), acceleration).copy()

    def labels(self, index: int | slice = slice(None)) -> UInt8[np.ndarray, "*slices y x"]:
        """Return the manual segmentation of one slice or a range of slices, in the classes of `class_names`.

        The file is read as a whole when the first slice is asked for, and remembered in little memory.

        Raises:
            IndexError: for a slice outside the scan.
            DataFault: a `ValueError`; there is no segmentation, or it has another shape or labels without a class.
        """
        labels = self._labels()
        if isinstance(index, slice):
            numbers = range(self.n_slices)[index]
            merged = np.zeros((len(numbers), *self.matrix_shape[1:]), np.uint8)
            for label, number in zip(merged, numbers, strict=True):
                label[:] = merge_labels(labels[number], self.class_names)
            return merged
        return merge_labels(labels[self._slice_number(index)], self.class_names)

    def _labels(self) -> FileLabels:
        return file_labels(self.scan_id, str(self.labels_file), self.matrix_shape)

    def _slice_number(self, index: int) -> int:
        if not 0 <= index < self.n_slices:
            raise IndexError(
                f"`index` {index} is outside the scan {self.scan_id}: it has slices 0..{self.n_slices - 1}."
            )
        return int(index)

    def _checked(self, key: str, index: int, echo: int | None = None) -> tuple[str, str, int]:
        """Scan, file and slice as `scan_files` wants them."""
        path = str(self.kspace_file)
        shape = scan_files.array_shape(self.scan_id, path, key)
        if len(shape) != 5 or shape[:3] != self.matrix_shape:
            raise scan_files.DataFault(
                self.scan_id, path, f"`{key}` has shape {shape}, but the annotations say {self.matrix_shape}."
            )
        if echo is not None and not 1 <= echo <= shape[3]:
            raise IndexError(f"`echo` {echo} is not in {path}: it has echoes 1..{shape[3]}.")
        return self.scan_id, path, self._slice_number(index)


def list_scans(root: str | Path, split: str) -> list[SkmTeaScan]:
    """Return the scans of a split, in the order of its annotation file.

    Args:
        root: the data folder (see the head of this module).
        split: name of an annotation file, for example ``"train"``.

    Raises:
        ValueError: for an unknown split, or annotations that cannot be understood.
        FileNotFoundError: if the annotation file of a usual split is missing.
    """
    root = Path(root)
    return [
        SkmTeaScan(
            scan_id=entry["scan_id"],
            subject_id=entry["subject_id"],
            kspace_file=Path(scan_files.kspace_path(str(root), entry["scan_id"])),
            labels_file=Path(scan_files.labels_path(str(root), entry["scan_id"])),
            matrix_shape=entry["matrix_shape"],
            voxel_size_mm=entry["voxel_spacing"],
            orientation=entry["orientation"],
            findings=entry["findings"],
            class_names=entry.get("segmentation_classes", CLASS_NAMES),
        )
        for entry in scan_files.read_annotations(str(root), split)
    ]


class SkmTeaSlices(Dataset):
    """Axial slices of fully sampled images with their labels, for training.

    An item is a dictionary: ``image`` float32 ``(2, y, x)``, real and imaginary part, divided by the 0.99 quantile of
    its magnitude; ``labels`` int64 ``(y, x)``, 0 background, then the classes of the scans (unless `with_labels` is
    false); ``scan_id`` str; ``slice`` int.

    Args:
        scans: scans from `list_scans`.
        echo: number of the echo, 1 or 2; the paper uses 1.
        with_labels: flag that says whether items carry labels. Foreground can be looked up in either case.
        preload: flag to hold all images in memory (``8 * y * x`` bytes a slice), for data sets that fit. Otherwise a
            slice is read from its file when asked for, with handles of each process's own.
        size: size (y, x) to which slices are cropped or zero-padded about the centre; needed where scans differ in
            size.
        quantile: quantile of the magnitude that becomes 1.
        chosen: numbers of the slices to use of each scan, in increasing order; all of them if not given.

    Raises:
        ValueError: if there is no scan or no slice, or the scans differ in size and `size` is not given.
    """

    def __init__(
        self,
        scans: Sequence[SkmTeaScan],
        echo: int = 1,
        with_labels: bool = True,
        preload: bool = False,
        size: tuple[int, int] | None = None,
        quantile: float | int = 0.99,
        chosen: Sequence[Integer[np.ndarray, " chosen"]] | None = None,
    ) -> None:
        """Index the slices; with `preload`, read them."""
        if not scans:
            raise ValueError("`scans` is empty: there is nothing to train on. Check the data folder and the split.")
        self._rows = [np.arange(scan.n_slices) for scan in scans] if chosen is None else list(chosen)
        if not sum(len(rows) for rows in self._rows):
            raise ValueError(f"`chosen` leaves no slice of {len(scans)} scans: there is nothing to train on.")
        sizes = {scan.matrix_shape[1:] for scan in scans}
        if size is None and len(sizes) > 1:
            raise ValueError(
                f"`scans` have slices of different sizes {sorted(sizes)}. Pass `size`, for example {max(sizes)}."
            )
        self.scans = list(scans)
        self.echo = echo
        self.with_labels = with_labels
        self.size = tuple(size) if size is not None else sizes.pop()
        self.quantile = quantile
        self._first = np.cumsum([0, *(len(rows) for rows in self._rows)])
        self._foreground: np.ndarray | None = None
        self._images: torch.Tensor | None = None
        if preload:
            images = torch.empty(len(self), 2, *self.size)
            for number, (scan, rows) in enumerate(zip(self.scans, self._rows, strict=True)):
                if len(rows):
                    read = slice(int(rows[0]), int(rows[-1]) + 1)
                    images[self._first[number] : self._first[number + 1]] = self._prepare(scan, read, rows - rows[0])
            self._images = images

    def __len__(self) -> int:
        """Number of slices of all scans."""
        return int(self._first[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Slice number `index`, counted through all scans. See the class for what it holds."""
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in 0..{len(self) - 1}, got {index}.")
        number, row = self.locate(index)
        scan = self.scans[number]
        image = self._images[index] if self._images is not None else self._prepare(scan, row)
        item = {"image": image, "scan_id": scan.scan_id, "slice": row}
        if self.with_labels:
            item["labels"] = center_fit(torch.from_numpy(scan.labels(row)).long(), self.size)
        return item

    def locate(self, index: int) -> tuple[int, int]:
        """Return the position in `scans`, and slice within that scan, of item `index`."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return number, int(self._rows[number][index - self._first[number]])

    @property
    def foreground(self) -> Bool[np.ndarray, " item"]:
        """For each slice, whether any tissue class occurs in it. Reads all segmentations at first use."""
        if self._foreground is None:
            pairs = zip(self.scans, self._rows, strict=True)
            self._foreground = np.concatenate([scan.foreground[rows] for scan, rows in pairs])
        return self._foreground

    def _prepare(self, scan: SkmTeaScan, index: int | slice, kept: np.ndarray | None = None) -> torch.Tensor:
        target = scan.target(index, self.echo)
        try:
            image, _ = scale_to_quantile(torch.from_numpy(target if kept is None else target[kept]), self.quantile)
        except ValueError as error:
            raise ValueError(f"scan {scan.scan_id}, slice {index}: {error}") from error
        return center_fit(complex_to_channels(image), self.size)
