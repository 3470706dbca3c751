"""Files: a SKM-TEA scan on disk enters, complex64 k-space slices leave; volumes enter, NIfTI files leave."""

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Complex, Shaped
from torch import Tensor

from .masks import pad_mask

if TYPE_CHECKING:
    import h5py

# Direction in which an axis runs -> world axis (R, A, S) it lies on, and its sign there. "SI" runs from superior
# to inferior.
_DIRECTIONS = {"LR": (0, 1), "RL": (0, -1), "PA": (1, 1), "AP": (1, -1), "IS": (2, 1), "SI": (2, -1)}


@dataclass(frozen=True)
class RawSlices:
    """Slices of one scan of the SKM-TEA raw-data track.

    Attributes:
        kspace: Complex64 `(slice, coil, y, x)`, in the scanner's unit. Zero where `mask` is false.
        mask: Bool `(y, x)`, padded about the centre to the size of the k-space; true where measured. Read without
            a mask: true where any of these slices and coils has a value other than zero.
        coil_maps: Complex64 `(slice, coil, y, x)`, or `None` if they were not asked for.
        target: Complex64 `(slice, y, x)`, the fully sampled image in the unit of `kspace`, or `None` if not asked for.
        slice_indices: Index in the scan of each slice.
        voxel_size_mm: Size (slice, y, x) in mm from the annotations beside the file, `None` without them.
        orientation: Direction in which (slice, y, x) run, such as ("SI", "AP", "LR"), from there too.
        scan_id: Name of the scan: the file's name without its ending.
        n_slices: Number of slices that the scan has on disk.
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
    with file:
        kspace_data = _dataset(file, path, "kspace", 5)
        n_slices, n_y, n_x, n_echoes, n_coils = kspace_data.shape
        if not 1 <= echo <= n_echoes:
            raise ValueError(f"`echo` must be from 1 to {n_echoes}, which {path} has, got {echo}.")
        indices = _slice_indices(slices, n_slices, path)
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


def write_nifti(
    path: str | os.PathLike,
    volume: Shaped[np.ndarray | Tensor, "a b c"],
    voxel_size_mm: tuple[int | float, int | float, int | float],
    orientation: tuple[str, str, str] = ("SI", "AP", "LR"),
) -> None:
    """Write a volume as NIfTI-1 under its name only when it is complete.

    Args:
        path: Ends in `.nii` or `.nii.gz`. A file of that name is replaced.
        volume: uint8, float32 or complex64, `(a, b, c)` in the order of `voxel_size_mm` and `orientation`.
        voxel_size_mm: Size of a voxel along the three axes.
        orientation: Direction in which each axis runs: "SI" or "IS", "AP" or "PA", "LR" or "RL", each pair once.
            The world coordinates have their origin in the middle of the volume.

    Raises:
        TypeError: `volume` has another dtype.
        ValueError: `volume` is not 3-D, `voxel_size_mm` is not positive, or `orientation` or the ending is unknown.
    """
    import nibabel

    path = Path(path)
    suffix = next((ending for ending in (".nii.gz", ".nii") if path.name.endswith(ending)), None)
    if suffix is None:
        raise ValueError(f"`path` must end in .nii or .nii.gz, got {path.name}.")
    array = volume.detach().cpu().resolve_conj().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    if array.dtype not in (np.uint8, np.float32, np.complex64):
        raise TypeError(f"`volume` must be uint8, float32 or complex64, got {array.dtype}. Convert it first.")
    if array.ndim != 3:
        raise ValueError(f"`volume` must have three axes, got shape {array.shape}.")
    affine = _affine(array.shape, tuple(voxel_size_mm), tuple(orientation))
    partial = path.with_name(f".{path.name.removesuffix(suffix)}.{uuid.uuid4().hex[:8]}{suffix}")
    try:
        image = nibabel.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, partial)
        os.replace(partial, path)
    except BaseException:  # an interrupt leaves nothing half-written behind either
        partial.unlink(missing_ok=True)
        raise


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
    if not np.isfinite(array).all():
        bad = [selection[0] for selection, one in zip(selections, array, strict=True) if not np.isfinite(one).all()]
        raise ValueError(
            f"`{name}` of {path} has values that are not finite in the slices {bad}. Leave them out by `slices`."
        )
    return torch.from_numpy(array)


def _slice_indices(slices: range | slice | Iterable[int] | None, n_slices: int, path: Path) -> tuple[int, ...]:
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


def _affine(shape: tuple[int, ...], voxel_size_mm: tuple[float, ...], orientation: tuple[str, ...]) -> np.ndarray:
    """Voxel indices to mm in the world axes of NIfTI: right, anterior, superior."""
    if len(voxel_size_mm) != 3 or not all(size > 0 for size in voxel_size_mm):
        raise ValueError(f"`voxel_size_mm` must be three positive lengths, got {voxel_size_mm}.")
    if sorted("".join(sorted(direction)) for direction in orientation) != ["AP", "IS", "LR"]:
        raise ValueError(
            "`orientation` must hold one each of SI or IS, AP or PA, LR or RL, such as ('SI', 'AP', 'LR'), "
            f"got {orientation}."
        )
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (direction, size) in enumerate(zip(orientation, voxel_size_mm, strict=True)):
        world, sign = _DIRECTIONS[direction]
        affine[world, axis] = sign * size
        affine[world, 3] = -sign * size * (shape[axis] - 1) / 2
    return affine


__all__ = ["RawSlices", "read_skm_tea", "write_nifti"]
