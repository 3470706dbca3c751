import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from sgr_diffusers.evaluation.metrics import dice, psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 24, 20, generator=generator) * 300 + 50
    return target + 30 * torch.randn(target.shape, generator=generator), target


def test_psnr_is_twenty_log_of_peak_over_rmse(pair):
    images, target = (part.double().numpy() for part in pair)
    expected = 20 * np.log10(target.max() / np.sqrt(np.mean((np.abs(images) - target) ** 2)))
    assert psnr(*pair) == pytest.approx(expected, rel=1e-6)


def test_psnr_compares_magnitudes_of_the_whole_volume(pair):
    images, target = pair
    turned = images * torch.exp(1j * torch.rand(images.shape, generator=torch.Generator().manual_seed(1)))
    assert psnr(turned, target) == pytest.approx(psnr(images, target), rel=1e-5)
    # one peak and one error for all slices, not a mean of scores of slices
    louder = target * torch.tensor([1.0, 2.0, 5.0])[:, None, None]
    assert psnr(louder + 1, louder) == pytest.approx(20 * math.log10(float(louder.max())), rel=1e-5)


def slow_ssim(image, target, peak):
    """Wang et al. 2004 in double precision: 11-tap Gaussian of sigma 1.5, windows inside the image only."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()

    def mean(array):
        return correlate1d(correlate1d(array, taps, axis=0), taps, axis=1)[5:-5, 5:-5]

    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mx, my = mean(image), mean(target)
    vx, vy, vxy = mean(image**2) - mx**2, mean(target**2) - my**2, mean(image * target) - mx * my
    return (((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_is_the_published_definition(pair):
    images, target = (part.double().numpy() for part in pair)
    expected = np.mean(
        [slow_ssim(np.abs(image), one, target.max()) for image, one in zip(images, target, strict=True)]
    )
    assert 0.5 < expected < 0.999
    assert ssim(*pair) == pytest.approx(expected, abs=1e-5)


def test_scores_do_not_depend_on_the_unit(pair):
    images, target = pair
    for score in (psnr, ssim):
        assert score(images * 1e-6, target * 1e-6) == pytest.approx(score(images, target), rel=1e-5)


def test_image_scores_where_they_have_no_value(pair):
    _, target = pair
    assert psnr(target, target) == math.inf
    assert ssim(target, target) == pytest.approx(1.0)
    nothing = torch.zeros_like(target)
    assert math.isnan(psnr(target, nothing)) and math.isnan(ssim(target, nothing))


@pytest.mark.parametrize("score", [psnr, ssim])
def test_image_scores_refuse_what_they_cannot_compare(score, pair):
    images, target = pair
    with pytest.raises(ValueError, match=r"shape of `target`, \(3, 24, 20\), got \(3, 24, 19\)"):
        score(images[..., 1:], target)
    images[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="`images` must be finite"):
        score(images, target)


def test_ssim_needs_a_whole_window():
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(torch.ones(1, 10, 20), torch.ones(1, 10, 20))


def pixels(text):
    return torch.tensor([character == "#" for character in text]).reshape(1, 2, -1)


def test_dice_counts_pixels():
    found, true = pixels("##..#..."), pixels("###.....")
    assert dice(found, true) == pytest.approx(4 / 6)


def test_dice_of_empty_segmentations():
    empty, some = pixels("........"), pixels("#.......")
    assert math.isnan(dice(empty, empty)) and dice(empty, some) == 0
    with pytest.raises(ValueError, match="same shape"):
        dice(empty, some[..., 1:])
