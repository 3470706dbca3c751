"""Images and segmentations of one volume enter, scores leave: PSNR and SSIM, precision, recall and Dice.

A volume is all slices of one scan together: scores are taken over a volume, then summarised over scans. A score that
has no value (nothing was segmented, say) is NaN, never a flattering 0 or 1, and `summarize` leaves it out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

__all__ = ["ScoreSummary", "dice", "precision", "psnr", "recall", "ssim", "summarize"]

# Sizes are not bound by name: that two arrays differ is said by an error of our own.
Images = Float[Tensor, "_slice _y _x"] | Complex[Tensor, "_slice _y _x"]
Pixels = Bool[Tensor, "..."]


def psnr(images: Images, target: Images) -> float:
    """Peak signal-to-noise ratio of the magnitude, 20 log10(max / RMSE) in dB, over all pixels of the volume.

    Args:
        images: `(slice, y, x)`, complex or magnitude, in the unit of `target`.
        target: `(slice, y, x)`, the fully sampled images; their largest magnitude is the peak.

    Returns:
        dB; infinite if the two agree everywhere, NaN if `target` is zero everywhere.

    Raises:
        ValueError: the shapes differ, or a value is not finite.
    """
    magnitude, reference = _magnitudes(images, target)
    peak, rmse = reference.max(), (magnitude - reference).square().mean().sqrt()
    return float(20 * torch.log10(peak / rmse)) if peak > 0 else float("nan")


def ssim(images: Images, target: Images, data_range: float | None = None) -> float:
    """Structural similarity of the magnitude (Wang et al. 2004), slice by slice, averaged over the volume.

    Gaussian window of 11 x 11 pixels, sigma 1.5; the data range is the largest magnitude of `target` in the volume.
    Only windows that lie inside the image count.

    Args:
        images: `(slice, y, x)`, complex or magnitude, in the unit of `target`; at least 11 x 11 pixels.
        target: `(slice, y, x)`, the fully sampled images.
        data_range: for slices that are scored one by one, the largest magnitude of their volume; `None` for that of
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
    return float(metric(*((part / peak).float()[:, None] for part in (magnitude, reference))).mean())


def precision(segmentation: Pixels, reference: Pixels) -> float:
    """Share of the segmentation that lies in the reference; the paper's score of the lower bound S_low.

    NaN where nothing is segmented: an empty lower bound claims nothing that could be wrong.
    """
    return _ratio(_overlap(segmentation, reference), int(segmentation.sum()))


def recall(segmentation: Pixels, reference: Pixels) -> float:
    """Share of the reference that the segmentation covers; the paper's score of the upper bound S_up.

    NaN where the reference is empty: there is nothing to cover.
    """
    return _ratio(_overlap(segmentation, reference), int(reference.sum()))


def dice(segmentation: Pixels, reference: Pixels) -> float:
    """Twice the overlap over the sum of both sizes; NaN where both are empty, 0 where one of them is."""
    return _ratio(2 * _overlap(segmentation, reference), int(segmentation.sum()) + int(reference.sum()))


@dataclass(frozen=True)
class ScoreSummary:
    """Distribution of a score over scans and classes.

    Attributes:
        mean: of the values that exist; NaN without any, as are the next three.
        median: 50 % percentile.
        lower_quartile: 25 % percentile.
        upper_quartile: 75 % percentile.
        n_values: how many values exist.
        n_undefined: how many were NaN and left out.
    """

    mean: float
    median: float
    lower_quartile: float
    upper_quartile: float
    n_values: int
    n_undefined: int


def summarize(scores: Iterable[float]) -> ScoreSummary:
    """Mean, median and quartiles of scores, without those that are NaN."""
    scores = np.asarray(list(scores), dtype=np.float64)
    values = scores[~np.isnan(scores)]
    n_undefined = len(scores) - len(values)
    if not len(values):
        return ScoreSummary(*[float("nan")] * 4, 0, n_undefined)
    lower, median, upper = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return ScoreSummary(float(values.mean()), median, lower, upper, len(values), n_undefined)


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
