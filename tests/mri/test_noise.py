import warnings

import pytest
import torch

from sgr_diffusers.mri.noise import estimate_noise_std, noise_residual, warn_of_residual
from sgr_diffusers.mri.operators import fft2c

STD = torch.tensor([[1.0, 1.5, 0.8, 1.0], [3.0, 3.0, 3.0, 3.0]])


def draw_noise(std=STD, size=(64, 48), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return std[..., None, None] * torch.view_as_complex(torch.randn(*std.shape, *size, 2, generator=generator))


def smooth_coil_images(size=(64, 48), n_coils=4):
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    coils = torch.stack([torch.exp(1j * k * (y + x)) * (1.5 + torch.sin(k + y)) for k in range(n_coils)])
    return 100 * coils * ((y / 0.7) ** 2 + (x / 0.8) ** 2 < 1)


@pytest.mark.parametrize("share_measured", [1.0, 0.25])
def test_noise_of_each_coil_and_slice_is_found(share_measured):
    mask = torch.rand(64, 48, generator=torch.Generator().manual_seed(1)) < share_measured
    mask = torch.stack([mask, mask.flip(0)])
    estimate = estimate_noise_std(draw_noise() * mask[:, None], mask)
    assert estimate.dtype == torch.float32
    torch.testing.assert_close(estimate, STD, rtol=0.15, atol=0)


def test_signal_that_coils_share_is_told_from_noise():
    shared = draw_noise(torch.full((2, 1), 20.0), seed=1) * torch.tensor([1, 0.5j, 1 + 1j, -2]).reshape(4, 1, 1)
    mask = torch.ones(2, 64, 48, dtype=torch.bool)
    std = torch.ones(2, 4)
    torch.testing.assert_close(estimate_noise_std(draw_noise(std), mask), std, rtol=0.1, atol=0)
    with_signal = estimate_noise_std(draw_noise(std) + shared, mask)
    assert with_signal.min() > 0.9
    assert with_signal.max() < 2.0  # the coils' root mean squares are 10 to 40


def test_signal_of_a_body_that_reaches_the_edge_of_kspace_is_told_from_noise():
    kspace = fft2c(smooth_coil_images())[None] + draw_noise(torch.ones(1, 4))
    mask = torch.zeros(1, 64, 48, dtype=torch.bool)
    mask[:, ::3, ::2] = mask[:, 22:42, 14:34] = True
    outermost = kspace[0, :, :8:3, ::2].abs().square().mean().sqrt() / 2**0.5
    assert outermost > 4
    estimate = estimate_noise_std(kspace * mask, mask)
    assert ((estimate > 0.9) & (estimate < 2)).all()


def test_zero_padding_that_the_mask_takes_for_measured_is_left_out():
    kspace = draw_noise()
    kspace[:, :, :8] = kspace[:, :, -8:] = 0
    mask = torch.ones(2, 64, 48, dtype=torch.bool)
    torch.testing.assert_close(estimate_noise_std(kspace, mask), STD, rtol=0.15, atol=0)


@pytest.mark.parametrize("n_measured", [1, 3, 2000])
def test_estimate_is_positive_for_dead_coils_for_data_without_noise_and_for_few_samples(n_measured):
    kspace = torch.ones(1, 3, 64, 48, dtype=torch.complex64) * torch.tensor([0.0, 1e-20, 1e20]).reshape(3, 1, 1)
    mask = (torch.arange(64 * 48) < n_measured).reshape(1, 64, 48)
    estimate = estimate_noise_std(kspace * mask[:, None], mask)
    assert estimate.isfinite().all()
    assert (estimate > 0).all()


def test_noise_residual_is_that_of_the_true_image():
    signal, noise = fft2c(smooth_coil_images())[None].expand(2, -1, -1, -1), draw_noise()
    mask = torch.rand(2, 64, 48, generator=torch.Generator().manual_seed(1)) < 0.3
    measured = (signal + noise) * mask[:, None]
    norm = [torch.linalg.vector_norm(part, dim=(1, 2, 3)) for part in (noise * mask[:, None], measured)]
    torch.testing.assert_close(noise_residual(measured, mask, STD), norm[0] / norm[1], rtol=0.05, atol=0)


def test_only_a_residual_far_above_the_noise_is_warned_of():
    residual = torch.tensor([[[0.02, 0.029]], [[0.01, 0.92]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_residual(residual[:1], torch.tensor([0.01]))
    with pytest.warns(UserWarning, match=r"slices \[1\] by 0.92 .* noise alone leaves 0.01 .*`coil_maps`"):
        warn_of_residual(residual, torch.tensor([0.01, 0.01]))


def test_no_coil_is_taken_to_be_much_noisier_than_the_quietest():
    generator = torch.Generator().manual_seed(5)
    noise = torch.complex(*torch.randn((2, 1, 4, 64, 64), generator=generator))
    scale = torch.tensor([1.0, 1.2, 9.0, 0.0])[:, None, None]  # one with signal left in it, one that is dead
    estimate = estimate_noise_std(noise * scale, torch.ones((1, 64, 64), dtype=torch.bool))[0]
    torch.testing.assert_close(estimate[:3], torch.tensor([1.0, 1.2, 2.0]), rtol=0.1, atol=0)
    assert estimate[3] < 1e-3
