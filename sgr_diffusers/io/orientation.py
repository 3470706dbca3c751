"""Directions and positions of a scanner (left, posterior, superior) turned into affines and axis codes of NIfTI."""

import numpy as np
from jaxtyping import Float

__all__ = ["LPS_TO_RAS", "nearest_directions", "patient_affine"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_DIRECTION = {(0, 1): "LR", (0, -1): "RL", (1, 1): "PA", (1, -1): "AP", (2, 1): "IS", (2, -1): "SI"}


def patient_affine(
    axes: tuple[np.ndarray, ...], size_mm: tuple[float, ...], position: np.ndarray, at: tuple[float | int, ...]
) -> Float[np.ndarray, "4 4"]:
    """Axes and a position of ISMRMRD (left, posterior, superior), which the voxel `at` has, to those of NIfTI."""
    affine = np.eye(4)
    for column, (axis, size) in enumerate(zip(axes, size_mm, strict=True)):
        affine[:3, column] = LPS_TO_RAS @ axis * size
    affine[:3, 3] = LPS_TO_RAS @ position - affine[:3, :3] @ np.asarray(at, float)
    return affine


def nearest_directions(axes: tuple[np.ndarray, ...]) -> tuple[str, str, str] | None:
    """Nearest anatomical directions; `None` where two axes are nearest to the same."""
    codes = []
    for axis in axes:
        vector = LPS_TO_RAS @ axis
        world = int(np.abs(vector).argmax())
        codes.append(_DIRECTION[world, 1 if vector[world] > 0 else -1])
    return tuple(codes) if len({"".join(sorted(code)) for code in codes}) == 3 else None
