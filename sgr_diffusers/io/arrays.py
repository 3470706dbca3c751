"""Arrays in numpy's files, BART's cfl/hdr pairs or plain HDF5 enter; complex64 k-space slices leave."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex64

from ..mri.operators import ifft2c
from .raw_slices import RawSlices, check_finite, open_hdf5, slice_indices

__all__ = ["read_arrays", "read_cfl"]

_READ, _PHASE_1, _PHASE_2, _COIL, _SLICE = 0, 1, 2, 3, 13  # axes of BART
_NAMES = {"kspace": ("kspace",), "mask": ("mask",), "coil_maps": ("coil_maps", "maps"), "target": ("target",)}


def read_arrays(
    kspace: str | os.PathLike,
    mask: str | os.PathLike | None = None,
    coil_maps: str | os.PathLike | None = None,
    slices: range | slice | Iterable[int] | None = None,
) -> RawSlices:
    """Read k-space, and mask and maps if there are any, from arrays in files.

    k-space is (coil, y, x), (slice, coil, y, x), or (y, x) of a single coil, its centre at `n // 2` of each axis. Of
    BART's cfl files, 2-D k-space (READ, PHS1) gives rows and columns, with SLICE as slices; 3-D k-space is turned into
    image space along READ, and slices lie along it, as in SKM-TEA's files. A SKM-TEA scan has another reader.

    Args:
        kspace: .npy, .npz (`kspace` and, if known, `mask`, `coil_maps` or `maps`, `target`, `voxel_size_mm`), .h5 of
            the same names, or the .cfl or .hdr of a pair.
        mask: file of (y, x), 0 or 1; `None`: that of the file, or true where k-space is not zero.
        coil_maps: file of maps in the shape of k-space; `None`: those of the file, if any.
        slices: which slices, as a range, a slice or indices from 0; `None` for all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another shape or kind, or holds values that are not finite.
    """
    path = Path(kspace)
    content = _load(path)
    if "kspace" not in content:
        raise ValueError(f"{path} holds {sorted(content)}, but no `kspace`.")
    for name, file in (("mask", mask), ("coil_maps", coil_maps)):
        if file is not None:
            loaded = _load(Path(file), maps=name == "coil_maps")
            content[name] = loaded.get(name, loaded.get("kspace"))
            if content[name] is None:
                raise ValueError(f"`{name}` {file} holds {sorted(loaded)}, but no array of that name.")
    values = _slices_first(content["kspace"], "kspace", path)
    indices = slice_indices(slices, len(values), path)
    chosen = np.ascontiguousarray(values[list(indices)], np.complex64)
    check_finite(chosen, "kspace", path, indices)
    arrays = {}
    for name in ("coil_maps", "target"):
        if content.get(name) is None:
            continue
        array = content[name]
        if name == "coil_maps":
            array = _slices_first(array, name, path)
        elif array.ndim == 2:
            array = array[None]
        expected = values.shape if name == "coil_maps" else (len(values), *values.shape[2:])
        if array.shape != expected:
            raise ValueError(f"`{name}` for {path} must have shape {expected}, as `kspace` has it, got {array.shape}.")
        arrays[name] = np.ascontiguousarray(array[list(indices)], np.complex64)
        check_finite(arrays[name], name, path, indices)
    sampled = (chosen != 0).any(axis=(0, 1))
    if content.get("mask") is not None:
        stored = np.squeeze(content["mask"])
        if stored.shape != sampled.shape or not np.isin(stored, (0, 1)).all():
            raise ValueError(
                f"`mask` for {path} must be {sampled.shape} of 0 and 1, as `kspace` has it, got shape {stored.shape} "
                "or other values."
            )
        sampled = stored.astype(bool)
        chosen = np.where(sampled, chosen, 0)
    size = content.get("voxel_size_mm")
    return RawSlices(
        kspace=torch.from_numpy(chosen),
        mask=torch.from_numpy(sampled),
        coil_maps=torch.from_numpy(arrays["coil_maps"]) if "coil_maps" in arrays else None,
        target=torch.from_numpy(arrays["target"]) if "target" in arrays else None,
        slice_indices=indices,
        voxel_size_mm=None if size is None else tuple(float(edge) for edge in np.ravel(size)),
        orientation=None,
        scan_id=path.stem,
        n_slices=len(values),
    )


def read_cfl(path: str | os.PathLike) -> Complex64[np.ndarray, "..."]:
    """Array of a cfl/hdr pair of BART, with all its axes.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: the size of the .cfl is not what the .hdr says.
    """
    data, header = Path(path).with_suffix(".cfl"), Path(path).with_suffix(".hdr")
    for file in (data, header):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: a cfl file comes as a pair of .cfl and .hdr.")
    lines = header.read_text(errors="replace").splitlines()
    try:
        shape = tuple(int(number) for number in lines[lines.index("# Dimensions") + 1].split())
    except (ValueError, IndexError) as error:
        raise ValueError(f"{header} does not state its dimensions ({error}): not a header of BART.") from error
    n_bytes, expected = data.stat().st_size, 8 * int(np.prod(shape, dtype=object))
    if not shape or min(shape) < 1 or n_bytes != expected:
        raise ValueError(f"{data} has {n_bytes} bytes, but {header.name} says {expected} for {shape}. Write it again.")
    return np.fromfile(data, np.complex64).reshape(shape, order="F")


def _load(path: Path, maps: bool = False) -> dict[str, np.ndarray]:
    """Arrays of a file by name; a file of a single array holds "kspace"."""
    if path.suffix in (".cfl", ".hdr"):
        return {"kspace": _from_bart(read_cfl(path), path, maps)}
    if path.suffix in (".h5", ".hdf5"):
        with open_hdf5(path) as file:
            found = {key: file[key][()] for key in file if hasattr(file[key], "shape")}
    elif path.suffix in (".npy", ".npz"):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file.")
        try:
            loaded = np.load(path, allow_pickle=False)
            found = {"kspace": loaded} if path.suffix == ".npy" else dict(loaded)
        except Exception as error:  # zip, zlib and numpy raise a dozen kinds
            raise ValueError(f"{path} cannot be read: damaged, or not numpy's ({error}). Write it again.") from error
    else:
        raise ValueError(f"{path} must end in .npy, .npz, .h5, .cfl or .hdr.")
    named = {name: next((found[key] for key in keys if key in found), None) for name, keys in _NAMES.items()}
    named["voxel_size_mm"] = found.get("voxel_size_mm")
    return {name: array for name, array in named.items() if array is not None}


def _slices_first(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind != "c" or array.ndim not in (2, 3, 4):
        raise ValueError(
            f"`{name}` for {path} must be complex (coil, y, x), (slice, coil, y, x) or (y, x), got {array.dtype} "
            f"{array.shape}."
        )
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _from_bart(array: np.ndarray, path: Path, maps: bool) -> np.ndarray:
    """BART's axes to (slice, coil, y, x)."""
    shape = list(array.shape) + [1] * (_SLICE + 1 - array.ndim)
    array = array.reshape(shape)
    others = [n for axis, n in enumerate(shape) if axis not in (_READ, _PHASE_1, _PHASE_2, _COIL, _SLICE)]
    if max(others, default=1) > 1 or (shape[_PHASE_2] > 1 and shape[_SLICE] > 1):
        raise ValueError(
            f"{path} has the dimensions {tuple(shape)}; only READ, PHS1, PHS2 or SLICE, and COIL may be larger than 1."
        )
    single = [axis for axis in range(4, len(shape)) if axis != _SLICE]
    array = array.transpose(_SLICE, _COIL, _READ, _PHASE_1, _PHASE_2, *single)
    array = array.reshape(array.shape[:5])  # (slice, coil, read, phase, partition)
    if shape[_PHASE_2] == 1:
        return array[..., 0]
    if not maps:  # image space along the readout; the partner axis has length 1
        lines = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array[0], 1, -1)))[..., None]
        array = np.moveaxis(ifft2c(lines)[..., 0].numpy(), -1, 1)[None]
    return np.ascontiguousarray(array[0].transpose(1, 0, 2, 3))
