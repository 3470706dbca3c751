"""Render slices of many synthetic knees as region numbers, and sample them under a random pose.

A bank is what varied training images are made of: drawing an anatomy takes a quarter of a second on a CPU core,
giving it a new pose and a new appearance takes a millisecond on a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from .anatomy import Knee
from .canvas import REGIONS
from .fields import smooth_fields, uniform, view_per_image
from .rendering import KneeRenderer

__all__ = [
    "BANK_PIXEL_MM",
    "BANK_SHAPE",
    "LABEL_OF_REGION",
    "Pose",
    "balanced_order",
    "bank_slice",
    "draw_pose",
    "knee_slices",
    "render_bank",
    "sample",
    "sample_smooth",
]

BANK_SHAPE = (304, 256)  # pixels (anterior to posterior, right to left)
BANK_PIXEL_MM = 0.6
SLICES_PER_KNEE = 8
PICTURE_UNIT = 180  # grey value of a picture at intensity 1
_CLASSES = ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus")
# label 1..4 of each region number, 0 for what is not segmented
LABEL_OF_REGION = tuple(_CLASSES.index(name) + 1 if name in _CLASSES else 0 for name in REGIONS)


def knee_slices(
    seed: int, slices_per_knee: int = 8, finding_probability: float = 0.12
) -> Iterator[tuple[UInt8[np.ndarray, "y x"], UInt8[np.ndarray, "y x"]]]:
    """Draw a knee, and yield its axial slices at random levels.

    Args:
        seed: seed of the knee and of the levels of its slices.
        slices_per_knee: number of slices.
        finding_probability: probability of each rare finding.

    Yields:
        Numbers of `REGIONS`, and the image of a standard qDESS scan in units of 1 / `PICTURE_UNIT`.
    """
    anatomy, texture, level = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    knee = Knee(anatomy, finding_probability)
    renderer = KneeRenderer(knee, texture)
    for _ in range(slices_per_knee):
        # most slices show the joint, the rest any level of the leg
        u = level.uniform(-10, 58) if level.random() < 0.75 else level.uniform(-70, 85)
        yield bank_slice(renderer, float(u))


def bank_slice(renderer: KneeRenderer, u_mm: float) -> tuple[UInt8[np.ndarray, "y x"], UInt8[np.ndarray, "y x"]]:
    """Render one axial slice on the grid of a bank.

    Args:
        renderer: renderer of the knee.
        u_mm: position of the slice along the leg.

    Returns:
        Numbers of `REGIONS`, and the image of a standard qDESS scan in units of 1 / `PICTURE_UNIT`.
    """
    a, m = ((np.arange(k, dtype=np.float32) - k / 2) * np.float32(BANK_PIXEL_MM) for k in BANK_SHAPE)
    image, _, _ = renderer.render(u_mm, *np.meshgrid(a, m, indexing="ij"))
    return renderer.regions, np.clip(image * PICTURE_UNIT, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Pose:
    """Positions in a bank's slices, in pixels of the bank, of the points of an image grid: two `(n, y, x)` tensors."""

    y: Float[Tensor, "n y x"]
    x: Float[Tensor, "n y x"]


def draw_pose(
    generator: Generator,
    n: int,
    size: tuple[int, int],
    pitch: Float[Tensor, "n 2"],
    source_shape: tuple[int, int],
    *,
    max_turn_degrees: float | int = 45.0,
    max_shift: float = 0.15,
    elastic: float | int = 0.0,
) -> Pose:
    """Draw a random pose of a slice in the field of view: turn, shift, zoom, mirroring, smooth deformation.

    Args:
        generator: random generator.
        n: number of images.
        size: number of points (y, x) of the image grid.
        pitch: distance of neighbouring points along y and x, in pixels of the source.
        source_shape: number of pixels (y, x) of the source.
        max_turn_degrees: largest rotation; half of the images are turned by at most a third of that.
        max_shift: largest displacement of the centre, as share of the source's sides.
        elastic: amplitude of the smooth deformation, in pixels of the source.
    """
    device = generator.device
    is_mild = uniform(generator, (n,)) < 0.5
    turn = uniform(generator, (n,), -1, 1) * math.radians(max_turn_degrees)
    turn = view_per_image(torch.where(is_mild, turn / 3, turn))
    centre = [view_per_image(side / 2 + side * max_shift * uniform(generator, (n,), -1, 1)) for side in source_shape]
    zoom = torch.exp(0.08 * torch.randn((n, 2), generator=generator, device=device))
    y = (torch.arange(size[0], device=device) - size[0] / 2)[None, :, None] * view_per_image(pitch[:, 0] * zoom[:, 0])
    x = (torch.arange(size[1], device=device) - size[1] / 2)[None, None, :] * view_per_image(pitch[:, 1] * zoom[:, 1])
    mirrored = view_per_image(torch.where(uniform(generator, (n,)) < 0.5, -1.0, 1.0))
    rows = centre[0] + turn.cos() * y + turn.sin() * x
    columns = centre[1] + mirrored * (turn.cos() * x - turn.sin() * y)
    if elastic:
        amplitude = view_per_image(elastic * uniform(generator, (n,)))
        rows = rows + amplitude * smooth_fields(generator, n, size, (0.5, 3.0))
        columns = columns + amplitude * smooth_fields(generator, n, size, (0.5, 3.0))
    return Pose(rows, columns)


def sample(
    slices: UInt8[Tensor, "bank height width"], chosen: Int[Tensor, " n"], pose: Pose, generator: Generator
) -> Int[Tensor, "n y x"]:
    """Read region numbers at the points of a pose, of the nearest pixel; 0 outside of the slice.

    Points are displaced by up to half a pixel at random, so that the average over points shows smooth edges.
    """
    height, width = slices.shape[-2:]
    jitter = uniform(generator, (2, *pose.y.shape), -0.5, 0.5)
    rows, columns = (pose.y + jitter[0]).round().long(), (pose.x + jitter[1]).round().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = (chosen.view(-1, 1, 1) * height + rows.clamp(0, height - 1)) * width + columns.clamp(0, width - 1)
    return torch.where(inside, slices.flatten()[index].long(), 0)


def sample_smooth(
    slices: UInt8[Tensor, "bank height width"], chosen: Int[Tensor, " n"], pose: Pose
) -> Float[Tensor, "n y x"]:
    """Read grey values, between 0 and 1, at the points of a pose by linear interpolation; 0 outside of the slice."""
    height, width = slices.shape[-2:]
    grid = torch.stack([2 * pose.x / (width - 1) - 1, 2 * pose.y / (height - 1) - 1], dim=-1)
    source = slices[chosen].float()[:, None] / 255
    return torch.nn.functional.grid_sample(source, grid, align_corners=True)[:, 0]


def render_bank(n_slices: int, seed: int = 0) -> tuple[UInt8[Tensor, "slices y x"], UInt8[Tensor, "slices y x"]]:
    """Render the region numbers and the standard pictures of many knees.

    Args:
        n_slices: number of slices.
        seed: seed of the first knee; each knee has the next one, so that banks of distant seeds share no knee.
    """
    knees = range(seed, seed + -(-n_slices // SLICES_PER_KNEE))
    slices = [(regions.copy(), picture) for knee in knees for regions, picture in knee_slices(knee, SLICES_PER_KNEE)]
    regions, pictures = (np.stack(parts[:n_slices]) for parts in zip(*slices, strict=True))
    return torch.from_numpy(regions), torch.from_numpy(pictures)


def balanced_order(regions: UInt8[Tensor, "slices y x"], generator: Generator) -> Int[Tensor, " slices"]:
    """Draw slices of a bank so that every class is in about as many of them, and a fifth need not have any.

    Args:
        regions: numbers of `REGIONS`.
        generator: random generator.

    Returns:
        As many indices of slices as there are slices, with replacement.
    """
    labels = torch.tensor(LABEL_OF_REGION)[regions.long()]
    has_class = torch.stack([(labels == k + 1).flatten(1).any(dim=1) for k in range(len(_CLASSES))], dim=1).float()
    weights = (0.8 * has_class / has_class.sum(dim=0).clamp_min(1)).sum(dim=1) / len(_CLASSES) + 0.2 / len(regions)
    return torch.multinomial(weights, len(regions), replacement=True, generator=generator)
