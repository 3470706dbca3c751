"""Give anatomy a random appearance: images for training that are far broader than any one scanner or contrast.

In the spirit of SynthSeg (Billot et al., Medical Image Analysis 86, 2023), but with texture and with an acquisition:
every image draws the intensity and the texture of each tissue anew, then shading, phase, chemical shift, limited
resolution with its ringing, and noise. Everything runs in batches on the device of its generator.

Three kinds of content: knees (region numbers of an `AnatomyBank` and standard qDESS pictures of the same slices),
pictures of real anatomy that the caller brings, and dead leaves, which stand for any other anatomy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int, UInt8
from torch import Generator, Tensor

from ...mri.operators import fft2c, ifft2c
from ..transforms import center_fit
from .anatomy_bank import BANK_PIXEL_MM, LABEL_OF_REGION, draw_pose, sample, sample_smooth
from .canvas import REGIONS
from .fields import dead_leaves, smooth_fields, texture_fields, uniform, view_per_image

__all__ = ["CONTRASTS", "VariedImages", "varied_acquisition"]

CONTRASTS = "qDESS with water excitation", "proton density", "T1", "any"
_OVERSAMPLING = 2  # points per pixel and axis at which the object is drawn
_SNR = 30, 300  # range of the 0.99 quantile over the standard deviation of the noise
_MARGIN = 0.125  # share of the field of view that is drawn beyond each end of x, and may wrap around

# Tissues that share an intensity, and the regions of each; every muscle belly varies a little around its tissue.
_DARK = ("fascia", "tendon", "vessel_wall", "cortex", "meniscus")
_TISSUES = {
    "fat": ("fat", "hoffa"),
    "marrow": ("marrow", "scar"),
    "skin": ("skin",),
    "dark": _DARK,
    "vessel": ("vessel",),
    "fluid": ("fluid", "meniscus_rim"),
    "cartilage": ("femoral_cartilage", "tibial_cartilage", "patellar_cartilage"),
    "muscle": REGIONS[REGIONS.index("meniscus") + 1 :],
}
# Ranges of intensity relative to the 0.99 quantile, by contrast in the order of `CONTRASTS`.
_LEVELS = {
    "fat": ((0.08, 0.40), (0.60, 1.10), (0.80, 1.20), (0.0, 1.0)),
    "marrow": ((0.05, 0.25), (0.50, 1.00), (0.60, 1.10), (0.0, 1.0)),
    "skin": ((0.20, 0.60), (0.30, 0.80), (0.30, 0.80), (0.0, 1.0)),
    "dark": ((0.02, 0.20), (0.02, 0.20), (0.02, 0.20), (0.0, 0.6)),
    "vessel": ((0.30, 1.20), (0.02, 0.60), (0.10, 1.20), (0.0, 1.0)),
    "fluid": ((0.80, 1.30), (0.50, 1.20), (0.15, 0.45), (0.0, 1.2)),
    "cartilage": ((0.40, 0.95), (0.40, 0.90), (0.30, 0.70), (0.0, 1.0)),
    "muscle": ((0.25, 0.95), (0.25, 0.60), (0.25, 0.55), (0.0, 1.0)),
}
# Largest relative amplitude of the fractal, fibrous and fine texture, and of bright septa, by tissue.
_TEXTURES = {
    "fat": (0.35, 0.15, 0.20, 0.60),
    "marrow": (0.35, 0.10, 0.40, 0.10),
    "skin": (0.30, 0.20, 0.20, 0.00),
    "dark": (0.30, 0.30, 0.30, 0.20),
    "vessel": (0.20, 0.05, 0.10, 0.00),
    "fluid": (0.15, 0.05, 0.08, 0.05),
    "cartilage": (0.25, 0.15, 0.12, 0.00),
    "muscle": (0.30, 0.40, 0.20, 0.20),
}


@dataclass
class VariedImages:
    """Draw batches of complex training images with labels from a bank of anatomy.

    Attributes:
        regions: numbers of `REGIONS` of knee slices, `(slices, y, x)`, pixels of `BANK_PIXEL_MM`.
        knees: standard qDESS pictures of the same slices, of the same shape.
        pictures: magnitude images of real anatomy `(pictures, y, x)`; `None` for none.
        shares: relative frequency of knees with a varied appearance, standard knees, pictures, and dead leaves.
        noisy_share: share of the images that have noise.
        pixel_mm: size of the pixels (y, x) of images of knees with a varied appearance; `None` to draw it for every
            image.
        contrast_shares: relative frequency of each of `CONTRASTS` among knees with a varied appearance.
    """

    regions: UInt8[Tensor, "slices bank_y bank_x"]
    knees: UInt8[Tensor, "slices bank_y bank_x"]
    pictures: UInt8[Tensor, "pictures picture_y picture_x"] | None = None
    shares: Sequence[float | int] = (0.40, 0.12, 0.30, 0.18)
    noisy_share: float | int = 0.25
    pixel_mm: tuple[float, float] | None = None
    contrast_shares: Sequence[float | int] = (0.40, 0.20, 0.15, 0.25)

    def __call__(
        self, generator: Generator, n: int, size: tuple[int, int]
    ) -> tuple[Complex[Tensor, "n y x"], Int[Tensor, "n y x"]]:
        """Draw `n` images of `size` (y, x) pixels.

        Args:
            generator: random generator, on the device of the bank.
            n: number of images.
            size: number of pixels (y, x).

        Returns:
            Images divided by the 0.99 quantile of their magnitude, and labels 1..4 as `CLASS_NAMES`, 0 for background
            (and everywhere in pictures and leaves). Images of one kind lie together: shuffle where order matters.
        """
        margin = round(_MARGIN * size[1]) * _OVERSAMPLING
        fine = size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING + 2 * margin
        kinds = zip((self._varied, self._standard, self._pictured, self._leaves), self._counts(n), strict=True)
        parts = [draw(generator, share, fine) for draw, share in kinds if share]
        water, fat, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        images = varied_acquisition(generator, water, fat, size, margin, self.noisy_share)
        return images, _label_pixels(labels[..., margin : fine[1] - margin])

    def _counts(self, n: int) -> list[int]:
        """Split `n` by the shares, without a remainder."""
        shares = [s if self.pictures is not None or k != 2 else 0.0 for k, s in enumerate(self.shares)]
        bounds = [round(n * sum(shares[: k + 1]) / sum(shares)) for k in range(4)]
        return [high - low for low, high in zip([0, *bounds[:-1]], bounds, strict=True)]

    def _pitch(self, generator: Generator, n: int, low: float, high: float) -> Float[Tensor, "n 2"]:
        """Draw distances of fine points along y and x: log-uniform pixel sizes from low to high, anisotropic."""
        size = torch.exp(uniform(generator, (n, 1), math.log(low), math.log(high)))
        aspect = torch.exp(0.15 * torch.randn((n, 1), generator=generator, device=generator.device)).clamp(0.6, 1.6)
        return torch.cat([size * aspect, size / aspect], dim=1) / _OVERSAMPLING

    def _knee_regions(self, generator, n, fine):
        chosen = torch.randint(len(self.regions), (n,), generator=generator, device=generator.device)
        if self.pixel_mm is None:
            pitch = self._pitch(generator, n, *_knee_pixel_mm(fine))
        else:
            pitch = torch.tensor(self.pixel_mm, device=generator.device).expand(n, 2) / _OVERSAMPLING
        pose = draw_pose(generator, n, fine, pitch / BANK_PIXEL_MM, self.regions.shape[-2:], elastic=6.0)
        regions = sample(self.regions, chosen, pose, generator)
        # the other leg, where it comes into the field of view
        side = torch.where(uniform(generator, (n,)) < 0.5, -1.0, 1.0) * uniform(generator, (n,), 0.75, 1.2)
        has_other = view_per_image(uniform(generator, (n,)) < 0.15)
        other = type(pose)(pose.y, self.regions.shape[-1] - (pose.x + view_per_image(side * self.regions.shape[-1])))
        return torch.where((regions == 0) & has_other, sample(self.regions, chosen, other, generator), regions)

    def _varied(self, generator, n, fine):
        regions = self._knee_regions(generator, n, fine)
        level, texture = _draw_contrast(generator, n, self.contrast_shares)
        water = _paint(generator, regions, level, texture)
        is_fat = torch.tensor([name in ("fat", "hoffa", "marrow", "scar") for name in REGIONS], device=regions.device)
        fat = torch.where(is_fat[regions], water, 0)
        labels = torch.tensor(LABEL_OF_REGION, device=regions.device)[regions]
        return water - fat, fat, labels

    def _standard(self, generator, n, fine):
        """Draw standard qDESS knees, half of them at the voxel size and in the pose of the synthetic data set."""
        chosen = torch.randint(len(self.regions), (n,), generator=generator, device=generator.device)
        pitch = self._pitch(generator, n, *_knee_pixel_mm(fine))
        pitch[: n // 2] = 1.6 / _OVERSAMPLING
        pose = draw_pose(generator, n, fine, pitch / BANK_PIXEL_MM, self.regions.shape[-2:], max_turn_degrees=30)
        usual = draw_pose(
            generator, n, fine, pitch / BANK_PIXEL_MM, self.regions.shape[-2:], max_turn_degrees=8, max_shift=0.03
        )
        is_usual = torch.arange(n, device=generator.device)[:, None, None] < n // 2
        pose = type(pose)(torch.where(is_usual, usual.y, pose.y), torch.where(is_usual, usual.x, pose.x))
        labels = torch.tensor(LABEL_OF_REGION, device=self.regions.device)[
            sample(self.regions, chosen, pose, generator)
        ]
        water = sample_smooth(self.knees, chosen, pose)
        return water, torch.zeros_like(water), labels

    def _pictured(self, generator, n, fine):
        """Draw crops of pictures, with another zoom, gamma and, in a quarter of them, inverted inside of the body."""
        chosen = torch.randint(len(self.pictures), (n,), generator=generator, device=generator.device)
        pose = draw_pose(
            generator, n, fine, self._pitch(generator, n, 0.8, 2.2), self.pictures.shape[-2:], elastic=1.0
        )
        image = sample_smooth(self.pictures, chosen, pose)
        image = image / view_per_image(image.flatten(1).quantile(0.99, dim=1)).clamp_min(0.05)
        image = image.clamp(0, 1.5) ** view_per_image(torch.exp(uniform(generator, (n,), -0.5, 0.5)))
        is_inverted = view_per_image(uniform(generator, (n,)) < 0.25)
        body = (image / 0.1).clamp(0, 1)
        image = torch.where(is_inverted, body * (1.1 - image.clamp_max(1.1)), image)
        return image, torch.zeros_like(image), torch.zeros_like(image, dtype=torch.long)

    def _leaves(self, generator, n, fine):
        n_leaves = 40
        leaves = dead_leaves(generator, n, fine, n_leaves)
        device = generator.device
        level = uniform(generator, (n, n_leaves + 1)) ** 1.3
        level[:, 0] = 0
        strength = view_per_image(torch.exp(0.8 * torch.randn(n, generator=generator, device=device)))
        largest = torch.tensor([0.25, 0.25, 0.20, 0.30], device=device)
        texture = 0.5 * strength * largest * uniform(generator, (n, n_leaves + 1, 4)) ** 2
        texture[:, 0] = 0
        image = _paint(generator, leaves, level, texture)
        return image, torch.zeros_like(image), torch.zeros_like(leaves)


def _knee_pixel_mm(fine: tuple[int, int]) -> tuple[float, float]:
    """Return the range of pixel sizes, 0.4 to 2 mm, by which a matrix shows a third of a knee up to two of them."""
    side_mm = _OVERSAMPLING / fine[0]
    return max(0.4, 60 * side_mm), max(0.5, min(2.0, 230 * side_mm))


def _draw_contrast(
    generator: Generator, n: int, shares: Sequence[float | int]
) -> tuple[Float[Tensor, "n region"], Float[Tensor, "n region 4"]]:
    """Draw the intensity of every region, and the relative amplitudes of its four textures."""
    device = generator.device
    weights = torch.tensor(shares, dtype=torch.float32, device=device)
    contrast = torch.multinomial(weights, n, replacement=True, generator=generator)
    strength = torch.exp(0.6 * torch.randn((n, 1), generator=generator, device=device)).clamp(0.15, 2.0)
    level = torch.zeros((n, len(REGIONS)), device=device)
    texture = torch.zeros((n, len(REGIONS), 4), device=device)
    for tissue, names in _TISSUES.items():
        low, high = torch.tensor(_LEVELS[tissue], device=device)[contrast].unbind(dim=1)
        common = low + (high - low) * uniform(generator, (n,))
        largest = torch.tensor(_TEXTURES[tissue], device=device)
        amplitude = largest * strength * uniform(generator, (n, 4)) ** 1.5
        for name in names:
            jitter = 1 + 0.1 * torch.randn(n, generator=generator, device=device)
            level[:, REGIONS.index(name)] = common * jitter
            texture[:, REGIONS.index(name)] = amplitude
    return level.clamp_min(0), texture


def _paint(
    generator: Generator,
    regions: Int[Tensor, "n y x"],
    level: Float[Tensor, "n region"],
    texture: Float[Tensor, "n region 4"],
) -> Float[Tensor, "n y x"]:
    """Fill regions with their intensity and texture, and soften their edges."""
    n, size = len(regions), tuple(regions.shape[-2:])
    flat = regions.flatten(1)

    def spread(table: Tensor) -> Tensor:
        return table.gather(1, flat).view(regions.shape)

    fractal, partition = texture_fields(generator, n, size)
    fibres, septa = texture_fields(generator, n, size, fibrous=True)
    fine = torch.randn(regions.shape, generator=generator, device=regions.device)
    septa = torch.exp(-((septa / view_per_image(uniform(generator, (n,), 0.05, 0.3))) ** 2))
    strengths = enumerate((fractal, fibres, fine, septa))
    relative = sum(spread(texture[..., number]) * strength for number, strength in strengths)
    # some images mix two levels in a tissue smoothly, as diseased or oedematous tissue does
    mixing = view_per_image(0.3 * uniform(generator, (n,)) ** 3) * torch.tanh(partition)
    image = (spread(level) * (1 + relative + mixing)).clamp_min(0)
    return _blur(image, 0.8 * uniform(generator, (n,)))


def _blur(image: Float[Tensor, "n y x"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n y x"]:
    """Smooth every image by a Gaussian of its own width in points."""
    offsets = torch.arange(-2, 3, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    for axis in (-2, -1):
        parts = (view_per_image(kernel[:, k]) * image.roll(int(offset), dims=axis) for k, offset in enumerate(offsets))
        image = sum(parts, torch.zeros_like(image))
    return image


def varied_acquisition(
    generator: Generator,
    water: Float[Tensor, "n fine_y fine_x"],
    fat: Float[Tensor, "n fine_y fine_x"],
    size: tuple[int, int],
    margin: int,
    noisy_share: float | int = 0.25,
) -> Complex[Tensor, "n y x"]:
    """Acquire images of objects: shading, phase, chemical shift, wrap-around, limited resolution, noise.

    Args:
        generator: random generator.
        water: magnitude of the water signal on a grid of `_OVERSAMPLING` points per pixel, with `margin` points
            beyond each end of x.
        fat: magnitude of the fat signal on the same grid, which chemical shift displaces.
        size: number of pixels (y, x) of the images.
        margin: number of points beyond the field of view at each end of x.
        noisy_share: share of the images that have noise. A prior that was trained on much noise adds noise of its own
            where the measurement says nothing.

    Returns:
        Complex images, each divided by the 0.99 quantile of its magnitude.
    """
    n, grid = len(water), tuple(water.shape[-2:])
    device = water.device
    shading = torch.exp(view_per_image(0.5 * uniform(generator, (n,)) ** 1.5) * smooth_fields(generator, n, grid))
    phase = view_per_image(math.pi * uniform(generator, (n,))) * smooth_fields(generator, n, grid, (0.2, 2.0))
    # some images have a local jump of phase, as flow and air nearby cause it
    jump = texture_fields(generator, n, grid)[0]
    has_jump = view_per_image(uniform(generator, (n,)) < 0.15)
    phase = phase + has_jump * view_per_image(uniform(generator, (n,), 0, 2)) * torch.sigmoid(8 * (jump - 1))
    # and some a vortex where it cannot be smooth, as coil maps of unlucky phase leave it
    real, imaginary = (smooth_fields(generator, n, grid, (0.1, 1.0)) for _ in range(2))
    has_vortex = view_per_image(uniform(generator, (n,)) < 0.2)
    phase = phase + has_vortex * torch.atan2(imaginary, real)
    phase = phase + view_per_image(uniform(generator, (n,), 0, 2 * math.pi))
    modulation = torch.polar(shading, phase)
    fat_phase = uniform(generator, (n,), 0, math.pi) * (uniform(generator, (n,)) < 0.4)
    spectra = [fft2c(_wrap(generator, part * modulation, margin)) for part in (water, fat)]
    k_y, k_x = ((torch.arange(k, device=device) - k // 2) / k for k in spectra[0].shape[-2:])
    shift = 3.0 * uniform(generator, (n,)) * (uniform(generator, (n,)) < 0.4)
    ramp = torch.exp(1j * (view_per_image(fat_phase) - 2 * math.pi * view_per_image(shift) * k_x))
    kspace = center_fit(spectra[0] + spectra[1] * ramp, size)

    # acquired share of each axis, and how the end of k-space falls off
    share = torch.where(uniform(generator, (n, 2)) < 0.5, 1.0, uniform(generator, (n, 2), 0.6, 1.0))
    k_y, k_x = ((torch.arange(k, device=device) - k // 2).abs() / (k / 2) for k in size)
    distance = [k[None] / s[:, None] for k, s in zip((k_y, k_x), share.unbind(1), strict=True)]
    acquired = (distance[0] <= 1)[:, :, None] & (distance[1] <= 1)[:, None, :]
    taper = view_per_image(0.7 * uniform(generator, (n,)) * (uniform(generator, (n,)) < 0.4))
    radius = torch.maximum(distance[0][:, :, None], distance[1][:, None, :])
    kspace = torch.where(acquired, kspace * (1 - taper * radius**2).clamp_min(0.05), 0)
    image = ifft2c(kspace)

    unit = _bright(image)
    is_noisy = uniform(generator, (n,)) < noisy_share
    deviation = unit / torch.exp(uniform(generator, (n,), *(math.log(snr) for snr in _SNR))) * is_noisy
    noise = torch.view_as_complex(torch.randn((n, *size, 2), generator=generator, device=device))
    image = image + view_per_image(deviation) * ifft2c(torch.where(acquired, noise, 0))
    return image / view_per_image(_bright(image))


def _wrap(generator: Generator, image: Complex[Tensor, "n y x"], margin: int) -> Complex[Tensor, "n y x2"]:
    """Cut the margins off; in a quarter of the images they fold over to the other end."""
    if not margin:
        return image
    folds = view_per_image(uniform(generator, (len(image),)) < 0.25)
    inner = image[..., margin:-margin].clone()
    inner[..., -margin:] += folds * image[..., :margin]
    inner[..., :margin] += folds * image[..., -margin:]
    return inner


def _bright(image: Complex[Tensor, "n y x"]) -> Float[Tensor, " n"]:
    """Return the 0.99 quantile of the magnitude of each image, or 1e-3 where that is less."""
    magnitude = image.abs().flatten(1)
    n_above = max(round(0.01 * magnitude.shape[1]), 1)
    return magnitude.topk(n_above, dim=1).values[:, -1].clamp_min(1e-3)


def _label_pixels(labels: Int[Tensor, "n fine_y fine_x"]) -> Int[Tensor, "n y x"]:
    """Return the label that covers most of a pixel, where labels together cover at least half of it.

    Pixel `i` of an image lies on point `2 i` of the fine grid. Its area is that point, and half of each neighbour.
    """
    is_class = torch.stack([labels == k for k in range(1, max(LABEL_OF_REGION) + 1)], dim=1).float()
    share = torch.tensor([0.25, 0.5, 0.25], device=labels.device)
    padded = torch.nn.functional.pad(is_class, (1, 0, 1, 0), mode="replicate").flatten(0, 1)[:, None]
    area = torch.nn.functional.conv2d(padded, torch.outer(share, share)[None, None], stride=_OVERSAMPLING)
    area = area.unflatten(0, is_class.shape[:2])[:, :, 0]
    return torch.where(area.sum(dim=1) >= 0.5, area.argmax(dim=1) + 1, 0)
