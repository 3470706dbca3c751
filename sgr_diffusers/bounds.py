"""Turns segmentations into masks of tissues, their volumes, and lower and upper bounds.

The pipeline, the results of a scan, the evaluation and the app all count by these functions, which take torch tensors
and numpy arrays alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, Real, UInt8
from torch import Tensor

__all__ = [
    "SegmentationBounds",
    "bounds_from_samples",
    "bounds_from_segmentations",
    "check_voxel_size",
    "extreme_samples",
    "tissue_masks",
    "uncertain_share",
    "volume_mm3",
]

if TYPE_CHECKING:  # tensors and arrays have no common type with the methods of both
    Array: TypeAlias = Any
    Numbers: TypeAlias = Any
else:
    Array = Tensor | np.ndarray
    Numbers = Real[Tensor, "..."] | Real[np.ndarray, "..."] | np.number  # volumes, counts, or a single one of them


def tissue_masks(
    segmentations: UInt8[Array, "batch own target *size"], class_indices: Sequence[int]
) -> Bool[Array, "batch class target *size"]:
    """Return the pixels of each class in its own reconstructions.

    Args:
        segmentations: label maps `(batch, class, target, y, x)`, or without the target axis. Where the class axis has
            length 1, as for target="none", all classes are taken from the same reconstruction.
        class_indices: label number of each class, from 1.
    """
    if isinstance(segmentations, Tensor):
        labels: Array = torch.tensor(class_indices, dtype=segmentations.dtype, device=segmentations.device)
    else:
        labels = np.array(class_indices, dtype=segmentations.dtype)
    return segmentations == labels.reshape(-1, *[1] * (segmentations.ndim - 2))


def volume_mm3(
    masks: Bool[Array, "*batch y x"] | Integer[Array, "..."],
    voxel_size_mm: Sequence[float] | None = None,
    axes: tuple[int, ...] = (-2, -1),
) -> Numbers:
    """Compute the volume in mm^3 of the true pixels (paper Eq. 7).

    Args:
        masks: pixels of tissues, for example `(batch, class, y, x)`, or counts of them.
        voxel_size_mm: three edge lengths of a voxel in mm; `None` counts voxels.
        axes: axes to add up: those of a slice, or also that of the slices for the volume in a whole scan.
    """
    width, height, depth = (1.0, 1.0, 1.0) if voxel_size_mm is None else voxel_size_mm
    return masks.sum(axis=axes) * float(width * height * depth)


def check_voxel_size(voxel_size_mm: Sequence[float] | None) -> None:
    """Refuse edge lengths of a voxel that are not three positive numbers.

    Raises:
        ValueError: naming the argument.
    """
    if voxel_size_mm is None:
        return
    edges = np.asarray(voxel_size_mm)
    if edges.shape != (3,) or edges.dtype.kind not in "iuf" or not all(0 < edge < 1e4 for edge in edges):
        raise ValueError(
            "`voxel_size_mm` must be three positive edge lengths in mm, such as (0.8, 0.3, 0.3), got "
            f"{voxel_size_mm!r}."
        )


def uncertain_share(lower: Numbers, upper: Numbers) -> Numbers:
    """Return V_unc / V_up = (V_up - V_low) / V_up of volumes or voxel counts; NaN where the upper one is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (upper - lower) / upper
    where = torch.where if isinstance(share, Tensor) else np.where
    return where(upper > 0, share, float("nan"))


def extreme_samples(volumes: Real[Array, "..."], axis: int = -1) -> tuple[Numbers, Numbers]:
    """Return numbers of the samples with the smallest and with the largest volume; of several equal ones the first.

    They are the bounds of repeated reconstruction, the paper's baseline RR.
    """
    return volumes.argmin(axis=axis), volumes.argmax(axis=axis)


@dataclass(frozen=True)
class SegmentationBounds:
    """Lower and upper bounds of tissues.

    Attributes:
        lower: S_low `(batch, class, y, x)`, bool: pixels of the class in the lower reconstruction.
        upper: S_up `(batch, class, y, x)`, bool: pixels of the class in the upper reconstruction.
        voxel_size_mm: edge lengths of a voxel in mm; `None` counts voxels.
    """

    lower: Bool[Tensor, "batch class y x"]
    upper: Bool[Tensor, "batch class y x"]
    voxel_size_mm: Sequence[float] | None = None

    @property
    def lower_volume_mm3(self) -> Float[Tensor, "batch class"]:
        """V_low in mm^3."""
        return volume_mm3(self.lower, self.voxel_size_mm)

    @property
    def upper_volume_mm3(self) -> Float[Tensor, "batch class"]:
        """V_up in mm^3."""
        return volume_mm3(self.upper, self.voxel_size_mm)

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
        return uncertain_share(self.lower_volume_mm3, self.upper_volume_mm3)


def bounds_from_segmentations(
    segmentations: UInt8[Tensor, "batch class target y x"],
    class_indices: Sequence[int],
    targets: Sequence[str] = ("lower", "upper"),
    voxel_size_mm: Sequence[float] | None = None,
) -> SegmentationBounds:
    """Take the guided reconstructions of each class as its bounds.

    Args:
        segmentations: label maps `(batch, class, target, y, x)`, as the pipeline returns them for `target="both"`.
        class_indices: label numbers of the entries of the class axis, from 1.
        targets: names of the entries of the target axis; must hold "lower" and "upper".
        voxel_size_mm: edge lengths of a voxel in mm; `None` counts voxels.

    Raises:
        TypeError: `segmentations` is no tensor of whole numbers.
        ValueError: an axis and its names differ in length, "lower" or "upper" is missing, a label number is not from 1
            to 255, or `voxel_size_mm` is not three positive lengths.
    """
    class_indices = _checked_labels(segmentations, "(batch, class, target, y, x)", class_indices, voxel_size_mm)
    targets = tuple(targets or ())
    if len(targets) != segmentations.shape[2] or "lower" not in targets or "upper" not in targets:
        raise ValueError(
            f"`targets` must name the {segmentations.shape[2]} entries of the target axis, 'lower' and 'upper' among "
            f"them, got {targets}. Reconstruct with target='both'."
        )
    if len(class_indices) != segmentations.shape[1]:
        raise ValueError(
            f"`class_indices` must name the {segmentations.shape[1]} entries of the class axis of `segmentations`, "
            f"got {class_indices}."
        )
    masks = tissue_masks(segmentations, class_indices)
    lower, upper = (masks[:, :, targets.index(target)] for target in ("lower", "upper"))
    return SegmentationBounds(lower, upper, voxel_size_mm)


def bounds_from_samples(
    segmentations: UInt8[Tensor, "batch sample y x"],
    class_indices: Sequence[int],
    voxel_size_mm: Sequence[float] | None = None,
) -> SegmentationBounds:
    """Take the `extreme_samples` of each slice and class as bounds: repeated reconstruction, the paper's baseline RR.

    Args:
        segmentations: label maps `(batch, sample, y, x)` of independent unguided reconstructions, 16 in the paper:
            entry 0 of the class axis of what the pipeline returns for `target="none"`.
        class_indices: label numbers to bound, from 1.
        voxel_size_mm: edge lengths of a voxel in mm; `None` counts voxels.

    Raises:
        TypeError, ValueError: as `bounds_from_segmentations`, or there is no sample.
    """
    class_indices = _checked_labels(segmentations, "(batch, sample, y, x)", class_indices, voxel_size_mm)
    masks = tissue_masks(segmentations[:, None], class_indices)
    lowest, highest = extreme_samples(volume_mm3(masks))
    return SegmentationBounds(_take(masks, lowest), _take(masks, highest), voxel_size_mm)


def _checked_labels(
    segmentations: Tensor, axes: str, class_indices: Sequence[int], voxel_size_mm: Sequence[float] | None
) -> tuple[int, ...]:
    """The label numbers as a tuple, where all arguments of a function for bounds can be used."""
    if not isinstance(segmentations, Tensor) or segmentations.dtype.is_floating_point or segmentations.is_complex():
        kind = segmentations.dtype if isinstance(segmentations, Tensor) else type(segmentations).__name__
        raise TypeError(
            f"`segmentations` must be a torch tensor of whole numbers, uint8, got {kind}. Those of the pipeline with "
            "output_type='pt' are; `torch.from_numpy` makes one of an array."
        )
    if segmentations.ndim != axes.count(",") + 1 or 0 in segmentations.shape:
        raise ValueError(f"`segmentations` must be {axes}, not empty, got shape {tuple(segmentations.shape)}.")
    is_list = isinstance(class_indices, Sequence) and not isinstance(class_indices, str) and len(class_indices) > 0
    if not is_list or not all(isinstance(k, Integral) and 1 <= k <= 255 for k in class_indices):
        raise ValueError(f"`class_indices` must be label numbers from 1 to 255, got {class_indices!r}.")
    check_voxel_size(voxel_size_mm)
    return tuple(class_indices)


def _take(
    masks: Bool[Tensor, "batch class sample y x"], sample: Int[Tensor, "batch class"]
) -> Bool[Tensor, "batch class y x"]:
    index = sample[:, :, None, None, None].expand(-1, -1, 1, *masks.shape[-2:])
    return masks.gather(2, index).squeeze(2)
