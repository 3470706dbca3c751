"""Completes a block of k-space of which only a part was measured."""

import torch
from jaxtyping import Bool, Complex
from torch import Tensor
from torch.nn.functional import fold, unfold

__all__ = ["complete_kspace"]

_WIDTH = 4  # of a patch
_N_ITERATIONS = 30
_RANK = 2 * _WIDTH**2
_LARGEST_RANK = 2 / 3  # of the number of entries of a patch


def complete_kspace(
    kspace: Complex[Tensor, "coil y x"], is_measured: Bool[Tensor, "y x"]
) -> Complex[Tensor, "coil y x"]:
    """Fill in what was not measured so that all patches of k-space are combinations of a few (SAKE).

    Coils that are smooth in space make the patches of 4 x 4 entries of all coils linearly dependent. Each iteration
    projects the patches onto their strongest singular vectors, averages them where they overlap, and puts the
    measurement back (Shin et al., MRM 72:959-970, 2014).

    Args:
        kspace: block of k-space of at least 4 x 4; unmeasured entries are ignored.
        is_measured: entries that were measured.

    Returns:
        The block, completed.
    """
    measured = kspace * is_measured
    completed, size = measured, tuple(is_measured.shape)
    n_overlapping = fold(unfold(torch.ones_like(measured.real), _WIDTH), size, _WIDTH)
    rank = min(_RANK, int(_LARGEST_RANK * len(kspace) * _WIDTH**2))
    for _ in range(_N_ITERATIONS):
        patches = unfold(completed, _WIDTH)  # entry, patch
        strongest = torch.linalg.eigh(patches @ patches.mH).eigenvectors[:, -rank:]
        patches = strongest @ (strongest.mH @ patches)
        completed = torch.where(is_measured, measured, fold(patches, size, _WIDTH) / n_overlapping)
    return completed
