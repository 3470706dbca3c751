"""Where the slices of a scan lie, by the positions and directions of its acquisitions, as far as these agree."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from .cartesian_header import CartesianHeader
from .orientation import nearest_directions, patient_affine
from .raw_slices import warn_suspect

__all__ = ["SliceStack", "common_directions", "regular_step", "slice_stack"]

_SAME_MM = 1e-3
_FARTHEST_MM = 3000.0  # from the isocentre: beyond any scanner's table
_SPACING_TO_THICKNESS = (0.05, 20.0)


@dataclass(frozen=True)
class SliceStack:
    """Slices of a 2-D scan in the order in which they lie.

    Attributes:
        numbers: slice counter of each slice.
        spacing_mm: distance from slice to slice; the thickness that the header states where positions do not tell.
        directions: unit vectors of readout, phase encoding and slice (left, posterior, superior), from each slice to
            the next; `None` where they are not known or contradict the positions.
        positions: centre of each slice (left, posterior, superior) in mm, where it can be relied on.
    """

    numbers: tuple[int, ...]
    spacing_mm: float
    directions: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    positions: Float[np.ndarray, "slice 3"] | None

    @property
    def orientation(self) -> tuple[str, str, str] | None:
        """Nearest anatomical directions of (slice, y, x)."""
        if self.directions is None:
            return None
        read, phase, across = self.directions
        return nearest_directions((across, phase, read))

    def affine(
        self, indices: tuple[int, ...], pixel_mm: tuple[float, float], centre: tuple[int, int]
    ) -> Float[np.ndarray, "4 4"] | None:
        """Return the affine of some of the slices, see `RawSlices.affine`; `None` where it is not known.

        Args:
            indices: places of the slices in the stack.
            pixel_mm: size of a pixel (y, x).
            centre: pixel (y, x) that lies at the position of the slice.
        """
        step = regular_step(indices)
        if self.directions is None or self.positions is None or step is None:
            return None
        read, phase, across = self.directions
        size = (self.spacing_mm * step, *pixel_mm)
        return patient_affine((across, phase, read), size, self.positions[indices[0]], (0, *centre))


def regular_step(indices: tuple[int, ...]) -> int | None:
    """Return the distance of equidistant numbers, 1 for a single number; `None` for others."""
    steps = {b - a for a, b in itertools.pairwise(indices)} or {1}
    return steps.pop() if len(steps) == 1 else None


def slice_stack(header: CartesianHeader, heads: Shaped[np.ndarray, " line"], path: Path) -> SliceStack:
    """Put the slices of a 2-D scan in the order of their positions.

    Raises:
        ValueError: acquisitions of one slice lie at different positions: the slice counter is wrong.
    """
    numbers = tuple(np.unique(heads["idx"]["slice"]).tolist())
    _check_number(header, len(numbers), path)
    thickness = header.slice_thickness_mm
    directions = common_directions(heads, path)
    positions = _slice_positions(heads, numbers, thickness, path)
    if positions is None or len(numbers) == 1:
        return SliceStack(numbers, thickness, directions, positions)
    order = _order(positions, None if directions is None else directions[2])
    if order is None:
        warn_suspect(
            f"the slices of {path} do not lie along a line, or several of them lie at the same position: their order "
            "is that of the slice counter, their distance the thickness in the header, and their positions are taken "
            "as unknown."
        )
        return SliceStack(numbers, thickness, directions, None)
    numbers, positions = tuple(numbers[number] for number in order), positions[order]
    steps = np.diff(positions, axis=0)
    distances = np.linalg.norm(steps, axis=1)
    spacing, along = float(np.median(distances)), steps.sum(axis=0)
    along = along / np.linalg.norm(along)
    low, high = _SPACING_TO_THICKNESS
    if not low <= spacing / thickness <= high:
        warn_suspect(
            f"the slices of {path} are {spacing:.4g} mm apart by their positions, but {thickness:.4g} mm thick by the "
            "header: one of them is in another unit. The thickness is used, and positions are taken as unknown."
        )
        return SliceStack(numbers, thickness, directions, None)
    if not np.allclose(distances, spacing, rtol=0.02, atol=1e-2):
        warn_suspect(
            f"the slices of {path} lie {distances.min():.4g} to {distances.max():.4g} mm apart: {spacing:.4g} mm is "
            "used for all, and their positions are taken as unknown."
        )
        return SliceStack(numbers, spacing, _turned(directions, along), None)
    if directions is not None and abs(along @ directions[2]) < 0.999:
        warn_suspect(
            f"the slices of {path} are stacked along {np.round(along, 3).tolist()}, but slice_dir says "
            f"{np.round(directions[2], 3).tolist()}: their directions and positions are taken as unknown."
        )
        return SliceStack(numbers, spacing, None, None)
    return SliceStack(numbers, spacing, _turned(directions, along), positions)


def common_directions(
    heads: Shaped[np.ndarray, " line"], path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the unit vectors of readout, phase encoding and slice that all acquisitions share.

    `None` where the file has none; with a warning, where they differ or are no axes of a slice.
    """
    vectors = np.stack([heads[name].astype(float) for name in ("read_dir", "phase_dir", "slice_dir")], axis=1)
    if not vectors.any():
        return None
    first = vectors[0]
    if not (np.isfinite(first).all() and np.allclose(first @ first.T, np.eye(3), atol=0.02)):
        warn_suspect(
            f"read_dir, phase_dir and slice_dir of {path} are no perpendicular unit vectors: "
            f"{np.round(first, 3).tolist()}. The orientation is taken as unknown."
        )
        return None
    if not np.allclose(vectors, first, atol=0.02):
        warn_suspect(
            f"acquisitions of {path} lie at different angles, which one volume cannot have: the orientation is taken "
            "as unknown. Reconstruct the slices one by one."
        )
        return None
    read, phase, across = (vector / np.linalg.norm(vector) for vector in first)
    return read, phase, across


def _check_number(header: CartesianHeader, n_slices: int, path: Path) -> None:
    if header.slice.maximum is None:
        return
    stated = header.slice.maximum - (header.slice.minimum or 0) + 1
    if stated != n_slices:
        warn_suspect(f"the header of {path} states {stated} slices (encodingLimits), but the data has {n_slices}.")


def _slice_positions(
    heads: np.ndarray, numbers: tuple[int, ...], thickness: float, path: Path
) -> Float[np.ndarray, "slice 3"] | None:
    """Position of each slice; `None` with a warning where they cannot be positions in mm."""
    positions = heads["position"].astype(float)
    if not np.isfinite(positions).all() or np.abs(positions).max() > _FARTHEST_MM:
        warn_suspect(f"positions of {path} cannot be positions in mm in a scanner; they are taken as unknown.")
        return None
    if len(numbers) > 1 and not positions.any():
        return None  # never set
    _, first, inverse = np.unique(heads["idx"]["slice"], return_index=True, return_inverse=True)
    spread = np.linalg.norm(positions - positions[first][inverse], axis=1)
    worst = int(spread.argmax())
    if spread[worst] > max(thickness / 2, 1.0):
        raise ValueError(
            f"acquisitions of slice {numbers[int(inverse[worst])]} of {path} lie {spread[worst]:.4g} mm apart, but a "
            f"slice is {thickness:.4g} mm thick: the slice counter is wrong. Correct it in the file."
        )
    return positions[first]


def _order(positions: Float[np.ndarray, "slice 3"], across: np.ndarray | None) -> np.ndarray | None:
    """Places of the slices along their stack; as stored if they lie in order, forwards or backwards.

    `None` where slices coincide or lie on no line.
    """
    if across is None:
        distances = np.linalg.norm(positions - positions[0], axis=1)
        across = positions[int(distances.argmax())] - positions[0]
        if not across.any():
            return None
        across = across / np.linalg.norm(across)
        off = positions - positions[0] - np.outer((positions - positions[0]) @ across, across)
        if np.linalg.norm(off, axis=1).max() > 0.05 * distances.max():
            return None
    along = positions @ across
    steps = np.diff(along)
    if (steps > _SAME_MM).all() or (steps < -_SAME_MM).all():
        return np.arange(len(positions))
    order = np.argsort(along, kind="stable")
    return None if (np.diff(along[order]) <= _SAME_MM).any() else order


def _turned(directions: tuple[np.ndarray, np.ndarray, np.ndarray] | None, along: np.ndarray) -> tuple | None:
    """Directions of which the last points from slice to slice."""
    if directions is None:
        return None
    read, phase, across = directions
    return read, phase, across if along @ across > 0 else -across
