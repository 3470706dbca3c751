"""Scales slices as read from disk and augments them for training.

Pure functions on batches. Chance enters only through the `torch.Generator` given; every entry has its own draw.
Images of the prior are real ``(batch, 2, y, x)`` (real, imaginary), those of the segmenter ``(batch, 1, y, x)``
(magnitude), labels integer ``(batch, y, x)``.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Complex, Float, Int, Shaped
from torch import Generator, Tensor
from torch.nn import functional as F

__all__ = [
    "add_gaussian_noise",
    "center_fit",
    "draw_flips",
    "draw_shifts",
    "draw_uniform",
    "mirror",
    "rotate_phase",
    "scale_to_quantile",
    "shift",
    "turn_and_zoom",
]


def scale_to_quantile(
    image: Complex[Tensor, "*batch y x"], quantile: float | int = 0.99
) -> tuple[Complex[Tensor, "*batch y x"], Float[Tensor, "*batch"]]:
    """Divide every slice by a quantile of its own magnitude, as the paper does ("0.99 quantile of every slice").

    Args:
        image: complex image ``(*batch, y, x)``, any unit.
        quantile: quantile of the magnitude, in (0, 1].

    Returns:
        The scaled image, and the divisor ``(*batch)`` that multiplies it back.

    Raises:
        ValueError: if `quantile` is out of range, or a slice's quantile is zero or not finite.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"`quantile` must be in (0, 1], got {quantile}.")
    scale = _quantile(image.abs().flatten(-2), float(quantile))
    bad = ~(scale.isfinite() & (scale > 0))
    if bad.any():
        raise ValueError(
            f"`image` must have a finite, non-zero {quantile} quantile in every slice; it is not so in slices "
            f"{bad.nonzero().squeeze(-1).tolist()}. Leave empty or damaged slices out."
        )
    return image / scale[..., None, None], scale


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """`torch.quantile` along the last axis, bit for bit; a tenth of its time, as only what lies above is sorted."""
    rank = torch.tensor(quantile, dtype=values.dtype) * (values.shape[-1] - 1)
    lower = int(rank)
    above = values.topk(values.shape[-1] - lower, dim=-1, sorted=False).values.sort(dim=-1).values
    return torch.lerp(above[..., 0], above[..., :2][..., -1], (rank - lower).to(values))


def center_fit(image: Shaped[Tensor, "*batch y x"], size: Sequence[int]) -> Shaped[Tensor, "*batch out_y out_x"]:
    """Crop, or pad with zeros, about the centre to `size` (y, x); the pixel ``n // 2`` stays the centre."""
    padding = []
    for have, want in zip(reversed(image.shape[-2:]), reversed(size), strict=True):
        before = want // 2 - have // 2
        padding += [before, want - have - before]
    return F.pad(image, padding)


def draw_uniform(n: int, low: float | int, high: float | int, generator: Generator) -> Float[Tensor, " n"]:
    """Draw `n` numbers, uniform in [low, high)."""
    return low + (high - low) * torch.rand(n, generator=generator)


def draw_flips(n: int, probability: float | int, generator: Generator) -> Bool[Tensor, " n"]:
    """Draw `n` decisions, each true with `probability`."""
    return torch.rand(n, generator=generator) < probability


def draw_shifts(n: int, largest: Sequence[int], generator: Generator) -> Int[Tensor, "n 2"]:
    """Draw `n` displacements (y, x) in whole pixels, uniform in [-largest, largest] along each axis."""
    return torch.stack([torch.randint(-limit, limit + 1, (n,), generator=generator) for limit in largest], dim=1)


def mirror(batch: Shaped[Tensor, " batch *rest"], flips: Bool[Tensor, " batch"], axis: int = -1) -> Tensor:
    """Mirror the chosen entries along `axis`. Along x (left-right), a right knee becomes a valid left one.

    The same `flips` are to be given for an image and its labels.
    """
    flips = flips.to(batch.device).view(-1, *(1,) * (batch.ndim - 1))
    return torch.where(flips, batch.flip(axis), batch)


def shift(batch: Shaped[Tensor, " batch *rest"], shifts: Int[Tensor, " batch 2"]) -> Tensor:
    """Displace every entry by whole pixels (y, x), with wrap-around, as aliasing would."""
    moved = [
        entry.roll((int(down), int(right)), dims=(-2, -1)) for entry, (down, right) in zip(batch, shifts, strict=True)
    ]
    return torch.stack(moved)


def turn_and_zoom(
    batch: Shaped[Tensor, "batch channel y x"],
    degrees: Float[Tensor, " batch"],
    zooms: Float[Tensor, " batch"],
    interpolation: str = "bilinear",
) -> Shaped[Tensor, "batch channel y x"]:
    """Turn every image about its centre and enlarge it; what comes from outside of it is 0.

    The same draws are to be given for an image and its labels. Angles are right where pixels are square.

    Args:
        batch: images, or labels of any type with ``interpolation="nearest"``.
        degrees: angles in degrees, positive from the x axis to the y axis.
        zooms: factors that lengths in the image are multiplied by, positive.
        interpolation: interpolation between pixels, as of `torch.nn.functional.grid_sample`.
    """
    height, width = batch.shape[-2:]
    cosine, sine = (part(degrees.deg2rad()) / zooms for part in (torch.cos, torch.sin))
    zero = torch.zeros_like(zooms)
    # From coordinates in the result to coordinates in the image, both from -1 to 1 along each side.
    rows = [cosine, sine * height / width, zero, -sine * width / height, cosine, zero]
    matrices = torch.stack(rows, dim=1).view(-1, 2, 3).to(batch.device, torch.float32)
    grid = F.affine_grid(matrices, list(batch.shape), align_corners=False)
    images = batch if batch.is_floating_point() else batch.to(torch.float32)
    return F.grid_sample(images, grid.to(images), mode=interpolation, align_corners=False).to(batch.dtype)


def rotate_phase(
    channels: Float[Tensor, "batch 2 y x"], angles: Float[Tensor, " batch"]
) -> Float[Tensor, "batch 2 y x"]:
    """Multiply every image by ``exp(1j * angle)``: its global phase is arbitrary (receiver, coil combination).

    Args:
        channels: real and imaginary part.
        angles: angles in radians.
    """
    cosine, sine = (part.to(channels).view(-1, 1, 1) for part in (angles.cos(), angles.sin()))
    real, imaginary = channels.unbind(dim=1)
    return torch.stack([cosine * real - sine * imaginary, sine * real + cosine * imaginary], dim=1)


def add_gaussian_noise(
    magnitude: Float[Tensor, "batch channel y x"], deviations: Float[Tensor, " batch"], generator: Generator
) -> Float[Tensor, "batch channel y x"]:
    """Add white Gaussian noise of a standard deviation per entry, and clamp at 0 as the paper's authors do."""
    noise = torch.randn(magnitude.shape, generator=generator).to(magnitude)
    return (magnitude + deviations.to(magnitude).view(-1, 1, 1, 1) * noise).clamp_min(0)
