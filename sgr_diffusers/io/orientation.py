"""Directions and positions of a scanner (left, posterior, superior) turned into affines and axis codes of NIfTI."""

import numpy as np
from jaxtyping import Float

__all__ = ["LPS_TO_RAS", "nearest_directions", "patient_affine"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_DIRECTIONS = (("RL", "LR"), ("AP", "PA"), ("SI", "IS"))  # down and up each world axis of NIfTI


def patient_affine(
    axes: tuple[np.ndarray, ...], size_mm: tuple[float, ...], position: np.ndarray, at: tuple[float | int, ...]
) -> Float[np.ndarray, "4 4"]:
    """Turn axes and the position of voxel `at` in ISMRMRD (left, posterior, superior) into an affine of NIfTI."""
    affine = np.eye(4)
    for column, (axis, size) in enumerate(zip(axes, size_mm, strict=True)):
        affine[:3, column] = LPS_TO_RAS @ axis * size
    affine[:3, 3] = LPS_TO_RAS @ position - affine[:3, :3] @ np.asarray(at, float)
    return affine


def nearest_directions(axes: tuple[np.ndarray, ...]) -> tuple[str, str, str] | None:
    """Return the nearest anatomical directions; `None` where an axis has no direction."""
    from nibabel.orientations import aff2axcodes

    affine = patient_affine(axes, (1.0, 1.0, 1.0), np.zeros(3), (0, 0, 0))
    codes = aff2axcodes(affine, _DIRECTIONS)
    return None if None in codes else codes
