"""Readouts turned into image space, or to a smaller field of view; some of their samples may be missing."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Complex

__all__ = ["crop_field_of_view", "readout_to_image"]

_NOISE_GAIN = 1e-2  # singular values below this share of the largest are not inverted
_LONGEST_ASYMMETRIC = 4096  # samples; time and memory grow with the cube and the square of it


def readout_to_image(
    lines: Complex[np.ndarray, "*lines sample"], measured: Bool[np.ndarray, " sample"], n_kept: int
) -> Complex[np.ndarray, "*lines kept"]:
    """Compute the image along the readout within the middle `n_kept` pixels of the field of view.

    It is the least-squares image with that support: for lines measured as a whole the inverse FFT, cropped; for an
    asymmetric echo the image that agrees with what was measured, with what k-space leaves open set to zero.

    Args:
        lines: k-space lines, centre at `sample // 2`.
        measured: flags of the samples that were measured; the others are not looked at.
        n_kept: number of pixels to keep.

    Raises:
        ValueError: an asymmetric echo is too long.
    """
    n = lines.shape[-1]
    if measured.all():
        image = np.fft.ifft(np.fft.ifftshift(lines, axes=-1), axis=-1, norm="ortho")
        first = n // 2 - n_kept // 2
        return np.fft.fftshift(image, axes=-1)[..., first : first + n_kept].astype(np.complex64)
    if n > _LONGEST_ASYMMETRIC:
        raise ValueError(f"asymmetric echoes may have at most {_LONGEST_ASYMMETRIC} samples, got {n}.")
    matrix = _to_image(tuple(measured.tolist()), n_kept)
    return (lines[..., measured] @ matrix.T).astype(np.complex64)


def crop_field_of_view(
    lines: Complex[np.ndarray, "*lines sample"], measured: Bool[np.ndarray, " sample"], n_kept: int
) -> tuple[Complex[np.ndarray, "*lines kept"], Bool[np.ndarray, " kept"]]:
    """Remove readout oversampling: the k-space that belongs to the middle `n_kept` pixels of the field of view.

    Returns:
        k-space, centre at `n_kept // 2`, and which of its samples lie within what was measured; the others are zero.
    """
    n = lines.shape[-1]
    if n_kept == n:
        return np.where(measured, lines, 0).astype(np.complex64), measured
    positions = (np.arange(n_kept) - n_kept // 2) * n / n_kept + n // 2
    kept = np.flatnonzero(measured)
    within = (positions >= kept.min()) & (positions <= kept.max())
    image = readout_to_image(lines, measured, n_kept)
    shifted = np.fft.ifftshift(image, axes=-1)
    kspace = np.fft.fftshift(np.fft.fft(shifted, axis=-1, norm="ortho"), axes=-1)
    return np.where(within, kspace, 0).astype(np.complex64), within


@lru_cache(maxsize=8)
def _to_image(measured: tuple[bool, ...], n_kept: int) -> np.ndarray:
    """Pseudo-inverse of the encoding (measured samples x kept pixels)."""
    n = len(measured)
    samples = np.flatnonzero(measured) - n // 2
    pixels = np.arange(n_kept) - n_kept // 2
    encoding = np.exp(-2j * np.pi * np.outer(samples, pixels) / n) / np.sqrt(n)
    return np.linalg.pinv(encoding, rcond=_NOISE_GAIN).astype(np.complex64)
