"""Defines the output of a call of the pipeline: one object that names the computed fields and their axes."""

from dataclasses import dataclass, fields

import numpy as np
from diffusers.utils import BaseOutput
from jaxtyping import Bool, Complex, Float, UInt8
from torch import Tensor

__all__ = ["SGRMRIPipelineOutput"]


@dataclass
class SGRMRIPipelineOutput(BaseOutput):
    """Reconstructions of a batch of slices, one for each class and target. Torch tensors, or numpy arrays on request.

    Attributes:
        images: images `(batch, class, target, y, x)`, complex64, in the unit of the k-space given.
        segmentations: labels `(batch, class, target, y, x)`, uint8, of all classes in each image, 0 the background;
            `None` without a segmentation model.
        volumes_mm3: volume `(batch, class, target)`, float32, in mm^3, of that class in its own reconstruction (for
            target "none": of all classes asked for, together); `None` without a segmentation model.
        data_residual: residual ||A x - y|| / ||y|| `(batch, class, target)`, float32, of the image returned; 0 fits
            exactly.
        noise_residual: residual `(batch,)`, float32: the `data_residual` that noise alone would leave.
        classes: names along the class axis; for target "none" a single one, "all" or the names asked for.
        targets: names along the target axis: "lower" before "upper", or "none", or "sample_0", "sample_1", ..., or
            "mean".
        zero_filled: zero-filled image A^H y `(batch, y, x)`, complex64, in the unit of the k-space given.
        scale: number `(batch,)`, float32, that each slice was divided by to bring it to the scale of the prior.
        standard_deviation: standard deviation `(batch, class, y, x)`, float32, of each complex pixel around the mean,
            in the unit of the k-space given: that of the samples, over the checkpoint's `deviation_of_mean`, and that
            of the noise which the last step carries into all of them; `None` without `combine="mean"`.
        target_volumes_mm3: volume `(class, target)`, float32, that guidance by `target_volume_mm3` was to reach in all
            slices together, NaN for a class without one; `None` without such guidance. With `coverage`, the ends of
            the calibrated interval of each class.
        attained: whether `volumes_mm3`, summed over the slices, came within 5 % of it, or within a voxel, bool
            `(class, target)`. The data may leave no such image, or the guidance may be too weak to find it.
        point_estimates_mm3: volume `(class,)`, float32, of all slices together, mean over unguided samples; `None`
            without `coverage`.
    """

    images: Complex[Tensor, "batch class target y x"] | Complex[np.ndarray, "batch class target y x"]
    segmentations: UInt8[Tensor, "batch class target y x"] | UInt8[np.ndarray, "batch class target y x"] | None
    volumes_mm3: Float[Tensor, "batch class target"] | Float[np.ndarray, "batch class target"] | None
    data_residual: Float[Tensor, "batch class target"] | Float[np.ndarray, "batch class target"]
    noise_residual: Float[Tensor, " batch"] | Float[np.ndarray, " batch"]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    zero_filled: Complex[Tensor, "batch y x"] | Complex[np.ndarray, "batch y x"]
    scale: Float[Tensor, " batch"] | Float[np.ndarray, " batch"]
    standard_deviation: Float[Tensor, "batch class y x"] | Float[np.ndarray, "batch class y x"] | None = None
    target_volumes_mm3: Float[Tensor, "class target"] | Float[np.ndarray, "class target"] | None = None
    attained: Bool[Tensor, "class target"] | Bool[np.ndarray, "class target"] | None = None
    point_estimates_mm3: Float[Tensor, " class"] | Float[np.ndarray, " class"] | None = None

    def all_fields(self) -> tuple:
        """Return the values of all fields in order; `to_tuple` would leave out those that are `None`."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def numpy(self) -> "SGRMRIPipelineOutput":
        """Return the same output with numpy arrays in place of torch tensors."""
        values = (value.cpu().numpy() if isinstance(value, Tensor) else value for value in self.all_fields())
        return SGRMRIPipelineOutput(*values)
