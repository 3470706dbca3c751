"""Reads the slices of a scan as they are needed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..io.dicom_series import DicomSeries, place_in_series
from ..io.raw_file import count_single_slices, read_raw
from ..io.raw_slices import RawSlices, check_voxel_size, collected_suspicions, slice_indices, warn_suspect

__all__ = ["ScanFile", "ScanSource", "read_scan"]


@dataclasses.dataclass(frozen=True)
class ScanFile:
    """A file of raw k-space, and how it is read.

    Attributes:
        file: raw k-space of any kind that `io.read_raw` reads.
        echo: number of the echo from 1.
        mask: stored mask, or acceleration, as for `reconstruct_file`.
        voxel_size_mm: edge lengths (slice, y, x); `None` for those of the file or of the annotations beside it.
        n_coils: number of virtual coils to compress to; `None` keeps the coils.
        repetition: number of the repetition from 0.
        group: HDF5 group of the scan; `None` for the only one there is.
        needs_size: whether an unknown voxel size is an error; bounds are volumes, a plain reconstruction is none.
    """

    file: str | Path
    echo: int = 1
    mask: float | str | None = None
    voxel_size_mm: Sequence[float] | None = None
    n_coils: int | None = None
    repetition: int = 0
    group: str | None = None
    needs_size: bool = True

    def read(self, slices: slice | Sequence[int]) -> RawSlices:
        """Read slices, as `read_scan` does."""
        return read_scan(self.file, slices, *(getattr(self, entry.name) for entry in dataclasses.fields(self)[1:]))


class ScanSource:
    """The slices of a scan that are reconstructed, read from the file part by part where that is possible.

    Slices of SKM-TEA, fastMRI, 2-D ISMRMRD and .npy files and of BART's 2-D k-space are read as they are needed; of
    other files, of calibrated bounds and beside a DICOM series all of them are read at once.

    Args:
        scan: file, and how it is read.
        slices: range of slices.
        series: DICOM series of the same scan, if there is one.
        at_once: whether to read all slices at once.

    Attributes:
        head: first slices, with the geometry of all of them.
        is_whole: whether all slices are held in memory.
        numbers: number of each slice in the scan.
        placement: images of the series that the slices are; `None` without a series.
        suspicions: texts of the `SuspectDataWarning`s.

    Raises:
        ValueError, OSError: the file or a slice cannot be used.
    """

    def __init__(self, scan: ScanFile, slices: slice, series: DicomSeries | None, at_once: bool):
        """Read all slices, or the first two, which have the geometry of all."""
        self._scan, self.placement = scan, None
        with collected_suspicions() as self.suspicions:
            n_slices = None
            if not at_once and series is None:
                n_slices = count_single_slices(scan.file, scan.echo, scan.repetition, scan.group)
            self.is_whole = n_slices is None
            if n_slices is None:
                self.head = scan.read(slices)
                self.numbers = self.head.slice_indices
            else:
                self.numbers = slice_indices(slices, n_slices, Path(scan.file))
                self.head = scan.read(self.numbers[:2])
            if series is not None:
                self.head, self.placement = place_in_series(self.head, series)

    def read(self, numbers: Sequence[int]) -> RawSlices:
        """Return some of the slices, by their numbers in the scan."""
        if not self.is_whole:
            return self._scan.read(numbers)
        chosen = [self.numbers.index(number) for number in numbers]
        if chosen == list(range(len(self.numbers))):
            return self.head
        head = self.head
        return dataclasses.replace(
            head,
            kspace=head.kspace[chosen],
            mask=head.mask if head.mask.ndim == 2 else head.mask[chosen],
            slice_indices=tuple(numbers),
            coil_maps=None if head.coil_maps is None else head.coil_maps[chosen],
            fully_sampled=None if head.fully_sampled is None else head.fully_sampled[chosen],
        )


def read_scan(
    file: str | Path,
    slices: slice | Sequence[int] = slice(None),
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
            f"`voxel-size` is needed: {file} does not state it, and no annotations lie beside it. Give its edge "
            "lengths in mm, for SKM-TEA by --voxel-size 0.3125 0.3125 0.8 (in Python, voxel_size_mm=...)."
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
