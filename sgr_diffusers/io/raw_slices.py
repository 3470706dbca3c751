"""The slices that every reader of raw data returns, and the checks that all readers share."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float
from torch import Tensor

__all__ = [
    "RawSlices",
    "SuspectDataWarning",
    "check_finite",
    "check_voxel_size",
    "collected_suspicions",
    "common_mask",
    "plausible_voxel_size",
    "slice_indices",
    "warn_suspect",
]

SMALLEST_VOXEL_MM, LARGEST_VOXEL_MM = 0.01, 100.0


class SuspectDataWarning(UserWarning):
    """What a file says of its data is contradicted by the data, or cannot be right."""


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def warn_suspect(text: str) -> None:
    """Warn that a file contradicts itself; within `collected_suspicions`, the text is also collected."""
    texts = _collected.get()
    if texts is not None:
        texts.append(text)
    warnings.warn(text, SuspectDataWarning, stacklevel=3)


@contextmanager
def collected_suspicions() -> Iterator[list[str]]:
    """Collect the texts of all `SuspectDataWarning`s of this thread within the context, for records and pages."""
    texts: list[str] = []
    token = _collected.set(texts)
    try:
        yield texts
    finally:
        _collected.reset(token)


@dataclass(frozen=True)
class RawSlices:
    """Slices of one scan, from whichever kind of file.

    Attributes:
        kspace: k-space, complex64 `(slice, coil, y, x)`, in the scanner's unit. Zero where `mask` is false.
        mask: bool, padded about the centre to the size of the k-space; true where measured: `(y, x)`, or
            `(slice, y, x)` where slices were measured at different positions. Read without a mask: true where any
            coil has a value other than zero.
        slice_indices: index in the scan of each slice. Slices are counted in the order of their positions, where the
            file states positions.
        scan_id: name of the scan: the file's name without its ending.
        n_slices: number of slices that the scan has on disk.
        coil_maps: coil maps, complex64 `(slice, coil, y, x)`, or `None` where there are none or nobody asked for them.
        fully_sampled: fully sampled image, complex64 `(slice, y, x)` in the unit of `kspace`, or `None` likewise.
        voxel_size_mm: size (slice, y, x) in mm, from slice to slice of the scan; `None` where it is not known.
        orientation: direction in which (slice, y, x) run, such as ("SI", "AP", "LR"), or `None`.
        affine: matrix from places (slice, y, x) in these arrays to mm in the world axes of NIfTI (right, anterior,
            superior), where the file tells where the slices lay in the patient.
        noise_std: standard deviation of the real part of the noise of `kspace`, where a noise scan says it.
        label: text that names the sampling in tables and figures, for example "8x".
        patient_id: identifier of the patient, where the header of the file states one.
    """

    kspace: Complex[Tensor, "slice coil y x"]
    mask: Bool[Tensor, "y x"] | Bool[Tensor, "slice y x"]
    slice_indices: tuple[int, ...]
    scan_id: str
    n_slices: int
    coil_maps: Complex[Tensor, "slice coil y x"] | None = None
    fully_sampled: Complex[Tensor, "slice y x"] | None = None
    voxel_size_mm: tuple[float, float, float] | None = None
    orientation: tuple[str, str, str] | None = None
    affine: Float[np.ndarray, "4 4"] | None = None
    noise_std: float | None = None
    label: str = ""
    patient_id: str | None = None

    @property
    def known_geometry(self) -> str:
        """What is known of the position of the slices in the patient, for records."""
        if self.affine is not None:
            return "scanner coordinates"
        if self.orientation is not None and self.voxel_size_mm is not None:
            return f"directions alone ({', '.join(self.orientation)}), the origin is in the middle"
        return "unknown, neither directions nor positions are stated by the file"


def common_mask(masks: Bool[np.ndarray, "slice y x"]) -> Bool[np.ndarray, "..."]:
    """Return the mask `(y, x)` of all slices where it is the same, else the masks `(slice, y, x)`."""
    return masks[0].copy() if (masks == masks[0]).all() else masks


def check_finite(array: Complex[np.ndarray, " slice *rest"], name: str, path: Path, indices: Iterable[int]) -> None:
    """Check slice by slice that all values are finite.

    Raises:
        ValueError: some are not; their slices are named.
    """
    if not np.isfinite(array).all():
        bad = [index for index, values in zip(indices, array, strict=True) if not np.isfinite(values).all()]
        raise ValueError(
            f"`{name}` of {path} has values that are not finite in the slices {bad}. Leave them out by `slices`."
        )


def slice_indices(slices: range | slice | Iterable[int] | None, n_slices: int, path: Path) -> tuple[int, ...]:
    """Return the numbers of the slices asked for, in that order.

    Raises:
        ValueError: there is none, or one is outside the scan.
    """
    if slices is None:
        return tuple(range(n_slices))
    if not isinstance(slices, Iterable | slice) or isinstance(slices, str):
        raise ValueError(f"`slices` must be a range, a slice or whole numbers from 0, got {slices!r}.")
    if isinstance(slices, slice):
        if slices.step == 0:
            raise ValueError(f"`slices` must not have the step 0, got {slices}.")
        numbers = (slices.start, slices.stop, slices.step)
        text = ":".join("" if number is None else str(number) for number in numbers).removesuffix(":")
        bounds = [bound for bound in (slices.start, slices.stop) if bound is not None]
        if any(not 0 <= bound <= n_slices for bound in bounds):
            raise ValueError(f"`slices` must lie within the {n_slices} slices of {path}, got {text}.")
        slices = range(n_slices)[slices]
    indices = tuple(slices)
    if not all(isinstance(index, Integral) for index in indices):
        raise ValueError(f"`slices` must be a range, a slice or whole numbers from 0, got {slices!r}.")
    indices = tuple(int(index) for index in indices)
    outside = [index for index in indices if not 0 <= index < n_slices]
    if outside:
        raise ValueError(
            f"`slices` must be from 0 to {n_slices - 1}, the slices of {path}, got {outside[:5]} among them."
        )
    if not indices:
        raise ValueError(f"`slices` selects none of the {n_slices} slices of {path}.")
    return indices


def check_voxel_size(value: Any, name: str, where: str = "") -> tuple[float, float, float]:
    """Check that a voxel size is three lengths in mm.

    Args:
        value: anything: what a user or a file says.
        name: name of the argument or of the entry in the file.
        where: words between the name and what is wrong, such as " of scan.h5".

    Raises:
        ValueError: it is not three numbers, or one of them is not between 0.01 and 100.
    """
    try:
        edges = tuple(float(edge) for edge in np.ravel(np.asarray(value, dtype=float)))
    except (TypeError, ValueError):
        edges = ()
    if len(edges) != 3 or not plausible_voxel_size(edges):
        way_out = " Correct it there; a raw file may also leave it out, and you give the size." if where else ""
        raise ValueError(
            f"`{name}`{where} must be three edge lengths (slice, y, x) in mm, each from {SMALLEST_VOXEL_MM} to "
            f"{LARGEST_VOXEL_MM:g}, got {_short(value)}.{way_out}"
        )
    return edges


def plausible_voxel_size(edges: Iterable[float]) -> bool:
    """Return whether edge lengths can be those of voxels in mm; sizes in metres or of a field of view cannot."""
    return all(SMALLEST_VOXEL_MM <= edge <= LARGEST_VOXEL_MM for edge in edges)


def _short(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 80 else text[:77] + "..."
