"""Draw batches of random fields on an image grid: fractal and fibrous textures, smooth shading, leaves.

All functions draw from the generator they are given, on its device, and return float32 tensors `(n, y, x)`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor

__all__ = ["dead_leaves", "smooth_fields", "texture_fields", "uniform", "view_per_image"]


def uniform(generator: Generator, shape: tuple[int, ...], low: float | int = 0.0, high: float | int = 1.0) -> Tensor:
    """Draw uniform numbers in [low, high) on the device of the generator."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def view_per_image(values: Shaped[Tensor, " n"]) -> Shaped[Tensor, "n 1 1"]:
    """Reshape one number per image so that it broadcasts over the pixels of its image."""
    return values.view(-1, 1, 1)


def texture_fields(
    generator: Generator, n: int, size: Sequence[int], *, fibrous: bool = False
) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "n y x"]]:
    """Draw two independent fields per image with a random power-law spectrum, mean 0 and standard deviation 1.

    Args:
        generator: random generator.
        n: number of images.
        size: number of pixels (y, x).
        fibrous: flag to stretch the spectrum along a random direction, like that of muscle fibres and septa.
    """
    device = generator.device
    k_y = torch.fft.fftfreq(size[0], device=device)[:, None]
    k_x = torch.fft.fftfreq(size[1], device=device)[None, :]
    angle = view_per_image(uniform(generator, (n,), 0, math.pi))
    stretch = view_per_image(uniform(generator, (n,), 1.0, 5.0 if fibrous else 1.5))
    along = k_y * angle.cos() + k_x * angle.sin()
    across = k_x * angle.cos() - k_y * angle.sin()
    radius = ((stretch * along) ** 2 + across**2).sqrt()
    # wavelengths beyond 4 to 60 pixels carry no more power than these; the exponent is that of the amplitude
    corner = view_per_image(torch.exp(uniform(generator, (n,), math.log(1 / 60), math.log(1 / 4))))
    exponent = view_per_image(uniform(generator, (n,), 0.6, 2.2))
    amplitude = (corner**2 + radius**2) ** (-exponent / 2)
    amplitude[:, 0, 0] = 0
    noise = torch.randn((n, *size, 2), generator=generator, device=device)
    fields = torch.fft.ifft2(torch.view_as_complex(noise) * amplitude)
    deviation = torch.view_as_real(fields).square().mean(dim=(1, 2, 3)).sqrt()
    fields = fields / view_per_image(deviation)
    return fields.real, fields.imag


def smooth_fields(
    generator: Generator, n: int, size: Sequence[int], cycles: tuple[float, float] = (0.2, 1.5), n_waves: int = 4
) -> Float[Tensor, "n y x"]:
    """Draw one smooth field per image, a sum of plane waves, with a standard deviation of about 1.

    Args:
        generator: random generator.
        n: number of images.
        size: number of pixels (y, x).
        cycles: range of the number of periods across the field of view.
        n_waves: number of plane waves.
    """
    y = torch.linspace(-0.5, 0.5, size[0], device=generator.device)[:, None]
    x = torch.linspace(-0.5, 0.5, size[1], device=generator.device)[None, :]
    total = torch.zeros(1, device=generator.device)
    for _ in range(n_waves):
        angle, phase = (view_per_image(uniform(generator, (n,), 0, 2 * math.pi)) for _ in range(2))
        frequency = 2 * math.pi * view_per_image(uniform(generator, (n,), *cycles))
        total = total + torch.cos(frequency * (angle.cos() * y + angle.sin() * x) + phase)
    return total * math.sqrt(2 / n_waves)


def dead_leaves(
    generator: Generator, n: int, size: tuple[int, int], n_leaves: int = 40, shape: float = 2.5
) -> Int[Tensor, "n y x"]:
    """Draw images of overlapping ellipses and rectangles inside of a body (Lee et al., IJCV 41, 2001).

    Args:
        generator: random generator.
        n: number of images.
        size: number of pixels (y, x).
        n_leaves: number of leaves per image.
        shape: exponent of the power law of the leaves' sizes, larger for more small ones.

    Returns:
        The number of the leaf that is on top at each pixel, from 1; 0 outside of the body, which fills the field of
        view in half of the images.
    """
    device = generator.device
    y = torch.linspace(-1, 1, size[0], device=device)[None, :, None]
    x = torch.linspace(-1, 1, size[1], device=device)[None, None, :]

    def ellipse(radius_low: float, radius_high: float, reach: float, power: float = 1.0) -> Tensor:
        u = uniform(generator, (n,))
        radius = view_per_image(radius_low * (radius_high / radius_low) ** (u**power))
        aspect = view_per_image(torch.exp(0.5 * torch.randn(n, generator=generator, device=device)).clamp(0.25, 4))
        angle = view_per_image(uniform(generator, (n,), 0, math.pi))
        centre_y, centre_x = (view_per_image(uniform(generator, (n,), -reach, reach)) for _ in range(2))
        along = (y - centre_y) * angle.cos() + (x - centre_x) * angle.sin()
        across = (x - centre_x) * angle.cos() - (y - centre_y) * angle.sin()
        round_one = (along / (radius * aspect)) ** 2 + (across * aspect / radius) ** 2
        square = torch.maximum(along.abs() / (radius * aspect), across.abs() * aspect / radius)
        is_square = view_per_image(uniform(generator, (n,)) < 0.25)
        return torch.where(is_square, square, round_one) < 1

    leaves = torch.ones((n, *size), dtype=torch.long, device=device)
    for number in range(2, n_leaves + 1):
        leaves.masked_fill_(ellipse(0.03, 0.7, 1.0, shape), number)
    body = ellipse(0.55, 1.0, 0.25) | view_per_image(uniform(generator, (n,)) < 0.5)
    return torch.where(body, leaves, 0)
