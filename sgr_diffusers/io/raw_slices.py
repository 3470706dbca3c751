"""What every reader of raw data returns, and the checks that they share."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Complex, Float
from torch import Tensor

if TYPE_CHECKING:
    import h5py

__all__ = ["RawSlices", "check_finite", "open_hdf5", "slice_indices"]


@dataclass(frozen=True)
class RawSlices:
    """Slices of one scan, from whichever kind of file.

    Attributes:
        kspace: Complex64 `(slice, coil, y, x)`, in the scanner's unit. Zero where `mask` is false.
        mask: Bool `(y, x)`, padded about the centre to the size of the k-space; true where measured. Read without
            a mask: true where any of these slices and coils has a value other than zero.
        coil_maps: Complex64 `(slice, coil, y, x)`, or `None` if they were not asked for.
        target: Complex64 `(slice, y, x)`, the fully sampled image in the unit of `kspace`, or `None` if not asked for.
        slice_indices: Index in the scan of each slice.
        voxel_size_mm: Size (slice, y, x) in mm, from slice to slice of the scan; `None` where it is not known.
        orientation: Direction in which (slice, y, x) run, such as ("SI", "AP", "LR"), or `None`.
        scan_id: Name of the scan: the file's name without its ending.
        n_slices: Number of slices that the scan has on disk.
        affine: From places (slice, y, x) in these arrays to mm in the world axes of NIfTI (right, anterior,
            superior), where the file tells where the slices lay in the patient.
    """

    kspace: Complex[Tensor, "slice coil y x"]
    mask: Bool[Tensor, "y x"]
    coil_maps: Complex[Tensor, "slice coil y x"] | None
    target: Complex[Tensor, "slice y x"] | None
    slice_indices: tuple[int, ...]
    voxel_size_mm: tuple[float, float, float] | None
    orientation: tuple[str, str, str] | None
    scan_id: str
    n_slices: int
    affine: Float[np.ndarray, "4 4"] | None = None


def open_hdf5(path: str | os.PathLike) -> "h5py.File":
    """Open a file to read, if all that it holds lies in the file itself.

    A raw file may come from anybody. One with links to other files, or with datasets whose values lie in other files,
    would make whoever reads it hand out files of this machine.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or not HDF5, or refers to other files.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` {path} is not a file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"`path` {path} cannot be opened as HDF5: it is truncated or of another format ({error}). "
            "Download it again."
        ) from error
    try:
        _check_self_contained(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _check_self_contained(file: "h5py.File", path: Path) -> None:
    """Refuse links out of the file, external storage, and virtual datasets of other files."""
    import h5py

    links: list[tuple[str, object]] = []
    try:  # follows no soft or external link; an exception would not get through HDF5, so that nothing is checked here
        file.visititems_links(lambda name, link: links.append((name, link)))
        for name, link in links:
            outside = isinstance(link, h5py.ExternalLink)
            item = file[name] if isinstance(link, h5py.HardLink) else None
            if isinstance(item, h5py.Dataset):
                outside = bool(item.external) or (
                    item.is_virtual and any(source.file_name != "." for source in item.virtual_sources())
                )
            if outside:
                raise ValueError(
                    f"`{name}` of {path} refers to another file, which is not followed. Copy what it refers to into "
                    "the file (`h5copy -f ext` does so with links)."
                )
    except (SystemError, TypeError, RuntimeError, LookupError, OSError) as error:
        raise ValueError(f"`path` {path} is damaged, or has links of an unknown kind ({error!r}).") from error


def check_finite(array: Complex[np.ndarray, "slice *rest"], name: str, path: Path, indices: Iterable[int]) -> None:
    """Check slice by slice that all values are finite.

    Raises:
        ValueError: some are not; their slices are named.
    """
    if not np.isfinite(array).all():
        bad = [index for index, one in zip(indices, array, strict=True) if not np.isfinite(one).all()]
        raise ValueError(
            f"`{name}` of {path} has values that are not finite in the slices {bad}. Leave them out by `slices`."
        )


def slice_indices(slices: range | slice | Iterable[int] | None, n_slices: int, path: Path) -> tuple[int, ...]:
    """Numbers of the slices asked for, in that order.

    Raises:
        ValueError: there is none, or one is outside the scan.
    """
    if slices is None:
        return tuple(range(n_slices))
    if isinstance(slices, slice):
        bounds = [bound for bound in (slices.start, slices.stop) if bound is not None]
        if any(not 0 <= bound <= n_slices for bound in bounds):
            raise ValueError(f"`slices` must lie within the {n_slices} slices of {path}, got {slices}.")
        slices = range(n_slices)[slices]
    indices = tuple(int(index) for index in slices)
    outside = [index for index in indices if not 0 <= index < n_slices]
    if outside:
        raise ValueError(
            f"`slices` must be from 0 to {n_slices - 1}, the slices of {path}, got {outside[:5]} among them."
        )
    if not indices:
        raise ValueError(f"`slices` selects none of the {n_slices} slices of {path}.")
    return indices
