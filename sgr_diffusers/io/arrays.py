"""Reader of plain arrays: numpy's files, BART's cfl/hdr pairs, and HDF5 without a standard."""

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Shaped

from ..mri.operators import ifft2c
from .file_checks import (
    bart_pair,
    check_claimed_bytes,
    check_regular_file,
    describe_foreign_content,
    first_bytes,
    is_bart_pair,
    read_small_text,
)
from .hdf5_file import child, find_group, open_hdf5, read_dataset
from .kspace_checks import check_centre, check_mask_has_data, slice_energy
from .raw_slices import RawSlices, check_finite, check_voxel_size, common_mask, slice_indices

__all__ = ["count_mapped_slices", "read_arrays", "read_cfl"]

_READ, _PHASE_1, _PHASE_2, _COIL, _SLICE = 0, 1, 2, 3, 13  # axes of BART
_MOST_AXES = 32
_NAMES = {
    "kspace": ("kspace",),
    "mask": ("mask",),
    "coil_maps": ("coil_maps", "maps"),
    "target": ("target",),
    "voxel_size_mm": ("voxel_size_mm",),
}


def read_arrays(
    kspace: str | os.PathLike,
    mask: str | os.PathLike | None = None,
    coil_maps: str | os.PathLike | None = None,
    slices: range | slice | Iterable[int] | None = None,
    group: str | None = None,
) -> RawSlices:
    """Read k-space, and mask and maps if there are any, from arrays in files.

    k-space is (coil, y, x), (slice, coil, y, x), or (y, x) of a single coil, its centre at `n // 2` of each axis. Of
    BART's cfl files, 2-D k-space (READ, PHS1) gives rows and columns, with SLICE as slices; 3-D k-space is turned into
    image space along READ, and slices lie along it, as in SKM-TEA's files. A SKM-TEA scan has another reader.

    Args:
        kspace: .npy, .npz (`kspace` and, if known, `mask`, `coil_maps` or `maps`, `target`, `voxel_size_mm`), HDF5 of
            the same names, or the .cfl or .hdr of a pair; the content decides, not the ending.
        mask: file of 0 and 1: (y, x), (slice, y, x) for slices with masks of their own, (x,) or (1, x) for columns,
            (y, 1) for rows. `None`: the mask of the k-space file, or true where a slice has k-space other than zero.
        coil_maps: file of maps in the shape of k-space; `None`: those of the k-space file, if any.
        slices: slices to read, as a range, a slice or indices from 0; `None` for all.
        group: HDF5 group of the arrays; `None` for the only one there is.

    Raises:
        FileNotFoundError: a file is missing.
        PermissionError, BlockingIOError: this user may not read the file, or another program is writing it.
        ValueError: a file is damaged, of another shape or kind, holds values that are not finite, or has its k-space
            centre elsewhere.
    """
    path = Path(kspace)
    content = _load(path, group=group)
    if "kspace" not in content:
        raise ValueError(f"{path} holds no array `kspace`; of the names known here it has {sorted(content)}.")
    for name, file in (("mask", mask), ("coil_maps", coil_maps)):
        if file is not None:
            loaded = _load(Path(file), maps=name == "coil_maps")
            given = loaded.get(name, loaded.get("kspace"))
            if given is None:
                raise ValueError(f"`{name}` {file} holds {sorted(loaded)}, but no array of that name.")
            content[name] = given
    values = _slices_first(content["kspace"], "kspace", path)
    indices = slice_indices(slices, len(values), path)
    chosen = _chosen(values, indices, "kspace", path)
    check_centre(slice_energy(chosen), path, ("y", "x"), "Shift k-space: numpy.fft.fftshift over y and x.")
    expected = {"coil_maps": values.shape, "target": (len(values), *values.shape[2:])}
    more = {}
    for name in expected.keys() & content.keys():
        array = content[name]
        array = _slices_first(array, name, path) if name == "coil_maps" else array.reshape((1, *array.shape)[-3:])
        if array.shape != expected[name]:
            raise ValueError(
                f"`{name}` for {path} must have shape {expected[name]}, as `kspace` has it, got {array.shape}."
            )
        more[name] = torch.from_numpy(_chosen(array, indices, name, path))
    sampled = (chosen != 0).any(axis=1)
    if "mask" in content:
        stored = _stored_mask(content["mask"], (len(values), *values.shape[2:]), path)
        stored = np.broadcast_to(stored[list(indices)] if len(stored) > 1 else stored, sampled.shape)
        check_mask_has_data(stored, sampled, path)
        sampled = stored
        chosen = np.where(sampled[:, None], chosen, 0)
    size = content.get("voxel_size_mm")
    return RawSlices(
        kspace=torch.from_numpy(chosen),
        mask=torch.from_numpy(common_mask(sampled).copy()),
        coil_maps=more.get("coil_maps"),
        fully_sampled=more.get("target"),
        slice_indices=indices,
        voxel_size_mm=None if size is None else check_voxel_size(size, "voxel_size_mm", f" of {path}"),
        scan_id=path.stem,
        n_slices=len(values),
    )


def count_mapped_slices(path: Path) -> int | None:
    """Count the slices of k-space of which single slices can be read: a .npy file, or 2-D k-space of BART.

    Returns:
        The number of slices; `None` for a file that is read as a whole.

    Raises:
        FileNotFoundError, ValueError: as `read_arrays`.
    """
    if is_bart_pair(path):
        if read_cfl(path).shape[_PHASE_2:][:1] > (1,):
            return None
    elif not first_bytes(path).startswith(b"\x93NUMPY"):
        return None
    return len(_slices_first(_load(path)["kspace"], "kspace", path))


def read_cfl(path: str | os.PathLike) -> Complex64[np.ndarray, "..."]:
    """Read the array of a cfl/hdr pair of BART, with all its axes.

    Args:
        path: path of either file, or their common name without an ending.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: the size of the .cfl is not what the .hdr says.
    """
    data, header = bart_pair(path)
    for file in (data, header):
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: a cfl file comes as a pair of .cfl and .hdr.")
    lines = read_small_text(header).splitlines()
    check_regular_file(data)
    try:
        shape = tuple(int(number) for number in lines[lines.index("# Dimensions") + 1].split())
    except (ValueError, IndexError) as error:
        raise ValueError(f"{header} does not state its dimensions ({error}): not a header of BART.") from error
    n_bytes, expected = data.stat().st_size, 8 * int(np.prod(shape, dtype=object))
    if not shape or min(shape) < 1 or len(shape) > _MOST_AXES or n_bytes != expected:
        raise ValueError(f"{data} has {n_bytes} bytes, but {header.name} says {expected} for {shape}. Write it again.")
    return np.memmap(data, np.complex64, "r", shape=shape, order="F")


def _load(path: Path, maps: bool = False, group: str | None = None) -> dict[str, np.ndarray]:
    """Arrays of a file by name; a file of a single array holds "kspace"."""
    if is_bart_pair(path):
        return {"kspace": _from_bart(read_cfl(path), path, maps)}
    head = first_bytes(path)
    if head.startswith(b"\x93NUMPY"):
        return {"kspace": _read_npy(path)}
    if zipfile.is_zipfile(path):
        return _read_npz(path)
    if path.suffix.lower() in (".npy", ".npz"):
        foreign = describe_foreign_content(head) or "it is damaged, or not numpy's. Write it again"
        raise ValueError(f"{path} cannot be read: {foreign}.")
    with open_hdf5(path) as file:
        node = find_group(file, path, group)
        arrays = {
            name: np.asarray(read_dataset(data, path))
            for name, data in _named(lambda key: child(node, key))
            if data is not None
        }
        size = node.attrs.get("voxel_size_mm")
    return arrays if size is None else {"voxel_size_mm": np.asarray(size), **arrays}


def _named(look_up: Callable[[str], Any]) -> list[tuple[str, Any]]:
    """What is found under each name that an array may have."""
    arrays = []
    for name, keys in _NAMES.items():
        items = [item for item in map(look_up, keys) if item is not None and not hasattr(item, "keys")]
        arrays.append((name, items[0] if items else None))
    return arrays


def _read_npy(path: Path) -> Shaped[np.ndarray, "..."]:
    """The array of a .npy file, mapped: a header that claims more than the file has is an error at once."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises a dozen kinds
        raise ValueError(f"{path} cannot be read: damaged, or not numpy's ({error}). Write it again.") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a .npz file that have a meaning here; other members are not looked at."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if not any(entry.filename.endswith(".npy") for entry in members.values()):
                raise ValueError("it is a zip archive without arrays of numpy")
            for name, entry in _named(members.get):
                if entry is None:
                    continue
                with archive.open(entry) as stream:
                    array_bytes = _claimed_bytes(stream)
                check_claimed_bytes(max(array_bytes, entry.file_size), path, f"`{name}`")
                if array_bytes > entry.file_size:
                    raise ValueError(f"`{name}` has {entry.file_size} bytes, but its header claims {array_bytes}")
                with archive.open(entry) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # zip, zlib and numpy raise a dozen kinds
        raise ValueError(f"{path} cannot be read: damaged, or not numpy's ({error}). Write it again.") from error
    return arrays


def _claimed_bytes(stream: Any) -> int:
    """Bytes of the array that the header of a .npy stream announces."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def _slices_first(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind != "c" or array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"`{name}` for {path} must be complex (coil, y, x), (slice, coil, y, x) or (y, x), got {array.dtype} "
            f"{array.shape}."
        )
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _chosen(
    array: np.ndarray, indices: tuple[int, ...], name: str, path: Path
) -> Complex64[np.ndarray, " slice *rest"]:
    with np.errstate(over="ignore"):  # what overflows is infinite, and said so
        chosen = np.ascontiguousarray(array[list(indices)], np.complex64)
    check_finite(chosen, name, path, indices)
    return chosen


def _stored_mask(mask: np.ndarray, shape: tuple[int, int, int], path: Path) -> Bool[np.ndarray, "slice y x"]:
    """A stored mask as (slice, y, x), with one slice for all or as many as k-space has."""
    n_y, n_x = shape[1:]
    stored = mask.reshape(mask.shape[mask.ndim - 3 :]) if mask.ndim > 3 and set(mask.shape[:-3]) == {1} else mask
    stored = stored.reshape((1,) * (3 - stored.ndim) + stored.shape)
    fits = stored.ndim == 3 and all(m in (1, n) for m, n in zip(stored.shape, shape, strict=True)) and stored.size > 1
    if not fits or stored.dtype.kind not in "buif" or not np.isin(stored, (0, 1)).all():
        raise ValueError(
            f"`mask` for {path} must be 0 and 1 in the shape {(n_y, n_x)}, {shape} for slices with masks of their "
            f"own, ({n_x},) for columns or {(n_y, 1)} for rows, as `kspace` has it, got {mask.dtype} {mask.shape}"
            f"{' with other values' if fits else ''}."
        )
    return np.broadcast_to(stored.astype(bool), (len(stored), n_y, n_x))


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
