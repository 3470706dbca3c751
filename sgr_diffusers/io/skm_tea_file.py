"""Reads files of the SKM-TEA raw-data track: k-space, coil maps, fully sampled images and stored masks of a scan."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from ..mri.masks import pad_mask
from .raw_slices import RawSlices, check_finite, open_hdf5, slice_indices

if TYPE_CHECKING:
    import h5py

__all__ = ["read_skm_tea", "skm_tea_choices"]


def read_skm_tea(
    path: str | os.PathLike,
    slices: range | slice | Iterable[int] | None = None,
    echo: int = 1,
    mask: int | float | str | None = None,
    with_maps: bool = True,
    with_target: bool = True,
) -> RawSlices:
    """Read axial slices of a SKM-TEA HDF5 file, undersampled retrospectively by one of its stored masks.

    Args:
        path: A file of `files_recon_calib-24`, or of the same structure: `kspace` (slice, y, x, echo, coil), `maps`
            (slice, y, x, coil, 1), `target` (slice, y, x, echo, 1) and `masks/poisson_4.0x` and so on.
        slices: Which slices, as a range, a slice or indices from 0; `None` for all. Only these are read.
        echo: 1 or 2 for the two echoes of qDESS; the paper uses the first.
        mask: Acceleration of a stored mask (4 reads `masks/poisson_4.0x`; it counts the acquired grid, not the
            padded one), or its name. The k-space returned is multiplied by it. `None`: the k-space as it is stored.
        with_maps: Also read the coil maps.
        with_target: Also read the fully sampled image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not HDF5, lacks a dataset or the mask asked for (those there are
            named), has other dimensions, holds values that are not finite, or `slices` or `echo` is outside the scan.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        kspace_data = _dataset(file, path, "kspace", 5)
        n_slices, n_y, n_x, n_echoes, n_coils = kspace_data.shape
        if not 1 <= echo <= n_echoes:
            raise ValueError(f"`echo` must be from 1 to {n_echoes}, which {path} has, got {echo}.")
        indices = slice_indices(slices, n_slices, path)
        stored_mask = None if mask is None else _read_mask(file, path, mask, (n_y, n_x))
        selected = [(index, echo - 1) for index in indices]
        kspace = _read(kspace_data, path, [(i, slice(None), slice(None), e) for i, e in selected])
        coil_maps = target = None
        if with_maps:
            data = _dataset(file, path, "maps", 5, (n_slices, n_y, n_x, n_coils, 1))
            coil_maps = _read(data, path, [(i, slice(None), slice(None), slice(None), 0) for i in indices])
        if with_target:
            data = _dataset(file, path, "target", 5, (n_slices, n_y, n_x, n_echoes, 1))
            target = _read(data, path, [(i, slice(None), slice(None), e, 0) for i, e in selected])

    kspace = kspace.movedim(-1, 1).contiguous()  # (slice, coil, y, x)
    if stored_mask is None:
        sampled = (kspace != 0).flatten(0, 1).any(dim=0)
    else:
        sampled = torch.from_numpy(stored_mask)
        kspace = torch.where(sampled, kspace, 0)
    voxel_size_mm, orientation = _read_annotation(path)
    return RawSlices(
        kspace=kspace,
        mask=sampled,
        coil_maps=None if coil_maps is None else coil_maps.movedim(-1, 1).contiguous(),
        target=target,
        slice_indices=indices,
        voxel_size_mm=voxel_size_mm,
        orientation=orientation,
        scan_id=path.stem,
        n_slices=n_slices,
    )


def skm_tea_choices(path: Path) -> tuple[tuple[str, ...], int]:
    """Names of the stored masks, from the lowest acceleration to the highest, and the number of echoes."""
    with open_hdf5(path) as file:
        n_echoes = _dataset(file, path, "kspace", 5).shape[3]
        masks = file.get("masks")
        names = list(masks) if hasattr(masks, "keys") else []
    numbers = {name: float(found[0]) if (found := re.findall(r"[0-9.]*[0-9]", name)) else 0.0 for name in names}
    return tuple(sorted(names, key=lambda name: (numbers[name], name))), n_echoes


def _dataset(
    group: "h5py.Group", path: Path, key: str, n_axes: int, shape: tuple[int, ...] | None = None
) -> "h5py.Dataset":
    """Dataset of a file, checked for its dimensions."""
    import h5py

    if not isinstance(group.get(key), h5py.Dataset):
        raise ValueError(f"{path} has no dataset `{key}`, only {sorted(group)}: not a SKM-TEA raw-data file.")
    data = group[key]
    if data.ndim != n_axes or (shape is not None and data.shape != shape):
        expected = f"shape {shape}" if shape is not None else f"{n_axes} axes (slice, y, x, echo, coil)"
        raise ValueError(f"`{key}` of {path} must have {expected}, got shape {data.shape}.")
    if not np.issubdtype(data.dtype, np.complexfloating):
        raise ValueError(f"`{key}` of {path} must be complex, got {data.dtype}.")
    return data


def _read(data: "h5py.Dataset", path: Path, selections: list[tuple]) -> Tensor:
    """One selection after the other, stacked as complex64; HDF5 is slow on fancy indices."""
    name = data.name.lstrip("/")
    try:
        array = np.stack([data[selection] for selection in selections]).astype(np.complex64, copy=False)
    except OSError as error:
        raise ValueError(
            f"`{name}` of {path} cannot be read: the file is damaged ({error}). Download it again."
        ) from error
    check_finite(array, name, path, [selection[0] for selection in selections])
    return torch.from_numpy(array)


def _read_mask(
    file: "h5py.File", path: Path, mask: int | float | str, shape: tuple[int, int]
) -> Bool[np.ndarray, "y x"]:
    name = mask if isinstance(mask, str) else f"poisson_{float(mask):.1f}x"
    stored = file.get("masks", {})
    if name not in stored:
        raise ValueError(f"`mask` {mask!r}: {path} has no masks/{name}. The masks stored are {sorted(stored)}.")
    try:
        return pad_mask(stored[name][()], shape)
    except ValueError as error:
        raise ValueError(f"masks/{name} of {path} does not fit: {error}") from error


def _read_annotation(path: Path) -> tuple[tuple[float, float, float] | None, tuple[str, str, str] | None]:
    """Voxel size and orientation of a scan, if its file lies in the layout of the data set."""
    for annotations in sorted(path.resolve().parent.parent.glob("annotations/v1.0.0/*.json")):
        try:
            entries = json.loads(annotations.read_text())["images"]
            for entry in entries:
                if entry.get("scan_id") == path.stem or entry.get("file_name") == path.name:
                    spacing, orientation = entry["voxel_spacing"], entry["orientation"]
                    return tuple(float(size) for size in spacing), tuple(orientation)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{annotations} is not a SKM-TEA annotation file ({error!r}). Repair or remove it."
            ) from error
    return None, None
