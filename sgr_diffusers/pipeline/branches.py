"""Branches of a call: which image of the flat batch belongs to which slice, class and target."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Branches", "Selection"]


@dataclass(frozen=True)
class Selection:
    """Some images of a call, with what the device needs to know of each.

    Attributes:
        index: index of the images in the flat batch.
        slices: index of their slices; of a single one, which broadcasts, where all images are of the same slice.
        class_number: label of the class of each image, 0 for plain reconstruction.
        is_upper: flag of each image, true if its target is "upper".
        slice_number: number of the slice of each image.
    """

    index: slice | Int[Tensor, " image"]
    slices: slice | Int[Tensor, " image"]
    class_number: Int[Tensor, " image"]
    is_upper: Bool[Tensor, " image"]
    slice_number: Int[Tensor, " image"]


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

    @property
    def share_noise(self) -> bool:
        """Whether all images of a slice start from the same noise; samples do not."""
        return self.class_numbers != (0,) or len(self.targets) == 1

    def unflatten(self, images: Tensor) -> Tensor:
        """Give the images their axes: `(image, ...)` to `(slice, class, target, ...)`."""
        return images.reshape(self.n_slices, len(self.class_numbers), len(self.targets), *images.shape[1:])

    def select(self, images: Sequence[int], device: torch.device) -> Selection:
        """Look up the numbered images, and hold what is known of them on a device."""
        slices = [image // self.per_slice for image in images]
        labels = [number for number in self.class_numbers for _ in self.targets]
        is_upper = [self.targets[image % len(self.targets)] == "upper" for image in images]
        is_one_slice = slices[0] == slices[-1]  # slices ascend with the images; coil maps are not copied then
        return Selection(
            index=_index(images, device),
            slices=_index(slices[:1] if is_one_slice else slices, device),
            class_number=_send([labels[image % self.per_slice] for image in images], device),
            is_upper=_send(is_upper, device),
            slice_number=_send(slices, device),
        )


def _index(numbers: Sequence[int], device: torch.device) -> slice | Tensor:
    """Return an index for the numbered entries of an axis: a slice, which copies nothing, where they are in a row."""
    row = range(numbers[0], numbers[0] + len(numbers))
    return slice(row.start, row.stop) if list(numbers) == list(row) else _send(numbers, device)


def _send(values: Sequence[int | bool], device: torch.device) -> Tensor:
    """Make a tensor on a device without waiting for it."""
    return torch.tensor(values).to(device, non_blocking=True)
