"""One reader for raw k-space of every kind of file: the content decides which it is."""

import dataclasses
import os
import zipfile
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import count_mapped_slices, read_arrays
from .fastmri import read_fastmri
from .file_checks import first_bytes, is_bart_pair
from .hdf5_file import child, find_group, group_kind, open_hdf5
from .ismrmrd_reader import count_stack_slices, read_ismrmrd
from .raw_slices import RawSlices, check_voxel_size, warn_suspect
from .skm_tea_file import read_skm_tea, stored_masks
from .undersampling import undersample

__all__ = ["count_single_slices", "mask_label", "read_raw", "stored_choices"]


def read_raw(
    path: str | os.PathLike,
    slices: range | slice | Iterable[int] | None = None,
    echo: int = 1,
    mask: int | float | str | None = None,
    n_coils: int | None = None,
    repetition: int = 0,
    group: str | None = None,
) -> RawSlices:
    """Read k-space of whichever kind of file: what is in it says which.

    HDF5 of the SKM-TEA raw-data track (`read_skm_tea`), of fastMRI (`fastmri.read_fastmri`), of ISMRMRD
    (`ismrmrd_reader.read_ismrmrd`) or of plain arrays, numpy's .npy and .npz, BART's .cfl and .hdr
    (`arrays.read_arrays`). Call these for what only one of them has. Maps and target come along where a file has them.

    Args:
        path: path of the file; of a cfl/hdr pair either file, or their common name.
        slices: slices to read, as a range, a slice or indices from 0; `None` for all.
        echo: number of the echo from 1, for SKM-TEA and ISMRMRD.
        mask: acceleration or name of a stored mask of a SKM-TEA file. In a fully sampled file without stored masks, an
            acceleration makes a Poisson-disc mask (`undersampling.undersample`). `None`: k-space as it is, and
            measured is what the file says or, where it does not, what is not zero.
        n_coils: number of virtual coils to compress to, see `compression.compress_coils`; `None` keeps the coils.
        repetition: number of the repetition from 0, for ISMRMRD.
        group: HDF5 group of the scan; `None` for the only one there is.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError, BlockingIOError: this user may not read the file, or another program is writing it.
        ValueError: the file is of no kind that can be read, damaged, contradicts itself, or does not have what is
            asked for. Contradictions that leave an image possible are a `SuspectDataWarning`.
    """
    _check_arguments(path, echo, mask, repetition, group)
    path = Path(path)
    kind, masks, members = _look_into(path, group)
    if isinstance(mask, str) and kind != "skm_tea":
        raise ValueError(f"`mask` {mask!r}: {path} is no SKM-TEA file and stores no masks to choose from.")
    if kind not in ("skm_tea", "ismrmrd") and echo != 1:
        raise ValueError(f"`echo` {echo}: {path} has no echoes to choose from.")
    if kind != "ismrmrd" and repetition != 0:
        raise ValueError(f"`repetition` {repetition}: {path} has no repetitions to choose from.")
    acceleration = None if isinstance(mask, str) or masks else mask  # of a mask that is made here
    if kind == "skm_tea":
        has_maps, has_target = "maps" in members, "target" in members
        raw = read_skm_tea(path, slices, echo, None if acceleration is not None else mask, has_maps, has_target, group)
    elif kind == "ismrmrd":
        raw = read_ismrmrd(path, slices, echo, repetition, group=group)
    elif kind == "fastmri":
        raw = read_fastmri(path, slices, group=group)
    else:
        raw = read_arrays(path, slices=slices, group=group)
    if kind in ("ismrmrd", "fastmri"):
        raw = _with_stored_voxel_size(raw, path, group)
    if acceleration is not None:
        raw = undersample(raw, acceleration)
    raw = dataclasses.replace(raw, label=_as_stored(raw) if mask is None else mask_label(mask))
    if n_coils is None:
        return raw
    from ..mri.compression import compress_coils

    compressed = compress_coils(raw.kspace, n_coils, raw.coil_maps)
    return dataclasses.replace(raw, kspace=compressed.kspace, coil_maps=compressed.coil_maps)


def _check_arguments(path: Any, echo: Any, mask: Any, repetition: Any, group: Any) -> None:
    """Refuse arguments of a wrong type.

    Raises:
        TypeError: naming the argument.
    """
    whole = "a whole number", Integral
    for name, value, (expected, kind) in (
        ("path", path, ("the name of a file", str | os.PathLike)),
        ("echo", echo, whole),
        ("mask", mask, ("an acceleration, the name of a stored mask or `None`", Real | str | None)),
        ("repetition", repetition, whole),
        ("group", group, ("the name of an HDF5 group or `None`", str | None)),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` must be {expected}, got {value!r}.")


def mask_label(mask: int | float | str) -> str:
    """Name a mask for people: "8x" for the name "poisson_8.0x" and for the acceleration 8; others stay as they are."""
    number = str(mask).removeprefix("poisson_").removesuffix("x")
    try:
        return f"{float(number):g}x"
    except ValueError:
        return str(mask)


def _as_stored(raw: RawSlices) -> str:
    acceleration = float(raw.mask.numel() / raw.mask.sum().clamp_min(1))
    return f"as stored ({acceleration:.2g}x)"


def stored_choices(path: str | os.PathLike, group: str | None = None) -> tuple[tuple[str, ...], int]:
    """List the values that `mask` and `echo` of `read_raw` can have for a file.

    Returns:
        Names of the stored masks, from the lowest acceleration to the highest, and the number of echoes; no masks and
        1 for a file that is not SKM-TEA's.

    Raises:
        FileNotFoundError, OSError, ValueError: as `read_raw`.
    """
    path = Path(path)
    kind, masks, _ = _look_into(path, group)
    if kind != "skm_tea":
        return (), 1
    with open_hdf5(path) as file:
        shape: tuple[int, ...] = getattr(child(find_group(file, path, group), "kspace"), "shape", ())
    if len(shape) != 5:
        raise ValueError(f"`kspace` of {path} must have 5 axes (slice, y, x, echo, coil), got shape {shape}.")
    return masks, shape[3]


def count_single_slices(
    path: str | os.PathLike, echo: int = 1, repetition: int = 0, group: str | None = None
) -> int | None:
    """Count the slices of a file from which single slices can be read; arguments as for `read_raw`.

    Returns:
        The number of slices; `None` for a file that is read as a whole.

    Raises:
        FileNotFoundError, OSError, ValueError: as `read_raw`.
    """
    path = Path(path)
    kind = _look_into(path, group)[0]
    if kind == "ismrmrd":
        return count_stack_slices(path, echo, repetition, group)
    if kind == "arrays":
        return count_mapped_slices(path)
    with open_hdf5(path) as file:
        shape: tuple[int, ...] = getattr(child(find_group(file, path, group), "kspace"), "shape", ())
    return shape[0] if shape else None


def _look_into(path: Path, group: str | None) -> tuple[str, tuple[str, ...], frozenset[str]]:
    """Kind of a file, names of the masks it stores, and members of the HDF5 group of its scan."""
    if is_bart_pair(path):
        return "arrays", (), frozenset()
    head = first_bytes(path)
    if path.suffix.lower() in (".npy", ".npz") or head.startswith(b"\x93NUMPY") or zipfile.is_zipfile(path):
        if group is not None:
            raise ValueError(f"`group` {group!r}: {path} is no HDF5 file and has no groups.")
        return "arrays", (), frozenset()
    with open_hdf5(path) as file:
        node = find_group(file, path, group)
        return group_kind(node, path), stored_masks(node), frozenset(node)


def _with_stored_voxel_size(raw: RawSlices, path: Path, group: str | None) -> RawSlices:
    """Put an attribute `voxel_size_mm` of the file in the place of what its header says."""
    with open_hdf5(path) as file:
        stored = file.attrs.get("voxel_size_mm", find_group(file, path, group).attrs.get("voxel_size_mm"))
    if stored is None:
        return raw
    size = check_voxel_size(stored, "voxel_size_mm", f" of {path}")
    if raw.voxel_size_mm is None:
        return dataclasses.replace(raw, voxel_size_mm=size)
    if np.allclose(size, raw.voxel_size_mm, rtol=1e-3):
        return raw
    warn_suspect(
        f"`voxel_size_mm` of {path} is {size}, but its header says {raw.voxel_size_mm}. The attribute is used, and "
        "the positions of the slices are taken as unknown."
    )
    return dataclasses.replace(raw, voxel_size_mm=size, affine=None)
