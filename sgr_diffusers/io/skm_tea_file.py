"""Reader of HDF5 files of the SKM-TEA raw-data track."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from ..mri.masks import pad_mask
from .file_checks import read_small_text
from .hdf5_file import child, find_group, open_hdf5, read_dataset, read_selections
from .kspace_checks import check_centre, slice_energy
from .nifti import check_orientation
from .raw_slices import RawSlices, check_finite, check_voxel_size, common_mask, slice_indices, warn_suspect

if TYPE_CHECKING:
    import h5py

__all__ = ["read_skm_tea", "stored_masks"]

_AXES = "(slice, y, x, echo, coil)"


def read_skm_tea(
    path: str | os.PathLike,
    slices: range | slice | Iterable[int] | None = None,
    echo: int = 1,
    mask: int | float | str | None = None,
    with_maps: bool = True,
    with_fully_sampled: bool = True,
    group: str | None = None,
) -> RawSlices:
    """Read axial slices of a SKM-TEA HDF5 file, undersampled retrospectively by one of its stored masks.

    Args:
        path: file of `files_recon_calib-24`, or of the same structure: `kspace` (slice, y, x, echo, coil), `maps`
            (slice, y, x, coil, 1), `target` (slice, y, x, echo, 1) and `masks/poisson_4.0x` and so on.
        slices: slices to read, as a range, a slice or indices from 0; `None` for all. Only these are read.
        echo: number of the echo, 1 or 2 for the two echoes of qDESS; the paper uses the first.
        mask: acceleration of a stored mask (4 reads `masks/poisson_4.0x`; it counts the acquired grid, not the
            padded one), or its name. The k-space returned is multiplied by it. `None`: the k-space as it is stored.
        with_maps: flag to read the coil maps, too.
        with_fully_sampled: flag to read the fully sampled image, too.
        group: HDF5 group of the scan; `None` for the only one there is.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError, BlockingIOError: this user may not read the file, or another program is writing it.
        ValueError: the file is truncated or not HDF5, lacks a dataset or the mask asked for (those there are
            named), has other dimensions or its k-space centre elsewhere, holds values that are not finite, or `slices`
            or `echo` is outside the scan.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        node = find_group(file, path, group)
        kspace_data = _dataset(node, path, "kspace", 5)
        n_slices, n_y, n_x, n_echoes, n_coils = kspace_data.shape
        if not 1 <= echo <= n_echoes:
            raise ValueError(f"`echo` must be from 1 to {n_echoes}, which {path} has, got {echo}.")
        indices = slice_indices(slices, n_slices, path)
        stored_mask = None if mask is None else _read_mask(node, path, mask, (n_y, n_x))
        selected = [(index, echo - 1) for index in indices]
        kspace = _read(kspace_data, path, [(i, slice(None), slice(None), e) for i, e in selected])
        coil_maps = fully_sampled = None
        if with_maps:
            data = _dataset(node, path, "maps", 5, (n_slices, n_y, n_x, n_coils, 1))
            coil_maps = _read(data, path, [(i, slice(None), slice(None), slice(None), 0) for i in indices])
        if with_fully_sampled:
            data = _dataset(node, path, "target", 5, (n_slices, n_y, n_x, n_echoes, 1))
            fully_sampled = _read(data, path, [(i, slice(None), slice(None), e, 0) for i, e in selected])
        size_in_file = node.attrs.get("voxel_size_mm")

    kspace = kspace.movedim(-1, 1).contiguous()  # (slice, coil, y, x)
    check_centre(slice_energy(kspace.numpy()), path, ("y", "x"), "Shift k-space: numpy.fft.fftshift over y and x.")
    if stored_mask is None:
        sampled = torch.from_numpy(common_mask((kspace != 0).any(dim=1).numpy()))
    else:
        sampled = torch.from_numpy(stored_mask)
        kspace = torch.where(sampled, kspace, 0)
    voxel_size_mm, orientation = _read_annotation(path, (n_slices, n_y, n_x))
    if size_in_file is not None:
        annotated, voxel_size_mm = voxel_size_mm, check_voxel_size(size_in_file, "voxel_size_mm", f" of {path}")
        if annotated is not None and not np.allclose(annotated, voxel_size_mm, rtol=1e-3):
            warn_suspect(
                f"`voxel_size_mm` of {path} is {voxel_size_mm}, but the annotations beside it say {annotated}. That "
                "of the file is used."
            )
    return RawSlices(
        kspace=kspace,
        mask=sampled,
        coil_maps=None if coil_maps is None else coil_maps.movedim(-1, 1).contiguous(),
        fully_sampled=fully_sampled,
        slice_indices=indices,
        voxel_size_mm=voxel_size_mm,
        orientation=orientation,
        scan_id=path.stem,
        n_slices=n_slices,
    )


def stored_masks(node: "h5py.Group") -> tuple[str, ...]:
    """Return the names of the masks in a group, from the lowest acceleration to the highest."""
    masks = child(node, "masks")
    names = list(masks) if hasattr(masks, "keys") else []
    numbers = {name: float(digits[0]) if (digits := re.findall(r"\d+(?:\.\d+)?", name)) else 0.0 for name in names}
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))


def _dataset(
    group: "h5py.Group", path: Path, key: str, n_axes: int, shape: tuple[int, ...] | None = None
) -> "h5py.Dataset":
    """Dataset of a file, checked for its dimensions."""
    import h5py

    data = child(group, key)
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{path} has no dataset `{key}`, only {sorted(group)}: not a SKM-TEA raw-data file.")
    if data.ndim != n_axes or (shape is not None and data.shape != shape) or 0 in data.shape:
        expected = f"shape {shape}" if shape is not None else f"{n_axes} axes {_AXES}"
        raise ValueError(f"`{key}` of {path} must have {expected}, got shape {data.shape}.")
    if not np.issubdtype(data.dtype, np.complexfloating):
        raise ValueError(f"`{key}` of {path} must be complex, got {data.dtype}.")
    return data


def _read(data: "h5py.Dataset", path: Path, selections: list[tuple]) -> Tensor:
    array = read_selections(data, path, selections)
    check_finite(array, data.name.lstrip("/"), path, [selection[0] for selection in selections])
    return torch.from_numpy(array)


def _read_mask(
    group: "h5py.Group", path: Path, mask: int | float | str, shape: tuple[int, int]
) -> Bool[np.ndarray, "y x"]:
    name = mask if isinstance(mask, str) else f"poisson_{float(mask):.1f}x"
    masks = child(group, "masks")
    if hasattr(masks, "shape"):
        raise ValueError(
            f"`mask` {mask!r}: `masks` of {path} is a dataset of shape {masks.shape}, where SKM-TEA has a group of "
            "named masks. There is none to choose."
        )
    data = child(masks, name) if masks is not None else None
    if data is None or not hasattr(data, "shape"):
        raise ValueError(f"`mask` {mask!r}: {path} has no masks/{name}. The masks stored are {sorted(masks or ())}.")
    if data.ndim != 2 or any(have > want for have, want in zip(data.shape, shape, strict=True)):
        raise ValueError(f"masks/{name} of {path} does not fit: it has the shape {data.shape}, k-space {shape}.")
    try:
        return pad_mask(read_dataset(data, path), shape)
    except ValueError as error:
        raise ValueError(f"masks/{name} of {path} does not fit: {error}") from error


def _read_annotation(
    path: Path, shape: tuple[int, int, int]
) -> tuple[tuple[float, float, float] | None, tuple[str, str, str] | None]:
    """Voxel size and orientation of a scan, if its file lies in the layout of the data set."""
    for annotations in sorted(path.resolve().parent.parent.glob("annotations/v1.0.0/*.json")):
        try:
            entry = _find_entry(json.loads(read_small_text(annotations))["images"], path)
            if entry is None:
                continue
            size = check_voxel_size(entry["voxel_spacing"], "voxel_spacing", f" of {path.stem}")
            orientation = tuple(entry["orientation"])
            check_orientation(orientation)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{annotations} is not a SKM-TEA annotation file ({error!r}). Repair or remove it."
            ) from error
        stated = tuple(entry.get("matrix_shape", shape))
        if stated != shape:
            raise ValueError(
                f"`kspace` of {path} has (slice, y, x) = {shape}, but {annotations} says {stated}: the annotation "
                "belongs to another file."
            )
        return size, orientation
    return None, None


def _find_entry(entries: list[dict[str, Any]], path: Path) -> dict[str, Any] | None:
    return next(
        (entry for entry in entries if entry.get("scan_id") == path.stem or entry.get("file_name") == path.name), None
    )
