"""Checks an uploaded, untrusted file and lists what a visitor can choose, or raises an error that can be shown."""

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io.file_checks import check_regular_file
from ..io.hdf5_file import open_hdf5
from ..io.raw_file import read_raw, stored_choices
from ..io.raw_slices import collected_suspicions
from .limits import AppLimits

__all__ = ["FILE_TYPES", "CaseInfo", "describe_case", "readable", "safe_name"]

FILE_TYPES = (".h5", ".hdf5", ".mrd", ".npy", ".npz")  # a .cfl is half of a pair and comes as an .npy instead
USABLE = (ValueError, TypeError, LookupError, OSError)  # errors whose text is meant for people


@dataclass(frozen=True)
class CaseInfo:
    """What a file of raw k-space offers.

    Attributes:
        path: path of the file.
        name: name of the file, safe to show and to use in other file names.
        n_slices: number of slices.
        size: numbers of rows and columns of a slice.
        n_coils: number of receive coils.
        masks: names of the stored masks; without any, k-space is taken as it is.
        n_echoes: number of echoes to choose from.
        voxel_size_mm: edge lengths of a voxel (slice, y, x) in mm, if the file states them.
        is_fully_sampled: whether the file holds the fully sampled image to compare with.
        suspicions: sentences on what in the file contradicts its data.
    """

    path: Path
    name: str
    n_slices: int
    size: tuple[int, int]
    n_coils: int
    masks: tuple[str, ...]
    n_echoes: int
    voxel_size_mm: tuple[float, float, float] | None
    is_fully_sampled: bool
    suspicions: tuple[str, ...] = ()


def safe_name(name: str) -> str:
    """Last part of a path, with nothing in it but letters, digits, dot, dash and underscore; at most 60 characters."""
    last = re.split(r"[/\\]", name)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", last).lstrip(".")[-60:] or "file"


def describe_case(path: str | Path, limits: AppLimits, name: str | None = None) -> CaseInfo:
    """Look into a file before a reconstruction.

    Args:
        path: path of the file.
        limits: limits on its size, packed and unpacked, and on its slices.
        name: name to show instead of the file's own.

    Raises:
        ValueError: the file is of no kind that can be read, damaged, or beyond a limit. The text names no folder of
            this machine.
    """
    path = Path(path)
    name = safe_name(name or path.name)
    try:
        if path.suffix.lower() not in FILE_TYPES:
            raise ValueError(f"{name} must end in {', '.join(FILE_TYPES)}.")
        n_mb = check_regular_file(path).stat().st_size / 1e6
        if n_mb > limits.max_upload_mb:
            raise ValueError(f"{name} has {n_mb:.0f} MB, but at most {limits.max_upload_mb:.0f} MB can be used here.")
        content_mb = _content_bytes(path) / 1e6
        if content_mb > limits.max_content_mb:
            raise ValueError(
                f"{name} unpacks to {content_mb:.0f} MB, but at most {limits.max_content_mb:.0f} MB can be used here. "
                "Cut out the slices of interest."
            )
        masks, n_echoes = stored_choices(path)
        with collected_suspicions() as suspicions:
            raw = read_raw(path, [0])
        n_coils, *size = raw.kspace.shape[1:]
        extent = f"a slice of {name} has {size[0]} x {size[1]} pixels and {n_coils} coils"
        if raw.kspace[0].numel() > limits.max_pixels:
            raise ValueError(f"{extent}, which is more than can be reconstructed here ({limits.max_pixels} values).")
        # of many coils, time and memory of the estimate grow with the square
        cost = raw.kspace[0].numel() * max(n_coils / 16, 1)
        if raw.coil_maps is None and n_coils > 1 and cost > limits.max_pixels_without_maps:
            raise ValueError(
                f"{extent}, but no coil maps, and to estimate them would take too long here (at most "
                f"{limits.max_pixels_without_maps} values of 16 coils, and fewer of more coils). Store coil maps in "
                "the file, or fewer (virtual) coils."
            )
    except USABLE as error:
        raise ValueError(readable(error, path, name)) from error
    return CaseInfo(
        path=path,
        name=name,
        n_slices=raw.n_slices,
        size=(size[0], size[1]),
        n_coils=n_coils,
        masks=masks,
        n_echoes=n_echoes,
        voxel_size_mm=raw.voxel_size_mm,
        is_fully_sampled=raw.fully_sampled is not None,
        suspicions=tuple(_without_path(text, path, name) for text in suspicions),
    )


def readable(error: BaseException, path: Path, name: str) -> str:
    """Text of an error, in one line, with the name of the file in the place of its path."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    # Names of arguments are words of Python; here there is a file and a form.
    words = " ".join(str(text).split()).replace("`path` ", "") or type(error).__name__
    return _without_path(words, path, name)


def _without_path(text: str, path: Path, name: str) -> str:
    return text.replace(str(path), name).replace(f"{path.resolve().parent}{os.sep}", "")


def _content_bytes(path: Path) -> int:
    """Bytes of all arrays of a file, as its headers state them: nothing is unpacked."""
    if path.suffix.lower() == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return sum(entry.file_size for entry in archive.infolist())
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} cannot be read: damaged, or not numpy's ({error}). Write it again.") from error
    if path.suffix.lower() == ".npy":
        return path.stat().st_size
    import h5py

    total = 0

    def add(_: str, item: object) -> None:
        nonlocal total
        if isinstance(item, h5py.Dataset):
            # chunks are unpacked one at a time, and may be larger than what is in them
            chunk = int(np.prod(item.chunks, dtype=object)) * item.dtype.itemsize if item.chunks else 0
            total += max(int(item.size or 0) * item.dtype.itemsize, chunk)

    with open_hdf5(path) as file:
        file.visititems(add)
    return total
