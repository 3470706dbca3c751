"""Retrospective undersampling of a fully sampled file that stores no masks of its own."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool

from ..mri.masks import pad_mask, poisson_disc_mask
from .raw_slices import RawSlices

__all__ = ["undersample"]

_FULL_SHARE = 0.98  # of the ellipse in the smallest rectangle around what was measured
_CALIBRATION = 24  # lines, as SKM-TEA's masks have
_SHARE_OF_AXIS, _SHARE_OF_SAMPLES = 0.4, 1 / 3  # that the calibration region may take at most


def undersample(raw: RawSlices, acceleration: int | float, seed: int = 0) -> RawSlices:
    """Undersample fully sampled slices by a variable-density Poisson-disc mask, the same for all of them.

    As in SKM-TEA, the acceleration counts the acquired grid: the smallest rectangle about the k-space centre that
    holds all that was measured. The calibration region has 24 x 24 samples, or fewer where the matrix is small.

    Args:
        raw: slices that were measured as a whole; corners and padding may be missing.
        acceleration: acceleration of the acquired grid, above 1.
        seed: seed of the mask.

    Raises:
        ValueError: the slices are undersampled already, or no mask reaches the acceleration.
    """
    measured = raw.mask.numpy()
    measured = measured if measured.ndim == 2 else np.asarray(measured.all(axis=0))
    shape = _acquired_shape(measured)
    acquired = pad_mask(np.ones(shape, bool), measured.shape)
    share = float(measured[pad_mask(_ellipse(shape), measured.shape)].mean()) if acquired.any() else 0.0
    if share < _FULL_SHARE:
        raise ValueError(
            f"`acceleration` {acceleration:g}: {raw.scan_id} is undersampled already ({share:.0%} of the "
            f"ellipse in its grid {tuple(shape)} are measured), and can only be reconstructed as it is."
        )
    if not acceleration > 1:
        raise ValueError(f"`acceleration` must be above 1, got {acceleration:g}.")
    most = int(np.sqrt(_SHARE_OF_SAMPLES * shape[0] * shape[1] / acceleration))
    rows, columns = (min(_CALIBRATION, int(n * _SHARE_OF_AXIS), most) for n in shape)
    chosen = pad_mask(poisson_disc_mask(shape, acceleration, (rows, columns), seed).mask, measured.shape)
    mask = torch.from_numpy(chosen & measured)
    return dataclasses.replace(raw, kspace=torch.where(mask, raw.kspace, 0), mask=mask)


def _ellipse(shape: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Ellipse within a rectangle; scanners leave out the corners of k-space."""
    y, x = ((np.arange(n) - n // 2) / max(n / 2 - 1, 0.5) for n in shape)
    return y[:, None] ** 2 + x[None, :] ** 2 < 1


def _acquired_shape(measured: Bool[np.ndarray, "y x"]) -> tuple[int, int]:
    """Smallest rectangle (y, x), padded about the centre as `pad_mask` does, that holds all that was measured."""
    sizes = []
    for axis in (1, 0):
        n = measured.shape[1 - axis]
        used = np.flatnonzero(measured.any(axis=axis))
        reach = max(n // 2 - int(used[0]), int(used[-1]) - n // 2 + 1) if used.size else 0
        sizes.append(min(2 * reach, n))
    return sizes[0], sizes[1]
