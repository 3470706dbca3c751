"""Varied training images: shapes, labels, determinism, and that every kind of content is what it says."""

import pytest
import torch

from sgr_diffusers.data.synthetic.anatomy_bank import BANK_SHAPE, LABEL_OF_REGION, balanced_order, knee_slices
from sgr_diffusers.data.synthetic.appearance import CONTRASTS, VariedImages, varied_acquisition
from sgr_diffusers.data.synthetic.canvas import REGIONS
from sgr_diffusers.data.synthetic.fields import dead_leaves, smooth_fields, texture_fields

SIZE = (48, 40)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bank():
    slices = [(regions.copy(), picture) for regions, picture in knee_slices(3, slices_per_knee=3)]
    return [torch.stack([torch.from_numpy(pair[k]) for pair in slices]) for k in (0, 1)]


@pytest.fixture(scope="module")
def pictures():
    return (255 * torch.rand((2, 64, 64), generator=seeded())).to(torch.uint8)


def test_slices_of_a_bank_show_a_knee(bank):
    regions, picture = bank
    assert regions.shape == picture.shape == (3, *BANK_SHAPE)
    assert regions.max() < len(REGIONS)
    assert (regions == REGIONS.index("marrow")).float().mean() > 0.01
    body = regions > 0
    assert picture[body].float().mean() > 10 * picture[~body].float().mean()


def test_images_are_scaled_and_repeatable(bank, pictures):
    images, labels = VariedImages(*bank, pictures)(seeded(1), 12, SIZE)
    assert images.shape == labels.shape == (12, *SIZE) and images.dtype == torch.complex64
    assert torch.isfinite(torch.view_as_real(images)).all()
    torch.testing.assert_close(images.abs().flatten(1).quantile(0.99, dim=1), torch.ones(12), atol=0.1, rtol=0)
    again, _ = VariedImages(*bank, pictures)(seeded(1), 12, SIZE)
    other, _ = VariedImages(*bank, pictures)(seeded(2), 12, SIZE)
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_knees_have_labels_and_other_content_has_none(bank, pictures):
    def labels(*shares):
        return VariedImages(*bank, pictures, shares)(seeded(1), 8, SIZE)[1]

    assert labels(1, 0, 0, 0).max() <= max(LABEL_OF_REGION) == 4
    assert (labels(0, 1, 0, 0).flatten(1).max(dim=1).values > 0).any()
    assert labels(0, 0, 1, 1).max() == 0


def test_without_pictures_their_share_goes_to_the_others(bank):
    images, _ = VariedImages(*bank, None, (1, 1, 5, 1))(seeded(1), 9, SIZE)
    assert len(images) == 9


def test_contrast_is_drawn_anew_for_each_image(bank):
    one_slice = [part[:1] for part in bank]
    images, _ = VariedImages(*one_slice, None, (1, 0, 0, 0), noisy_share=0)(seeded(1), 24, (96, 80))
    body = images.abs() > 0.05
    means = torch.tensor([float(image[inside].mean()) for image, inside in zip(images.abs(), body, strict=True)])
    assert means.std() > 0.05


def test_images_of_one_contrast_differ_from_those_of_another_in_nothing_else():
    y, x = torch.meshgrid(*(torch.arange(k) - k / 2 for k in BANK_SHAPE), indexing="ij")
    regions = torch.full(BANK_SHAPE, REGIONS.index("fat"), dtype=torch.uint8)
    regions[(y / 50) ** 2 + (x / 40) ** 2 < 1] = REGIONS.index("femoral_cartilage")

    def draw(contrast):
        shares = [name == contrast for name in CONTRASTS]
        source = VariedImages(*(2 * [regions[None]]), None, (1, 0, 0, 0), 0, (1.6, 1.6), shares)
        images, labels = source(seeded(), 16, (96, 80))
        inside, outside = (torch.where(mask, images.abs(), torch.nan) for mask in (labels > 0, labels == 0))
        is_bright = inside.nanmean(dim=(1, 2)) > outside.nanmean(dim=(1, 2))
        return labels, float(is_bright.float().mean())

    (labels, bright_in_qdess), (same, bright_in_t1) = draw("qDESS with water excitation"), draw("T1")
    assert torch.equal(labels, same)
    assert bright_in_qdess > 0.8 > 0.2 > bright_in_t1  # shading may turn one round


def test_noise_is_added_to_the_share_that_is_asked_for():
    water = torch.zeros((8, 64, 64))
    water[:, 20:44, 20:44] = 1

    def background(share):
        images = varied_acquisition(seeded(1), water, torch.zeros_like(water), (32, 32), 0, share)
        return images[:, :6, :6].abs().mean(dim=(1, 2))

    assert (background(1.0) > background(0.0)).all()


def test_fields_have_unit_deviation_and_leaves_overlap():
    for field in (*texture_fields(seeded(), 4, (64, 48)), *texture_fields(seeded(), 4, (64, 48), fibrous=True)):
        torch.testing.assert_close(field.std(dim=(1, 2)), torch.ones(4), atol=0.2, rtol=0)
    assert smooth_fields(seeded(), 4, (64, 48)).diff(dim=1).abs().max() < 0.5
    leaves = dead_leaves(seeded(), 6, (64, 48))
    assert leaves.min() == 0 and all(len(image.unique()) > 5 for image in leaves)


def test_balanced_order_brings_rare_classes_and_keeps_empty_slices():
    regions = torch.zeros((100, 4, 4), dtype=torch.uint8)
    regions[:40, 0, 0] = REGIONS.index("femoral_cartilage")
    regions[:3, 1, 1] = REGIONS.index("meniscus")
    order = balanced_order(regions, seeded())
    assert len(order) == 100
    assert 20 <= (order < 3).sum() <= 60
    assert 5 <= (order >= 40).sum() <= 25


def test_labels_lie_where_the_image_shows_their_tissue():
    y, x = torch.meshgrid(*(torch.arange(k) - k / 2 for k in BANK_SHAPE), indexing="ij")
    disc = (y / 50) ** 2 + (x / 40) ** 2 < 1
    regions = (disc * REGIONS.index("femoral_cartilage")).to(torch.uint8)[None]
    images, labels = VariedImages(regions, regions, None, (1, 0, 0, 0), 0, (1.6, 1.6))(seeded(), 64, (96, 80))
    magnitude = images.abs()
    shown = magnitude > 0.5 * magnitude.flatten(1).quantile(0.9, dim=1)[:, None, None]
    centres = [torch.stack([one.nonzero().float().mean(dim=0) for one in mask]) for mask in (shown, labels > 0)]
    difference = (centres[0] - centres[1]).median(dim=0).values
    assert difference.abs().max() < 0.05, f"labels are displaced by {difference.tolist()} pixels (y, x)"
