import numpy as np
import torch
from torch import nn

from sgr_diffusers.training.scan_dice import dice_per_scan, magnitude_of


class Threshold(nn.Module):
    """Class 1 above 0.5, class 2 above 1.5."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, magnitude):
        return torch.cat([0 * magnitude, magnitude - 0.5, 2 * magnitude - 2], dim=1) + self.offset


def test_dice_counts_a_scan_as_one_volume():
    def item(scan_id, values, labels):
        real = torch.tensor(values).reshape(1, -1)
        return {
            "image": torch.stack([torch.zeros_like(real), -real]),
            "labels": torch.tensor([labels]),
            "scan_id": scan_id,
        }

    items = [
        item("a", [1.0, 1.0, 0.0], [1, 0, 0]),
        item("b", [0.0, 0.0, 2.0], [1, 1, 2]),
        item("a", [1.0, 1.0, 1.0], [1, 1, 1]),
    ]
    for batch_size in (1, 2, 32):
        dice = dice_per_scan(Threshold(), items, 2, batch_size)
        np.testing.assert_allclose(dice["a"], [2 * 4 / (5 + 4), np.nan])
        np.testing.assert_allclose(dice["b"], [0, 1])


def test_magnitude():
    assert magnitude_of(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).item() == 5
