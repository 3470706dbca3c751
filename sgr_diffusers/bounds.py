"""Computes bounds of tissues, their volumes and the uncertainty boundary from segmentations of reconstructions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from .guidance.losses import volume_mm3

__all__ = ["SegmentationBounds", "bounds_from_samples", "bounds_from_segmentations"]


@dataclass(frozen=True)
class SegmentationBounds:
    """Lower and upper bounds of tissues.

    Attributes:
        lower: S_low `(batch, class, y, x)`, bool: pixels of the class in the lower reconstruction.
        upper: S_up `(batch, class, y, x)`, bool: pixels of the class in the upper reconstruction.
        lower_volume_mm3: V_low `(batch, class)`, float32, mm^3.
        upper_volume_mm3: V_up `(batch, class)`, float32, mm^3.
    """

    lower: Bool[Tensor, "batch class y x"]
    upper: Bool[Tensor, "batch class y x"]
    lower_volume_mm3: Float[Tensor, "batch class"]
    upper_volume_mm3: Float[Tensor, "batch class"]

    @property
    def boundary(self) -> Bool[Tensor, "batch class y x"]:
        """Uncertainty boundary S_up minus S_low: in the upper segmentation, not in the lower one."""
        return self.upper & ~self.lower

    @property
    def uncertain_volume_mm3(self) -> Float[Tensor, "batch class"]:
        """V_unc = V_up - V_low in mm^3; negative where guidance failed to order the two."""
        return self.upper_volume_mm3 - self.lower_volume_mm3

    @property
    def uncertain_share(self) -> Float[Tensor, "batch class"]:
        """V_unc / V_up; NaN where the upper volume is zero."""
        return self.uncertain_volume_mm3 / self.upper_volume_mm3


def bounds_from_segmentations(
    segmentations: UInt8[Tensor, "batch class target y x"],
    class_indices: Sequence[int],
    targets: Sequence[str] = ("lower", "upper"),
    voxel_size_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> SegmentationBounds:
    """Bounds from guided reconstructions.

    Args:
        segmentations: label maps `(batch, class, target, y, x)`, as the pipeline returns them for `target="both"`.
        class_indices: label numbers of the entries of the class axis, from 1.
        targets: names of the entries of the target axis; must hold "lower" and "upper".
        voxel_size_mm: edge lengths of a voxel in mm.

    Raises:
        ValueError: an axis and its names differ in length, or "lower" or "upper" is missing.
    """
    targets = tuple(targets)
    if len(targets) != segmentations.shape[2] or "lower" not in targets or "upper" not in targets:
        raise ValueError(
            f"`targets` must name the {segmentations.shape[2]} entries of the target axis, 'lower' and 'upper' among "
            f"them, got {targets}. Reconstruct with target='both'."
        )
    masks = _masks(segmentations, class_indices)
    lower, upper = masks[:, :, targets.index("lower")], masks[:, :, targets.index("upper")]
    return SegmentationBounds(lower, upper, volume_mm3(lower, voxel_size_mm), volume_mm3(upper, voxel_size_mm))


def bounds_from_samples(
    segmentations: UInt8[Tensor, "batch sample y x"],
    class_indices: Sequence[int],
    voxel_size_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> SegmentationBounds:
    """Bounds by repeated reconstruction, the paper's baseline RR.

    For each slice and class the sample with the smallest volume is the lower bound, the one with the largest the upper
    bound; of several equal ones the first.

    Args:
        segmentations: label maps `(batch, sample, y, x)` of independent unguided reconstructions, 16 in the paper:
            entry 0 of the class axis of what the pipeline returns for `target="none"`.
        class_indices: label numbers to bound, from 1.
        voxel_size_mm: edge lengths of a voxel in mm.
    """
    masks = torch.stack([segmentations == index for index in class_indices], dim=1)
    volumes = volume_mm3(masks, voxel_size_mm)
    smallest, largest = volumes.argmin(dim=2), volumes.argmax(dim=2)
    return SegmentationBounds(
        _take(masks, smallest),
        _take(masks, largest),
        volumes.gather(2, smallest[..., None]).squeeze(2),
        volumes.gather(2, largest[..., None]).squeeze(2),
    )


def _masks(
    segmentations: UInt8[Tensor, "batch class target y x"], class_indices: Sequence[int]
) -> Bool[Tensor, "batch class target y x"]:
    if len(class_indices) != segmentations.shape[1]:
        raise ValueError(
            f"`class_indices` must name the {segmentations.shape[1]} entries of the class axis of `segmentations`, "
            f"got {tuple(class_indices)}."
        )
    indices = torch.as_tensor(class_indices, dtype=segmentations.dtype, device=segmentations.device)
    return segmentations == indices[None, :, None, None, None]


def _take(
    masks: Bool[Tensor, "batch class sample y x"], sample: Int[Tensor, "batch class"]
) -> Bool[Tensor, "batch class y x"]:
    index = sample[:, :, None, None, None].expand(-1, -1, 1, *masks.shape[-2:])
    return masks.gather(2, index).squeeze(2)
