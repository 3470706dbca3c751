"""Symmetries of MR images: an image that is turned, mirrored, or given another phase is as likely as before."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..mri.operators import channels_to_complex, complex_to_channels

__all__ = ["Symmetry"]

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True)
class Symmetry:
    """Change of complex images that can be undone. The default changes nothing.

    Attributes:
        mirrored: axes that are reversed first, -2 for y and -1 for x.
        is_transposed: whether y and x are exchanged then.
        is_conjugated: whether the phase changes its sign then.
        phase: angle in radians that is added to the phase at the end.
    """

    mirrored: tuple[int, ...] = ()
    is_transposed: bool = False
    is_conjugated: bool = False
    phase: float = 0.0

    @classmethod
    def of_step(cls, number: int) -> "Symmetry":
        """Return the symmetry of a step: the eight of a square in turn, with phases that fill the circle evenly."""
        k = 3 * number % 8
        mirrored = tuple(axis for axis in (-2, -1) if k & -axis)
        return cls(mirrored, bool(k & 4), number // 8 % 2 == 1, number * _GOLDEN_ANGLE)

    def apply(self, channels: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 2 n m"]:
        """Change images."""
        if self == Symmetry():
            return channels
        images = channels_to_complex(channels).flip(self.mirrored)
        images = images.mT if self.is_transposed else images
        images = images.conj() if self.is_conjugated else images
        return complex_to_channels(images * complex(math.cos(self.phase), math.sin(self.phase)))

    def undo(self, channels: Float[Tensor, "batch 2 n m"]) -> Float[Tensor, "batch 2 y x"]:
        """Change images back."""
        if self == Symmetry():
            return channels
        images = channels_to_complex(channels) * complex(math.cos(self.phase), -math.sin(self.phase))
        images = images.conj() if self.is_conjugated else images
        images = images.mT if self.is_transposed else images
        return complex_to_channels(images.flip(self.mirrored).resolve_conj())
