"""Compresses k-space and maps of many coils to the few virtual coils that hold most of the signal."""

from typing import NamedTuple

import torch
from jaxtyping import Complex
from torch import Tensor

__all__ = ["CoilCompression", "compress_coils"]


class CoilCompression(NamedTuple):
    """What `compress_coils` returns.

    Attributes:
        kspace: k-space, complex64 `(slice, virtual_coil, y, x)`.
        coil_maps: coil maps, complex64 `(slice, virtual_coil, y, x)`, or `None` if none were given.
        matrix: compression matrix `(virtual_coil, coil)` with orthonormal rows.
        energy: share of the signal's energy that is kept, 0 to 1.
    """

    kspace: Complex[Tensor, "slice virtual y x"]
    coil_maps: Complex[Tensor, "slice virtual y x"] | None
    matrix: Complex[Tensor, "virtual coil"]
    energy: float


def compress_coils(
    kspace: Complex[Tensor, "slice coil y x"], n_coils: int, coil_maps: Complex[Tensor, "slice coil y x"] | None = None
) -> CoilCompression:
    """Compress coils by a singular value decomposition of all samples (Buehrer et al., MRM 57:1131-1139, 2007).

    One matrix serves all slices, so that the phase of neighbours stays comparable. Maps that are given go through the
    same matrix and are no longer normalised where energy is lost; better estimate them from the compressed k-space.

    Args:
        kspace: k-space of the real coils, zero where not measured.
        n_coils: number of virtual coils to keep.
        coil_maps: maps of the real coils.

    Raises:
        ValueError: `n_coils` is out of range, or k-space is zero or not finite.
    """
    coils = kspace.shape[1]
    if not 1 <= n_coils <= coils:
        raise ValueError(
            f"`n_coils` must be from 1 to {coils}, the number of coils of `kspace`, got {n_coils} (on the "
            "command line, --coils)."
        )
    covariance = sum(
        of_slice.flatten(1).to(torch.complex128) @ of_slice.flatten(1).to(torch.complex128).mH for of_slice in kspace
    )
    if not bool(covariance.isfinite().all()) or not bool(covariance.any()):
        raise ValueError("`kspace` is zero everywhere or not finite: there is nothing to find virtual coils from.")
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    matrix = vectors.flip(1)[:, :n_coils].mH.to(torch.complex64)
    energy = float(values.flip(0)[:n_coils].sum() / values.sum())
    maps = None if coil_maps is None else torch.einsum("vc,scyx->svyx", matrix, coil_maps)
    return CoilCompression(torch.einsum("vc,scyx->svyx", matrix, kspace), maps, matrix, energy)
