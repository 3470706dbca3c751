from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sgr_diffusers.models.prior import PREDICTION_TYPES, create_scheduler
from sgr_diffusers.training.prior_loss import (
    denoising_errors,
    denoising_loss,
    draw_timesteps,
    min_snr_weights,
    timestep_density,
)


class Oracle(nn.Module):
    """Knows the clean image up to an error, and predicts whatever its scheduler wants."""

    def __init__(self, scheduler, images, error=0.0):
        super().__init__()
        self.scheduler, self.images, self.error = scheduler, images, error

    def forward(self, noisy, timesteps):
        clean = self.images[: len(noisy)] + self.error
        alpha = self.scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        noise = (noisy - alpha * clean) / sigma
        output = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}
        # two more channels, as of a learned sigma, that must be ignored
        prediction = output[self.scheduler.config.prediction_type]
        return SimpleNamespace(sample=torch.cat([prediction, torch.full_like(prediction, 9.0)], dim=1))


@pytest.fixture
def images():
    return torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_of_a_perfect_network_is_zero(prediction_type, images):
    scheduler = create_scheduler(prediction_type)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([3, 200, 500, 800])
    loss = denoising_loss(Oracle(scheduler, images), scheduler, images, noise, timesteps)
    assert loss < 1e-5
    assert denoising_loss(Oracle(scheduler, images, 0.1), scheduler, images, noise, timesteps) > 1e-3


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_errors_mean_the_same_for_every_prediction_type(prediction_type, images):
    scheduler = create_scheduler(prediction_type)
    table = denoising_errors(
        Oracle(scheduler, images, 0.1), scheduler, images, [100, 600], torch.Generator().manual_seed(0)
    )
    for timestep, row in table.items():
        assert row["x0_mse"] == pytest.approx(0.01, rel=1e-3)
        alpha_cumprod = float(scheduler.alphas_cumprod[timestep])
        assert row["eps_mse"] == pytest.approx(0.01 * alpha_cumprod / (1 - alpha_cumprod), rel=1e-3)


def test_errors_do_not_depend_on_the_batch_size(images):
    class Network(nn.Module):
        def forward(self, noisy, timesteps):
            return SimpleNamespace(sample=noisy * 0.5)

    tables = [
        denoising_errors(
            Network(), create_scheduler(), images, [50, 500], torch.Generator().manual_seed(0), batch_size
        )
        for batch_size in (1, 3, 4)
    ]
    for table in tables[1:]:
        assert table[500]["x0_mse"] == pytest.approx(tables[0][500]["x0_mse"])


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_the_error_of_the_image_alike(prediction_type):
    # All weight the error of the clean image by min(SNR, gamma). eps error = SNR x0 error, v error = (SNR+1) x0 error.
    scheduler = create_scheduler(prediction_type)
    timesteps = torch.arange(1000)
    snr = scheduler.alphas_cumprod.double() / (1 - scheduler.alphas_cumprod.double())
    per_image_error = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(1000)}[prediction_type]
    weights = min_snr_weights(scheduler, timesteps, 5.0)
    torch.testing.assert_close(weights.double() * per_image_error, snr.clamp_max(5), rtol=1e-5, atol=0)
    assert torch.equal(min_snr_weights(scheduler, timesteps, None), torch.ones(1000))


@pytest.mark.parametrize("method", ["uniform", "stratified"])
def test_timesteps_cover_the_range(method):
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.stack([draw_timesteps(8, 1000, generator, method) for _ in range(2000)])
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    # the same distribution at every place in the batch
    torch.testing.assert_close(timesteps.double().mean(0), torch.full((8,), 499.5).double(), atol=25, rtol=0)
    occupied = (timesteps // 125).sort(dim=1).values
    assert torch.equal(occupied, torch.arange(8).expand(2000, 8)) == (method == "stratified")


def test_unknown_timestep_sampling():
    with pytest.raises(ValueError, match="`method`"):
        draw_timesteps(8, 1000, torch.Generator(), "sorted")


def test_importance_sampling_replaces_the_weights():
    scheduler = create_scheduler("v_prediction")
    generator = torch.Generator().manual_seed(0)
    density = timestep_density(scheduler, 5.0, uniform_share=0.0)
    draws = torch.cat([draw_timesteps(8, 1000, generator, "importance", density) for _ in range(2000)])
    # the mean of any error over these draws is its weighted mean over uniform ones
    error = torch.linspace(1, 0, 1000) ** 3
    weights = min_snr_weights(scheduler, torch.arange(1000), 5.0)
    torch.testing.assert_close(error[draws].mean(), (weights * error).sum() / weights.sum(), rtol=0.01, atol=0)


def test_no_timestep_is_forgotten():
    density = timestep_density(create_scheduler(), 5)
    torch.testing.assert_close(density.sum(), torch.tensor(1.0))
    assert density.min() >= 0.25 / 1000
    with pytest.raises(ValueError, match="`density`"):
        draw_timesteps(8, 1000, torch.Generator(), "importance")
