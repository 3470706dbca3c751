"""A fastMRI HDF5 file (knee or brain, multi- or single-coil) enters; complex64 k-space slices leave."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from .cartesian_header import CartesianHeader, read_header
from .raw_slices import RawSlices, check_finite, open_hdf5, slice_indices
from .readout import crop_field_of_view

__all__ = ["read_fastmri"]


def read_fastmri(
    path: str | os.PathLike,
    slices: range | slice | Iterable[int] | None = None,
    mask: np.ndarray | None = None,
    remove_oversampling: bool = True,
) -> RawSlices:
    """Read slices of a fastMRI file: rows are the readout, columns the phase encoding.

    Columns that the scanner filled with zeros (partial Fourier, outside the acquired matrix) are not measurements.

    Args:
        path: file with `kspace` (slice, coil, rows, columns), or (slice, rows, columns) for a single coil, and the
            header `ismrmrd_header`; files of the test sets hold `mask` (columns), too.
        slices: which slices, as a range, a slice or indices from 0; `None` for all.
        mask: (columns,) or (rows, columns), true where k-space is to count as measured: retrospective undersampling.
            Its rows are those of the result. `None`: the mask of the file, if it has one, else all that was acquired.
        remove_oversampling: crop the field of view along the readout to that of the image.

    Returns:
        Slices without maps and target: maps are estimated from the calibration lines, and the file's own reference
        images are root sums of squares of another matrix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or of another layout, holds values that are not finite, or the mask does not fit.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        if "kspace" not in file or "ismrmrd_header" not in file:
            raise ValueError(f"{path} has {sorted(file)}, not `kspace` and `ismrmrd_header`: not a fastMRI file.")
        data = file["kspace"]
        if data.ndim not in (3, 4) or data.dtype.kind != "c":
            raise ValueError(
                f"`kspace` of {path} must be complex (slice, coil, rows, columns) or (slice, rows, columns), got "
                f"{data.dtype} {data.shape}."
            )
        header = read_header(file["ismrmrd_header"][()], path)
        indices = slice_indices(slices, data.shape[0], path)
        try:
            kspace = np.stack([data[index] for index in indices]).astype(np.complex64, copy=False)
        except OSError as error:
            raise ValueError(f"`kspace` of {path} cannot be read ({error}). Download it again.") from error
        stored = file["mask"][()].astype(bool).ravel() if "mask" in file else None
        n_slices = data.shape[0]
    check_finite(kspace, "kspace", path, indices)
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    columns = kspace.any(axis=(0, 1, 2))
    if stored is not None:
        if stored.shape != columns.shape:
            raise ValueError(f"`mask` of {path} must have {columns.size} columns as `kspace`, got {stored.size}.")
        columns &= stored
    if remove_oversampling and header.readout_kept < kspace.shape[2]:
        lines, _ = crop_field_of_view(
            kspace.swapaxes(-1, -2), np.ones(kspace.shape[2], bool), _kept_rows(header, kspace.shape[2])
        )
        kspace = np.ascontiguousarray(lines.swapaxes(-1, -2))
    sampled = np.broadcast_to(columns, kspace.shape[2:])
    if mask is not None:
        if mask.shape not in (sampled.shape, sampled.shape[1:]):
            raise ValueError(f"`mask` must be {sampled.shape[1:]} or {sampled.shape}, got {mask.shape}.")
        sampled = sampled & mask.astype(bool)
    kspace = np.where(sampled, kspace, 0)
    return RawSlices(
        kspace=torch.from_numpy(kspace),
        mask=torch.from_numpy(sampled.copy()),
        coil_maps=None,
        target=None,
        slice_indices=indices,
        voxel_size_mm=(
            header.recon_fov_mm[2] / max(header.recon_matrix[2], 1),
            header.encoded_fov_mm[0] / header.encoded_matrix[0],
            header.encoded_fov_mm[1] / kspace.shape[3],
        ),
        orientation=None,
        scan_id=path.stem,
        n_slices=n_slices,
    )


def _kept_rows(header: CartesianHeader, n_rows: int) -> int:
    return max(round(n_rows * header.readout_kept / header.encoded_matrix[0]), 1)
