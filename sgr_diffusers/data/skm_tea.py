"""A folder in the SKM-TEA raw-data layout enters; scans, their slices and a PyTorch data set for training leave.

Layout (SKM-TEA v1.0.0)::

    <root>/annotations/v1.0.0/{train,val,test}.json
    <root>/files_recon_calib-24/<scan>.h5                      kspace, maps, target, masks/poisson_<acceleration>x
    <root>/segmentation_masks/raw-data-track/<scan>.nii.gz     labels 0..6

Files are indexed (x, ky, kz), here called (slice, y, x): axial slices in anatomical order, rows anterior-posterior,
columns left-right. k-space is hybrid: the slice direction is an image axis already.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Complex64, Integer, UInt8
from torch.utils.data import Dataset

from sgr_diffusers.data.scan_files import kspace_path, labels_path, read_annotations
from sgr_diffusers.data.transforms import center_fit, scale_to_quantile
from sgr_diffusers.mri.operators import complex_to_channels

__all__ = [
    "CLASS_NAMES",
    "FILE_LABEL_TO_CLASS",
    "SPLITS",
    "SkmTeaScan",
    "SkmTeaSlices",
    "list_scans",
    "merge_labels",
]

CLASS_NAMES = ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus")
# The files tell medial from lateral tibial cartilage (3, 4) and meniscus (5, 6); the paper does not.
FILE_LABEL_TO_CLASS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 4}
SPLITS = ("train", "val", "test")


def merge_labels(labels: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """File labels 0..6 to the paper's classes: 0 background, then 1..4 in the order of `CLASS_NAMES`.

    Raises:
        ValueError: if a label outside 0..6 occurs.
    """
    if labels.size and not (labels.min() >= 0 and labels.max() < len(FILE_LABEL_TO_CLASS)):
        raise ValueError(
            f"`labels` must be in 0..{len(FILE_LABEL_TO_CLASS) - 1}, got {labels.min()} to {labels.max()}. "
            "Is this a segmentation of the SKM-TEA raw-data track?"
        )
    table = np.array([FILE_LABEL_TO_CLASS[label] for label in range(len(FILE_LABEL_TO_CLASS))], dtype=np.uint8)
    return table[labels]


@lru_cache(maxsize=64)
def _open_in_process(path: Path, process_id: int) -> h5py.File:
    return h5py.File(path, "r")


def _open_h5(path: Path) -> h5py.File:
    """A handle of this process alone: HDF5 handles do not survive a fork, as in a DataLoader worker."""
    try:
        return _open_in_process(path, os.getpid())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing. Check the data folder, or take the scan out of the split."
        ) from None
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}). Fetch or write it again.") from error


@dataclass(frozen=True)
class SkmTeaScan:
    """One scan on disk. Nothing is read before a method asks for it.

    Attributes:
        scan_id: for example ``"MTR_005"``.
        subject_id: subjects may have several scans.
        kspace_file: the HDF5 file.
        labels_file: the NIfTI file of the segmentation; may not exist.
        matrix_shape: (slices, y, x).
        voxel_size_mm: (slice, y, x).
        orientation: directions in which the axes run, for example ``("SI", "AP", "LR")``.
        findings: what the annotation says of the anatomy, in synthetic scans.
    """

    scan_id: str
    subject_id: Any
    kspace_file: Path
    labels_file: Path
    matrix_shape: tuple[int, int, int]
    voxel_size_mm: tuple[float, float, float]
    orientation: tuple[str, str, str]
    findings: Any = field(default=None, hash=False)

    @property
    def n_slices(self) -> int:
        """Number of axial slices."""
        return self.matrix_shape[0]

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel in mm^3."""
        return float(np.prod(self.voxel_size_mm))

    @property
    def mask_names(self) -> list[str]:
        """Names of the stored masks, such as ``"poisson_4.0x"``, by increasing acceleration."""
        names = list(self._member("masks"))
        return sorted(names, key=lambda name: (len(name), name))

    def target(self, index: int | slice = slice(None), echo: int = 1) -> Complex64[np.ndarray, "*slices y x"]:
        """Fully sampled, coil-combined image of one slice or a range of slices, in the scanner's unit.

        Args:
            index: a slice number, or a ``slice``.
            echo: 1 or 2; the paper uses 1.

        Raises:
            IndexError: for a slice or an echo outside the scan.
        """
        return self._read("target", index, echo)[..., 0]

    def kspace(self, index: int, echo: int = 1) -> Complex64[np.ndarray, "coil y x"]:
        """Fully sampled k-space of one slice. See `target` for the arguments and errors."""
        return np.ascontiguousarray(np.moveaxis(self._read("kspace", index, echo), -1, 0))

    def coil_maps(self, index: int) -> Complex64[np.ndarray, "coil y x"]:
        """Coil sensitivity maps of one slice."""
        return np.ascontiguousarray(np.moveaxis(self._read("maps", index, None)[..., 0], -1, 0))

    def mask(self, acceleration: float | int) -> Bool[np.ndarray, "y x"]:
        """Stored sampling mask, zero-padded about the centre to the size of k-space; true where measured.

        Args:
            acceleration: of the acquired grid (not of the padded one), for example 8.

        Raises:
            ValueError: if the file holds no mask of this acceleration.
        """
        from sgr_diffusers.mri.masks import pad_mask

        name = f"poisson_{float(acceleration):.1f}x"
        if name not in self._member("masks"):
            raise ValueError(
                f"`acceleration` {acceleration}: {self.kspace_file} has only the masks {self.mask_names}."
            )
        return pad_mask(self._member("masks")[name][()], self.matrix_shape[1:])

    def labels(self) -> UInt8[np.ndarray, "slice y x"]:
        """Manual segmentation of the whole scan in the four merged classes (reading one slice costs as much).

        Raises:
            FileNotFoundError: if there is no segmentation file.
            ValueError: if it has another shape than the scan, or labels outside 0..6.
        """
        import nibabel

        if not self.labels_file.exists():
            raise FileNotFoundError(f"{self.labels_file} is missing: scan {self.scan_id} has no segmentation.")
        labels = np.asarray(nibabel.load(self.labels_file).dataobj)
        if labels.shape != self.matrix_shape:
            raise ValueError(f"{self.labels_file} has shape {labels.shape}, but the scan has {self.matrix_shape}.")
        try:
            return merge_labels(labels.astype(np.int64, copy=False))
        except ValueError as error:
            raise ValueError(f"{self.labels_file}: {error}") from error

    def _member(self, key: str) -> Any:
        file = _open_h5(self.kspace_file)
        if key not in file:
            raise ValueError(f"{self.kspace_file} holds no `{key}`, only {sorted(file)}: not a SKM-TEA raw-data file.")
        return file[key]

    def _read(self, key: str, index: int | slice, echo: int | None) -> np.ndarray:
        data = self._member(key)
        if data.shape[:3] != self.matrix_shape:
            raise ValueError(
                f"`{key}` of {self.kspace_file} has shape {data.shape}, but the annotations say {self.matrix_shape}."
            )
        if isinstance(index, int) and not 0 <= index < self.n_slices:
            raise IndexError(
                f"`index` {index} is outside the scan {self.scan_id}: it has slices 0..{self.n_slices - 1}."
            )
        if echo is not None and not 1 <= echo <= data.shape[3]:
            raise IndexError(f"`echo` {echo} is not in {self.kspace_file}: it has echoes 1..{data.shape[3]}.")
        if echo is None:
            return data[index]
        if isinstance(index, int) and (data.chunks is None or data.chunks[3] >= data.shape[3]):
            return data[index][:, :, echo - 1]  # echoes side by side: faster as a whole
        return data[index, :, :, echo - 1]


def list_scans(root: str | Path, split: str) -> list[SkmTeaScan]:
    """Scans of a split, in the order of its annotation file.

    Args:
        root: the data folder (see the head of this module).
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ValueError: for an unknown split, or annotations that cannot be understood.
        FileNotFoundError: if there is no annotation file.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")
    root = Path(root)
    return [
        SkmTeaScan(
            scan_id=entry["scan_id"],
            subject_id=entry["subject_id"],
            kspace_file=Path(kspace_path(str(root), entry["scan_id"])),
            labels_file=Path(labels_path(str(root), entry["scan_id"])),
            matrix_shape=entry["matrix_shape"],
            voxel_size_mm=entry["voxel_spacing"],
            orientation=entry["orientation"],
            findings=entry["findings"],
        )
        for entry in read_annotations(str(root), split)
    ]


class SkmTeaSlices(Dataset):
    """Axial slices of fully sampled images with their labels, for training.

    An item is a dictionary: ``image`` float32 ``(2, y, x)``, real and imaginary part, divided by the 0.99 quantile of
    its magnitude; ``labels`` int64 ``(y, x)``, 0 background and 1..4 as `CLASS_NAMES` (unless `with_labels` is false);
    ``scan_id`` str; ``slice`` int.

    Args:
        scans: from `list_scans`.
        echo: 1 or 2; the paper uses 1.
        with_labels: whether items carry labels. Foreground can be looked up in either case.
        preload: hold all images in memory (``8 * y * x`` bytes a slice), for data sets that fit. Otherwise a slice is
            read from its file when asked for, with handles of each process's own.
        size: (y, x) to which slices are cropped or zero-padded about the centre; needed where scans differ in size.
        quantile: of the magnitude that becomes 1.
        chosen: for each scan the numbers of its slices to use, in increasing order; all of them if not given.

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
        self._labels: dict[int, tuple[int, np.ndarray]] = {}
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
            item["labels"] = self._labels_of(number, row)
        return item

    def locate(self, index: int) -> tuple[int, int]:
        """Position in `scans`, and slice within that scan, of item `index`."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return number, int(self._rows[number][index - self._first[number]])

    @property
    def foreground(self) -> Bool[np.ndarray, " item"]:
        """For each slice, whether any tissue class occurs in it. Reads all segmentations at first use."""
        if self._foreground is None:
            flags = np.zeros(len(self), dtype=bool)
            for number, (scan, start) in enumerate(zip(self.scans, self._first, strict=False)):
                first, cropped = self._load_labels(number)
                of_scan = np.zeros(scan.n_slices, dtype=bool)
                of_scan[first : first + len(cropped)] = cropped.any(axis=(1, 2))
                flags[start : start + len(self._rows[number])] = of_scan[self._rows[number]]
            self._foreground = flags
        return self._foreground

    def _prepare(self, scan: SkmTeaScan, index: int | slice, kept: np.ndarray | None = None) -> torch.Tensor:
        target = scan.target(index, self.echo)
        try:
            image, _ = scale_to_quantile(torch.from_numpy(target if kept is None else target[kept]), self.quantile)
        except ValueError as error:
            raise ValueError(f"scan {scan.scan_id}, slice {index}: {error}") from error
        return center_fit(complex_to_channels(image), self.size)

    def _load_labels(self, number: int) -> tuple[int, np.ndarray]:
        # Most slices of a scan show no tissue class; those before the first and after the last one are not kept.
        if number not in self._labels:
            labels = self.scans[number].labels()
            occupied = np.flatnonzero(labels.any(axis=(1, 2)))
            first, last = (occupied[0], occupied[-1] + 1) if occupied.size else (0, 0)
            self._labels[number] = (int(first), labels[first:last].copy())
        return self._labels[number]

    def _labels_of(self, number: int, row: int) -> torch.Tensor:
        first, kept = self._load_labels(number)
        if not first <= row < first + len(kept):
            return torch.zeros(self.size, dtype=torch.int64)
        return center_fit(torch.from_numpy(kept[row - first]).long(), self.size)
