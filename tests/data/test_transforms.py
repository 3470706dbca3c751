import numpy as np
import pytest
import torch

from sgr_diffusers.data import transforms
from sgr_diffusers.mri.operators import channels_to_complex, complex_to_channels


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def random_channels(generator, n=4, y=6, x=5):
    return torch.randn(n, 2, y, x, generator=generator)


def test_scale_to_quantile_is_per_slice(generator):
    image = (
        torch.randn(3, 20, 10, generator=generator, dtype=torch.complex64) * torch.tensor([1, 50, 3e-4])[:, None, None]
    )
    scaled, scale = transforms.scale_to_quantile(image)
    np.testing.assert_allclose(np.quantile(scaled.abs().numpy(), 0.99, axis=(1, 2)), 1, rtol=1e-5)
    torch.testing.assert_close(scaled * scale[:, None, None], image)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (96, 80)])
@pytest.mark.parametrize("quantile", [0.99, 0.5, 1.0])
def test_the_quantile_is_that_of_torch_bit_for_bit(generator, shape, quantile):
    image = torch.randn(2, *shape, generator=generator, dtype=torch.complex64)
    _, scale = transforms.scale_to_quantile(image, quantile)
    assert torch.equal(scale, image.abs().flatten(1).quantile(quantile, dim=1))


def test_scale_to_quantile_names_the_empty_slice(generator):
    image = torch.randn(3, 20, 10, generator=generator, dtype=torch.complex64)
    image[1] = 0
    with pytest.raises(ValueError, match=r"slices \[1\]"):
        transforms.scale_to_quantile(image)
    with pytest.raises(ValueError, match="`quantile`"):
        transforms.scale_to_quantile(image, 1.5)


@pytest.mark.parametrize("have", [(4, 4), (5, 5), (4, 5), (9, 2)])
@pytest.mark.parametrize("want", [(4, 4), (5, 5), (7, 2)])
def test_center_fit_keeps_the_centre(have, want):
    image = torch.zeros(have)
    image[have[0] // 2, have[1] // 2] = 1
    fitted = transforms.center_fit(image, want)
    assert fitted.shape == want
    assert fitted[want[0] // 2, want[1] // 2] == 1
    assert fitted.sum() == 1


def test_mirror_moves_image_and_labels_together(generator):
    labels = torch.arange(4 * 6 * 5).reshape(4, 6, 5)
    images = labels[:, None].float().expand(-1, 2, -1, -1)
    flips = torch.tensor([True, False, True, False])
    mirrored, mirrored_labels = transforms.mirror(images, flips), transforms.mirror(labels, flips)
    assert torch.equal(mirrored[:, 0].long(), mirrored_labels)
    assert torch.equal(mirrored_labels[0], labels[0].flip(-1))
    assert torch.equal(mirrored_labels[1], labels[1])
    assert torch.equal(transforms.mirror(mirrored_labels, flips), labels)


def test_draw_flips_has_the_probability(generator):
    assert abs(transforms.draw_flips(4000, 0.3, generator).float().mean() - 0.3) < 0.03


def test_shift_moves_by_whole_pixels(generator):
    images = random_channels(generator)
    shifts = torch.tensor([[1, 0], [0, -2], [0, 0], [2, 1]])
    moved = transforms.shift(images, shifts)
    assert torch.equal(moved[0, :, 1:], images[0, :, :-1])
    assert torch.equal(moved[1, :, :, :-2], images[1, :, :, 2:])
    assert torch.equal(moved[2], images[2])


@pytest.mark.parametrize("shape", [(6, 6), (7, 7)])
def test_turns_by_right_angles_are_exact(generator, shape):
    labels = torch.randint(0, 5, (4, 1, *shape), generator=generator)
    degrees, same = torch.tensor([0.0, 90.0, 180.0, -90.0]), torch.ones(4)
    turned = transforms.turn_and_zoom(labels, degrees, same, interpolation="nearest")
    assert turned.dtype == labels.dtype
    for entry, before, times in zip(turned[:, 0], labels[:, 0], (0, -1, 2, 1), strict=True):
        assert torch.equal(entry, torch.rot90(before, times))
    torch.testing.assert_close(
        transforms.turn_and_zoom(labels.float(), degrees, same), turned.float(), atol=1e-4, rtol=0
    )


def test_a_turn_keeps_lengths_and_a_zoom_enlarges_them_in_slices_that_are_not_square():
    y, x = torch.meshgrid(torch.arange(60) - 29.5, torch.arange(90) - 44.5, indexing="ij")
    ellipse = ((x / 20) ** 2 + (y / 8) ** 2 <= 1).float()[None, None].repeat(3, 1, 1, 1)
    turned = transforms.turn_and_zoom(ellipse, torch.tensor([90.0, 30.0, 0.0]), torch.tensor([1.0, 1.0, 1.3]))
    areas = turned.sum((1, 2, 3)) / ellipse[0].sum()
    torch.testing.assert_close(areas, torch.tensor([1, 1, 1.3**2]), rtol=0.02, atol=0)
    expected = ((y / 20) ** 2 + (x / 8) ** 2 <= 1).float()
    assert (turned[0, 0] - expected).abs().mean() < 0.002
    along = torch.tensor(30.0).deg2rad()
    expected = ((x * along.cos() + y * along.sin()) / 20) ** 2 + ((y * along.cos() - x * along.sin()) / 8) ** 2 <= 1
    assert (turned[1, 0] - expected.float()).abs().mean() < 0.01


def test_draw_shifts_reaches_both_limits_and_no_further(generator):
    shifts = transforms.draw_shifts(500, (2, 0), generator)
    assert shifts[:, 0].unique().tolist() == [-2, -1, 0, 1, 2]
    assert not shifts[:, 1].any()


def test_rotate_phase_multiplies_the_complex_image(generator):
    channels = random_channels(generator)
    angles = transforms.draw_uniform(4, 0, 6.28, generator)
    expected = channels_to_complex(channels) * torch.exp(1j * angles)[:, None, None]
    torch.testing.assert_close(transforms.rotate_phase(channels, angles), complex_to_channels(expected))


def test_gaussian_noise_has_its_deviation_per_entry_and_no_negative_values(generator):
    magnitude = torch.ones(3, 1, 100, 100)
    noisy = transforms.add_gaussian_noise(magnitude, torch.tensor([0.0, 0.05, 0.1]), generator)
    assert torch.equal(noisy[0], magnitude[0])
    torch.testing.assert_close(noisy[1:].std(dim=(1, 2, 3)), torch.tensor([0.05, 0.1]), rtol=0.05, atol=0)
    assert transforms.add_gaussian_noise(0 * magnitude, torch.ones(3), generator).min() == 0


def test_random_draws_repeat_with_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()

    def draw():
        generator = torch.Generator().manual_seed(3)
        noisy = transforms.add_gaussian_noise(torch.ones(2, 1, 4, 4), torch.ones(2), generator)
        return noisy, transforms.draw_shifts(2, (3, 3), generator), transforms.draw_flips(9, 0.5, generator)

    for first, second in zip(draw(), draw(), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
