"""Branches of a call: which image of the flat batch belongs to which slice, class and target."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Branches"]


@dataclass(frozen=True)
class Branches:
    """Numbers the images of a call: one for each slice, class and target, the target varying fastest.

    Attributes:
        n_slices: number of slices.
        class_numbers: label of each class that is pushed, from 1; `(0,)` for plain reconstruction.
        targets: name of each target, "lower" or "upper", or of each sample.
    """

    n_slices: int
    class_numbers: tuple[int, ...]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return self.n_slices * self.per_slice

    @property
    def per_slice(self) -> int:
        """Number of images of each slice."""
        return len(self.class_numbers) * len(self.targets)

    @property
    def first_of_slices(self) -> list[int]:
        """Number of the first image of each slice."""
        return list(range(0, len(self), self.per_slice))

    def expand(self, of_slices: Tensor) -> Tensor:
        """Repeat what there is once for each slice, for each of its images: `(slice, ...)` to `(image, ...)`."""
        return of_slices.repeat_interleave(self.per_slice, dim=0)

    def alternating_signs(self, device: torch.device) -> Float[Tensor, " image"]:
        """Return the sign of the noise of each image, 1 and -1 in turn within a slice."""
        return torch.tensor([(-1.0) ** (image % self.per_slice) for image in range(len(self))], device=device)

    def are_equal(self, images: Tensor) -> bool:
        """Return whether all images of a slice are the same."""
        return torch.equal(images, self.expand(images[:: self.per_slice]))

    def unflatten(self, images: Tensor) -> Tensor:
        """Give the images their axes: `(image, ...)` to `(slice, class, target, ...)`."""
        return images.reshape(self.n_slices, len(self.class_numbers), len(self.targets), *images.shape[1:])

    def slice_of(self, images: Sequence[int]) -> list[int]:
        """Return the slice of each of the numbered images."""
        return [image // self.per_slice for image in images]

    def labels(self, images: Sequence[int]) -> Int[Tensor, " image"]:
        """Return the label of the class of each of the numbered images."""
        labels = [number for number in self.class_numbers for _ in self.targets]
        return torch.tensor([labels[image % self.per_slice] for image in images])

    def is_upper(self, images: Sequence[int]) -> Bool[Tensor, " image"]:
        """Return whether the target of each of the numbered images is "upper"."""
        return torch.tensor([self.targets[image % len(self.targets)] == "upper" for image in images])
