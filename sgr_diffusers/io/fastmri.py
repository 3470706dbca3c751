"""Reader of fastMRI HDF5 files (knee or brain, multi- or single-coil)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool

from .cartesian_header import CartesianHeader, read_header
from .hdf5_file import child, find_group, open_hdf5, read_dataset, read_selections, read_text
from .kspace_checks import check_centre, slice_energy
from .raw_slices import RawSlices, check_finite, common_mask, slice_indices, warn_suspect
from .readout import crop_field_of_view

if TYPE_CHECKING:
    import h5py

__all__ = ["read_fastmri"]


def read_fastmri(
    path: str | os.PathLike,
    slices: range | slice | Iterable[int] | None = None,
    mask: np.ndarray | None = None,
    remove_oversampling: bool = True,
    group: str | None = None,
) -> RawSlices:
    """Read slices of a fastMRI file: rows are the readout, columns the phase encoding.

    Columns that the scanner filled with zeros (partial Fourier, outside the acquired matrix) are not measurements.

    Args:
        path: file with `kspace` (slice, coil, rows, columns), or (slice, rows, columns) for a single coil, and the
            header `ismrmrd_header`; files of the test sets hold `mask` (columns), too.
        slices: slices to read, as a range, a slice or indices from 0; `None` for all.
        mask: mask (columns,) or (rows, columns), true where k-space is to count as measured: retrospective
            undersampling. Its rows are those of the result. `None`: the mask of the file, if it has one, else all
            that was acquired.
        remove_oversampling: flag to crop the field of view along the readout to that of the image.
        group: HDF5 group of the scan; `None` for the only one there is.

    Returns:
        Slices without maps and fully sampled image: maps are estimated from the calibration lines, and the file's own
        reference images are root sums of squares of another matrix.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError, BlockingIOError: this user may not read the file, or another program is writing it.
        ValueError: the file is damaged or of another layout, is not Cartesian, its header contradicts the k-space, it
            holds values that are not finite, or the mask does not fit.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        node = find_group(file, path, group)
        data, xml = child(node, "kspace"), child(node, "ismrmrd_header")
        if not hasattr(data, "ndim") or not hasattr(xml, "shape"):
            raise ValueError(f"{path} has {sorted(node)}, not `kspace` and `ismrmrd_header`: not a fastMRI file.")
        if data.ndim not in (3, 4) or data.dtype.kind != "c":
            raise ValueError(
                f"`kspace` of {path} must be complex (slice, coil, rows, columns) or (slice, rows, columns), got "
                f"{data.dtype} {data.shape}."
            )
        header = read_header(read_text(xml, path), path)
        n_slices = data.shape[0]
        _check_header(header, data.shape, path)
        indices = slice_indices(slices, n_slices, path)
        kspace = read_selections(data, path, [(index,) for index in indices])
        stored = _stored_mask(node, n_slices, data.shape[-1], path)
    check_finite(kspace, "kspace", path, indices)
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    check_centre(
        slice_energy(kspace), path, ("row", "column"), "Shift k-space (numpy.fft.fftshift), or correct its padding."
    )
    columns = np.asarray(kspace.any(axis=(1, 2)))  # (slice, column)
    if stored is not None:
        columns &= stored[list(indices)] if stored.ndim == 2 else stored
    if remove_oversampling and header.readout_kept < kspace.shape[2]:
        lines, _ = crop_field_of_view(kspace.swapaxes(-1, -2), np.ones(kspace.shape[2], bool), header.readout_kept)
        kspace = np.ascontiguousarray(lines.swapaxes(-1, -2))
    size = kspace.shape[2:]
    sampled = np.broadcast_to(columns[:, None], (len(kspace), *size))
    if mask is not None:
        if mask.shape not in (size, size[1:]):
            raise ValueError(f"`mask` must be {size[1:]} or {size}, got {mask.shape}.")
        sampled = sampled & mask.astype(bool)
    return RawSlices(
        kspace=torch.from_numpy(np.where(sampled[:, None], kspace, 0)),
        mask=torch.from_numpy(common_mask(sampled).copy()),
        slice_indices=indices,
        voxel_size_mm=header.known_voxel_size(
            (
                header.slice_thickness_mm,
                header.encoded_fov_mm[0] / header.encoded_matrix[0],
                header.encoded_fov_mm[1] / kspace.shape[3],
            ),
            path,
        ),
        scan_id=path.stem,
        n_slices=n_slices,
    )


def _check_header(header: CartesianHeader, shape: tuple[int, ...], path: Path) -> None:
    """Hold the header against the shape of k-space."""
    header.check_imaging(path)
    n_x, n_y, n_z = header.encoded_matrix
    if shape[-2] != n_x:
        raise ValueError(
            f"`kspace` of {path} has {shape[-2]} rows, but the header a matrix of {n_x} readout samples "
            "(encodedSpace, x): one of them has another oversampling. Correct the header."
        )
    if n_z > 1:
        raise ValueError(
            f"the header of {path} has {n_z} partitions (encodedSpace, z), but a fastMRI file holds 2-D slices. Turn "
            "3-D k-space into image space along one axis, and save it as .npy or in SKM-TEA's layout."
        )
    if shape[-1] != n_y:
        warn_suspect(
            f"`kspace` of {path} has {shape[-1]} columns, but the header a matrix of {n_y} lines (encodedSpace, y): "
            f"the field of view of {header.encoded_fov_mm[1]:g} mm is taken as that of {shape[-1]} columns."
        )
    if header.slice.maximum is not None:
        stated = header.slice.maximum - (header.slice.minimum or 0) + 1
        if stated != shape[0]:
            warn_suspect(f"the header of {path} states {stated} slices (encodingLimits), but `kspace` has {shape[0]}.")


def _stored_mask(
    node: "h5py.Group", n_slices: int, n_columns: int, path: Path
) -> Bool[np.ndarray, " column"] | Bool[np.ndarray, "slice column"] | None:
    data = child(node, "mask")
    if not hasattr(data, "shape"):
        return None
    shape = tuple(n for n in data.shape if n != 1) or (1,)
    if shape not in ((n_columns,), (n_slices, n_columns)):
        raise ValueError(
            f"`mask` of {path} must have {n_columns} columns as `kspace`, or a row of them for each of its {n_slices} "
            f"slices, got {data.shape}."
        )
    stored = read_dataset(data, path).reshape(shape)
    if not np.isin(stored, (0, 1)).all():
        raise ValueError(f"`mask` of {path} must hold only 0 and 1, got other values.")
    return stored.astype(bool)
