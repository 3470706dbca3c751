"""Checks k-space against the statements of its file: whether the centre lies where it should, and the mask fits."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Complex, Float

from .raw_slices import warn_suspect

__all__ = ["check_centre", "check_mask_has_data", "slice_energy"]

_REACH = 2  # samples about the centre within which the peak may lie: echoes are never exactly centred
_SUSPECT, _IMPOSSIBLE = 0.1, 0.01  # energy about the centre, relative to the peak
_FAR = 1 / 8  # of an axis
_EMPTY_SHARE = 0.05


def slice_energy(kspace: Complex[np.ndarray, "slice coil *axes"]) -> Float[np.ndarray, "*axes"]:
    """Add up |k|^2 over slices and coils, in float64, without a copy of the whole k-space."""
    energy = np.zeros(kspace.shape[2:])
    for coils in kspace:
        for coil in coils:
            energy += coil.real.astype(np.float64) ** 2 + coil.imag.astype(np.float64) ** 2
    return energy


def check_centre(energy: Float[np.ndarray, "*axes"], path: Path, axes: tuple[str, ...], remedy: str) -> None:
    """Hold the k-space centre, at `n // 2` of each axis, against the data, whose energy peaks there.

    Args:
        energy: |k|^2 summed over coils and slices.
        path: path of the file, for messages.
        axes: name of each axis, for messages.
        remedy: sentence that says how the file is to be corrected.

    Raises:
        ValueError: the peak is more than an eighth of an axis away, and the energy about the centre less than 1 % of
            it: no image can be made of this. A smaller contradiction is a `SuspectDataWarning`.
    """
    centre = tuple(n // 2 for n in energy.shape)
    near = energy[tuple(slice(max(c - _REACH, 0), c + _REACH + 1) for c in centre)].max(initial=0.0)
    highest = energy.max(initial=0.0)
    if near >= _SUSPECT * highest:
        return
    peak = tuple(int(index) for index in np.unravel_index(int(energy.argmax()), energy.shape))
    text = (
        f"the k-space centre of {path} should be at ({', '.join(axes)}) = {centre}, but the energy of the data peaks "
        f"at {peak}; about the centre it has {near / highest:.1e} of that. {remedy}"
    )
    is_far = any(abs(p - c) > _FAR * n for p, c, n in zip(peak, centre, energy.shape, strict=True))
    if is_far and near < _IMPOSSIBLE * highest:
        raise ValueError(text)
    warn_suspect(text)


def check_mask_has_data(
    mask: Bool[np.ndarray, "*slice y x"], has_data: Bool[np.ndarray, "slice y x"], path: Path
) -> None:
    """Warn of a mask that says measured where k-space is zero in all coils: zeros would be taken for data."""
    said = np.broadcast_to(mask, has_data.shape)
    n_said, n_empty = int(said.sum()), int((said & ~has_data).sum())
    if n_empty > _EMPTY_SHARE * n_said:
        warn_suspect(
            f"`mask` for {path} says that {n_said} positions were measured, but k-space is zero in all coils at "
            f"{n_empty} of them: the mask may belong to other data."
        )
