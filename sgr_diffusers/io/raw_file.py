"""Reads raw k-space of whichever kind of file, by what is in the file."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from .raw_slices import RawSlices, open_hdf5
from .skm_tea_file import read_skm_tea, skm_tea_choices

__all__ = ["read_raw", "stored_choices"]


def read_raw(
    path: str | os.PathLike,
    slices: range | slice | Iterable[int] | None = None,
    echo: int = 1,
    mask: int | float | str | None = None,
    n_coils: int | None = None,
) -> RawSlices:
    """Read k-space of whichever kind of file: what is in it says which.

    HDF5 of the SKM-TEA raw-data track (`read_skm_tea`), of fastMRI (`fastmri.read_fastmri`), of ISMRMRD
    (`ismrmrd_reader.read_ismrmrd`) or of plain arrays, numpy's .npy and .npz, BART's .cfl and .hdr
    (`arrays.read_arrays`). Call these for what only one of them has. Maps and target come along where a file has them.

    Args:
        path: the file.
        slices: which slices, as a range, a slice or indices from 0; `None` for all.
        echo: from 1, for SKM-TEA and ISMRMRD.
        mask: acceleration or name of a stored mask, for SKM-TEA alone. `None`: k-space as it is, and measured is what
            the file says or, where it does not, what is not zero.
        n_coils: compress to this many virtual coils, see `compression.compress_coils`; `None` keeps the coils.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of no kind that can be read, damaged, or does not have what is asked for.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "skm_tea":
        with open_hdf5(path) as file:
            known = set(file)
        raw = read_skm_tea(path, slices, echo, mask, with_maps="maps" in known, with_target="target" in known)
    elif mask is not None:
        raise ValueError(f"`mask` {mask!r}: {path} is no SKM-TEA file and stores no masks to choose from.")
    elif kind == "ismrmrd":
        from .ismrmrd_reader import read_ismrmrd

        raw = read_ismrmrd(path, slices, echo)
    elif echo != 1:
        raise ValueError(f"`echo` {echo}: {path} has no echoes to choose from.")
    elif kind == "fastmri":
        from .fastmri import read_fastmri

        raw = read_fastmri(path, slices)
    else:
        from .arrays import read_arrays

        raw = read_arrays(path, slices=slices)
    if n_coils is None:
        return raw
    from ..mri.compression import compress_coils

    compressed = compress_coils(raw.kspace, n_coils, raw.coil_maps)
    return dataclasses.replace(raw, kspace=compressed.kspace, coil_maps=compressed.coil_maps)


def stored_choices(path: str | os.PathLike) -> tuple[tuple[str, ...], int]:
    """What `mask` and `echo` of `read_raw` can be for a file.

    Returns:
        Names of the stored masks, from the lowest acceleration to the highest, and the number of echoes; no masks and
        1 for a file that is not SKM-TEA's.

    Raises:
        FileNotFoundError, ValueError: as `read_raw`.
    """
    path = Path(path)
    return skm_tea_choices(path) if _kind(path) == "skm_tea" else ((), 1)


def _kind(path: Path) -> str:
    if path.suffix in (".npy", ".npz", ".cfl", ".hdr"):
        return "arrays"
    with open_hdf5(path) as file:
        if "ismrmrd_header" in file:
            return "fastmri"
        if "dataset" in file and "xml" in file["dataset"]:
            return "ismrmrd"
        if "kspace" in file and getattr(file["kspace"], "ndim", 5) < 5 and "masks" not in file:
            return "arrays"
        return "skm_tea"  # its reader says what is missing
