import numpy as np
import pytest
import torch

from sgr_diffusers.io.raw_slices import RawSlices
from sgr_diffusers.io.undersampling import undersample


def slices(mask):
    kspace = torch.where(mask, torch.ones(2, 3, *mask.shape[-2:], dtype=torch.complex64), 0)
    return RawSlices(kspace, mask, (0, 1), "scan", 2)


def test_the_acquired_grid_is_undersampled_and_padding_stays_empty():
    acquired = torch.zeros(96, 80, dtype=torch.bool)
    acquired[8:88, 8:72] = True
    result = undersample(slices(acquired), 4)
    assert not result.mask[~acquired].any()
    assert result.kspace.shape == (2, 3, 96, 80)
    assert torch.equal(result.kspace[0, 0] != 0, result.mask)
    assert float(acquired.sum() / result.mask.sum()) == pytest.approx(4, rel=0.05)  # SKM-TEA's way of counting
    assert result.mask[48 - 8 : 48 + 8, 40 - 8 : 40 + 8].all()  # calibration
    assert torch.equal(undersample(slices(acquired), 4).mask, result.mask)
    assert not torch.equal(undersample(slices(acquired), 4, seed=1).mask, result.mask)


def test_corners_may_be_missing():
    y, x = np.mgrid[:64, :48] - np.array([32, 24]).reshape(2, 1, 1)
    ellipse = torch.from_numpy((y / 32) ** 2 + (x / 24) ** 2 < 1)
    result = undersample(slices(ellipse), 4)
    assert not result.mask[~ellipse].any()


@pytest.mark.parametrize("kind", ["lines", "random", "partial Fourier"])
def test_what_is_undersampled_already_is_refused(kind):
    mask = torch.zeros(64, 48, dtype=torch.bool)
    mask[{"lines": slice(0, None, 2), "partial Fourier": slice(16, None)}.get(kind, slice(None))] = True
    if kind == "random":
        mask &= torch.rand(64, 48, generator=torch.Generator().manual_seed(0)) < 0.8
    with pytest.raises(ValueError, match="`acceleration` 4: scan is undersampled already"):
        undersample(slices(mask), 4)


def test_accelerations_out_of_reach_are_refused():
    with pytest.raises(ValueError, match=r"`acceleration` must be above 1, got 0\.5"):
        undersample(slices(torch.ones(64, 48, dtype=torch.bool)), 0.5)
