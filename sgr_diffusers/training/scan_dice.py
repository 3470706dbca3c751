"""Compute the Dice coefficients of a segmentation model per scan and class, on labelled slices."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["dice_per_scan", "magnitude_of"]


def magnitude_of(channels: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 1 y x"]:
    """Turn real and imaginary channels into the magnitude image that the segmentation model reads."""
    # A hundredth of the time of `norm`, whose reduction over two channels is not vectorised.
    return torch.hypot(channels[:, :1], channels[:, 1:])


@torch.no_grad()
def dice_per_scan(
    model: nn.Module, items: Iterable[dict[str, Any]], n_classes: int, batch_size: int = 32
) -> dict[str, Float[np.ndarray, " n_classes"]]:
    """Return the dice coefficient 2 |A ∩ B| / (|A| + |B|) of each class, over all slices of a scan together.

    Args:
        model: network from magnitude ``(batch, 1, y, x)`` to logits ``(batch, n_classes + 1, y, x)``.
        items: items of a `SkmTeaSlices`, with labels.
        n_classes: number of classes without the background.
        batch_size: number of slices per network call.

    Returns:
        For each scan id its Dice in [0, 1] per class; NaN where a class is in neither segmentation.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    counts: dict[str, np.ndarray] = {}  # scan -> (3: both, predicted, labelled; class)
    pending: list[dict[str, Any]] = []

    def count_pending() -> None:
        images = torch.stack([item["image"] for item in pending]).to(device)
        predicted = model(magnitude_of(images)).argmax(dim=1).cpu()
        for item, prediction in zip(pending, predicted, strict=True):
            agreed = prediction[prediction == item["labels"]]
            sums = [
                torch.bincount(part.flatten(), minlength=n_classes + 1)
                for part in (agreed, prediction, item["labels"])
            ]
            total = counts.setdefault(item["scan_id"], np.zeros((3, n_classes)))
            total += torch.stack(sums)[:, 1:].numpy()
        pending.clear()

    for item in items:
        pending.append(item)
        if len(pending) == batch_size:
            count_pending()
    if pending:
        count_pending()
    model.train(was_training)
    return {
        scan_id: np.divide(
            2 * both, predicted + labelled, out=np.full(n_classes, np.nan), where=predicted + labelled > 0
        )
        for scan_id, (both, predicted, labelled) in counts.items()
    }
