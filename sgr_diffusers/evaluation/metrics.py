"""Computes PSNR, SSIM and Dice of one volume, all slices of a scan together.

A score that has no value (nothing was segmented, say) is NaN, never a flattering 0 or 1.
"""

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

__all__ = ["dice", "psnr", "ssim"]

# Names that begin with _ may differ between arrays: these functions compare shapes themselves, and name what differs.
Images = Float[Tensor, "_slice _y _x"] | Complex[Tensor, "_slice _y _x"]
Pixels = Bool[Tensor, "..."]


def psnr(images: Images, target: Images) -> float:
    """Return peak signal-to-noise ratio of the magnitude, 20 log10(max / RMSE) in dB, over all pixels of the volume.

    Args:
        images: images `(slice, y, x)`, complex or magnitude, in the unit of `target`.
        target: fully sampled images `(slice, y, x)`; their largest magnitude is the peak.

    Returns:
        dB; infinite if the two agree everywhere, NaN if `target` is zero everywhere.

    Raises:
        ValueError: the shapes differ, or a value is not finite.
    """
    magnitude, reference = _magnitudes(images, target)
    peak, rmse = reference.max(), (magnitude - reference).square().mean().sqrt()
    return float(20 * torch.log10(peak / rmse)) if peak > 0 else float("nan")


def ssim(images: Images, target: Images, data_range: float | None = None) -> float:
    """Return the structural similarity of the magnitude (Wang et al. 2004), slice by slice, averaged over the volume.

    Gaussian window of 11 x 11 pixels, sigma 1.5; the data range is the largest magnitude of `target` in the volume.
    Only windows that lie inside the image count.

    Args:
        images: images `(slice, y, x)`, complex or magnitude, in the unit of `target`; at least 11 x 11 pixels.
        target: fully sampled images `(slice, y, x)`.
        data_range: largest magnitude of the volume, for slices that are scored one by one; `None` for that of
            `target`.

    Returns:
        At most 1; NaN if `target` is zero everywhere.

    Raises:
        ValueError: the shapes differ, a slice is smaller than the window, or a value is not finite.
    """
    magnitude, reference = _magnitudes(images, target)
    if min(reference.shape[-2:]) < 11:
        raise ValueError(f"`target` must have at least 11 x 11 pixels, the window, got {tuple(reference.shape)}.")
    peak = reference.max() if data_range is None else torch.tensor(data_range, dtype=torch.float64)
    if not peak > 0:
        return float("nan")
    from monai.metrics import SSIMMetric

    metric = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=11, kernel_sigma=1.5)
    # In units of the data range: the metric works in single precision whatever it is given.
    return float(torch.as_tensor(metric(*((part / peak).float()[:, None] for part in (magnitude, reference)))).mean())


def dice(segmentation: Pixels, reference: Pixels) -> float:
    """Return twice the overlap over the sum of both sizes; NaN where both are empty, 0 where one is."""
    return _ratio(2 * _overlap(segmentation, reference), int(segmentation.sum()) + int(reference.sum()))


def _magnitudes(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != target.shape:
        raise ValueError(
            f"`images` must have the shape of `target`, {tuple(target.shape)}, got {tuple(images.shape)}. Pick one "
            "class and target of a reconstruction."
        )
    magnitude, reference = images.abs().double(), target.abs().double()
    for name, values in (("images", magnitude), ("target", reference)):
        if not torch.isfinite(values).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity. A score would hide it.")
    return magnitude, reference


def _overlap(segmentation: Tensor, reference: Tensor) -> int:
    if segmentation.shape != reference.shape:
        raise ValueError(
            f"`segmentation` and `reference` must have the same shape, got {tuple(segmentation.shape)} and "
            f"{tuple(reference.shape)}."
        )
    return int((segmentation & reference).sum())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
