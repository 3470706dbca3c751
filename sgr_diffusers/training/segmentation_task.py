"""Compute the loss of the segmentation model on labelled slices, attacked or not, and its Dice on held-out scans."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..data.skm_tea import SkmTeaSlices
from ..data.transforms import (
    add_gaussian_noise,
    draw_flips,
    draw_shifts,
    draw_uniform,
    mirror,
    shift,
    turn_and_zoom,
)
from ..models.segmentation import SegmentationUNet
from .adversarial import ATTACK_NORMS, adversarial_images
from .log import Validation
from .scan_dice import dice_per_scan, magnitude_of
from .seeds import step_generator

__all__ = ["Attack", "SegmentationLoss", "SegmentationValidation", "check_segmentation_model"]

logger = logging.getLogger(__name__)


def check_segmentation_model(model: SegmentationUNet, class_names: Sequence[str]) -> None:
    """Refuse a network that does not fit the data.

    Raises:
        ValueError: it does not read one magnitude channel, or has other classes.
    """
    if model.config.in_channels != 1:
        raise ValueError(
            f"The segmentation model must have 1 input channel, the magnitude, got {model.config.in_channels}."
        )
    if tuple(model.config.class_names) != tuple(class_names):
        raise ValueError(
            f"The segmentation model must have the classes of the data, {tuple(class_names)}, got "
            f"{tuple(model.config.class_names)}. Start from another one."
        )


@dataclass(frozen=True)
class Attack:
    """Adversarial images to train on (paper, future work): see `adversarial_images`.

    Attributes:
        fraction: share of each batch that is attacked, in (0, 1].
        norm: norm of the change, one of `ATTACK_NORMS`.
        radius: largest change, in units of the 0.99 quantile of a slice.
        steps: number of steps of the search, each a forward and a backward pass.
    """

    fraction: float | int = 1.0
    norm: str = "linf"
    radius: float | int = 0.05
    steps: int = 5

    def __post_init__(self) -> None:
        """Check what cannot work before the first step."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`adversarial_fraction` must be in (0, 1], got {self.fraction}.")
        if self.norm not in ATTACK_NORMS:
            raise ValueError(f"`adversarial_norm` must be one of {ATTACK_NORMS}, got {self.norm!r}.")
        if not self.radius > 0 or self.steps < 1:
            raise ValueError(
                f"`adversarial_radius` must be positive and `adversarial_steps` at least 1, got {self.radius} and "
                f"{self.steps}."
            )

    def __call__(self, model: nn.Module, magnitude: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Images within the radius that the model segments worse."""
        return adversarial_images(
            model, magnitude, labels, generator, radius=self.radius, norm=self.norm, steps=self.steps
        )


class SegmentationLoss:
    """Dice and cross-entropy of a batch of slices, augmented: the `compute_loss` of `fit`.

    Args:
        model: bare network; for an attack only.
        mirror_axes: axes that are mirrored: "none", "x" (left-right) or "both".
        max_shift: largest displacement (y, x) in pixels.
        max_noise: largest standard deviation of Gaussian noise.
        gain_range: largest deviation from 1 of the factor that images are scaled by.
        attack: attack on a part of each batch, or none.
        max_turn: largest angle in degrees by which images are turned about their centre.
        zoom_range: largest deviation from 1 of the factor by which images are enlarged.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: SegmentationUNet | None = None,
        mirror_axes: str = "x",
        max_shift: Sequence[int] = (0, 0),
        max_noise: float | int = 0.05,
        gain_range: float | int = 0.15,
        attack: Attack | None = None,
        max_turn: float | int = 0.0,
        zoom_range: float | int = 0.0,
    ) -> None:
        """Keep the settings."""
        from monai.losses import DiceCELoss

        if not max_noise >= 0:
            raise ValueError(f"`max_noise` must not be negative, got {max_noise}.")
        for name, value in (("gain_range", gain_range), ("zoom_range", zoom_range)):
            if not 0 <= value < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {value}.")
        if not 0 <= max_turn <= 180:
            raise ValueError(f"`max_turn` must be in 0..180 degrees, got {max_turn}.")
        self.model, self.attack = model, attack
        self.axes = {"none": (), "x": (-1,), "both": (-1, -2)}[mirror_axes]
        self.max_shift, self.max_noise, self.gain_range = tuple(max_shift), max_noise, gain_range
        self.max_turn, self.zoom_range = max_turn, zoom_range
        # Dice over the batch: most slices lack some class, and Dice of a class that is absent says nothing.
        self.criterion = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)

    def __call__(self, network: nn.Module, batch: dict[str, Any], generator: Generator) -> Float[Tensor, ""]:
        """Mean over the batch; everything random comes from the generator."""
        magnitude, labels = magnitude_of(batch["image"]), batch["labels"]
        n = len(labels)
        for axis in self.axes:
            flips = draw_flips(n, 0.5, generator)
            magnitude, labels = mirror(magnitude, flips, axis), mirror(labels, flips, axis)
        if any(self.max_shift):
            shifts = draw_shifts(n, self.max_shift, generator)
            magnitude, labels = shift(magnitude, shifts), shift(labels, shifts)
        if self.max_turn or self.zoom_range:
            degrees = draw_uniform(n, -self.max_turn, self.max_turn, generator)
            zooms = draw_uniform(n, 1 - self.zoom_range, 1 + self.zoom_range, generator)
            magnitude = turn_and_zoom(magnitude, degrees, zooms)
            labels = turn_and_zoom(labels[:, None], degrees, zooms, interpolation="nearest")[:, 0]
        gains = draw_uniform(n, 1 - self.gain_range, 1 + self.gain_range, generator)
        magnitude = gains.to(magnitude).view(-1, 1, 1, 1) * magnitude
        magnitude = add_gaussian_noise(magnitude, draw_uniform(n, 0, self.max_noise, generator), generator)
        if self.attack is not None:
            # The slices of a batch are in random order already. A share between two numbers is met on average.
            n_attacked = int(self.attack.fraction * n + float(draw_uniform(1, 0, 1, generator)))
            if n_attacked:
                assert self.model is not None  # it is given with an attack
                worse = self.attack(self.model, magnitude[:n_attacked], labels[:n_attacked], generator)
                magnitude = torch.cat([worse, magnitude[n_attacked:]])
        return self.criterion(network(magnitude).float(), labels[:, None])


@dataclass
class SegmentationValidation:
    """Dice per scan and class, of images as they are and, with an attack, of attacked ones: the `validate` of `fit`.

    Attributes:
        held_out: labelled slices of whole scans.
        class_names: class names of their labels, from 1.
        attack: attack to test, if any; the results of attacked images count for ``<name>_best`` then.
        n_attacked: number of attacked slices, evenly chosen of those that show tissue; fewer where there are fewer.
        seed: seed of the attack.
    """

    held_out: SkmTeaSlices
    class_names: Sequence[str]
    attack: Attack | None = None
    n_attacked: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError where an attack would be validated on no slice."""
        if self.attack is not None and self.n_attacked < 1:
            raise ValueError(f"`n_attacked`, the slices validated under attack, must be >= 1, got {self.n_attacked}.")

    @property
    def main_result(self) -> str:
        """Name of the result that the best weights have the largest of."""
        return "val_dice" if self.attack is None else "val_attacked_dice"

    def __call__(self, network: nn.Module) -> Validation:
        """`val_dice`, the mean over classes of `val_dice_median`, the medians over scans; `val_dice_per_scan`."""
        items = (self.held_out[index] for index in range(len(self.held_out)))
        results = self._results(network, items, "val")
        if self.attack is not None:
            results |= self._results(network, self._attacked(network), "val_attacked")
        return Validation(results)

    def _results(self, network: nn.Module, items: Iterator[dict[str, Any]], prefix: str) -> dict[str, Any]:
        per_scan = dice_per_scan(network, items, len(self.class_names))
        table = np.stack(list(per_scan.values()))
        # A class that no held-out scan shows has no Dice, and does not count.
        medians = [float(np.nanmedian(column)) if np.isfinite(column).any() else None for column in table.T]
        named = dict(zip(self.class_names, medians, strict=True))
        logger.info(
            "%s  median Dice of %d scans  %s",
            "validation" if prefix == "val" else "under attack",
            len(per_scan),
            "  ".join(f"{key} -" if value is None else f"{key} {value:.4f}" for key, value in named.items()),
        )
        return {
            f"{prefix}_dice": float(np.mean([value for value in medians if value is not None] or [0.0])),
            f"{prefix}_dice_median": named,
            f"{prefix}_dice_per_scan": {scan_id: dice.round(4).tolist() for scan_id, dice in per_scan.items()},
        }

    def _attacked(self, network: nn.Module, batch_size: int = 16) -> Iterator[dict[str, Any]]:
        assert self.attack is not None
        foreground = np.flatnonzero(self.held_out.foreground)
        n = min(self.n_attacked, len(foreground))
        chosen = foreground[np.linspace(0, len(foreground) - 1, n).round().astype(int)] if n else []
        device = next(network.parameters()).device
        for start in range(0, n, batch_size):
            items = [self.held_out[int(index)] for index in chosen[start : start + batch_size]]
            magnitude = magnitude_of(torch.stack([item["image"] for item in items])).to(device)
            labels = torch.stack([item["labels"] for item in items]).to(device)
            attacked = self.attack(network, magnitude, labels, step_generator(self.seed, start)).cpu()
            for item, image in zip(items, attacked, strict=True):
                yield {**item, "image": torch.cat([image, torch.zeros_like(image)])}
