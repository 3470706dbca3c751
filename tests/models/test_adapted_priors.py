"""Priors of other kinds reconstruct in the pipeline."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sgr_diffusers import create_scheduler
from sgr_diffusers.models.adapted_priors import ConditionedPrior, EDMPrior
from tests.helpers.pipeline_parts import build, call, seeded

WIDTH = 6


@pytest.fixture(scope="module")
def conditional():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            in_channels=2,
            out_channels=2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=WIDTH,
        ).eval()


def test_a_conditional_network_sees_its_embedding_in_each_call(conditional):
    embeddings = torch.randn(2, 3, WIDTH, generator=seeded())
    images = [call(build(unet=ConditionedPrior(conditional, embedding).eval())).images for embedding in embeddings]
    assert torch.isfinite(torch.view_as_real(images[0])).all()
    assert not torch.allclose(*images)
    sample, timestep = torch.randn(2, 2, 16, 12, generator=seeded(1)), torch.tensor(7)
    expected = conditional(sample, timestep, embeddings[:1].repeat(2, 1, 1)).sample
    torch.testing.assert_close(ConditionedPrior(conditional, embeddings[0])(sample, timestep).sample, expected)


def test_an_embedding_of_another_encoder_is_refused(conditional):
    with pytest.raises(ValueError, match=r"`embedding` must be \(token, 6\) for this network, got \(3, 5\)"):
        ConditionedPrior(conditional, torch.zeros(3, 5))


class BestForOneImage(nn.Module):
    """F for which D(x; sigma) is a given image, whatever x."""

    def __init__(self, image, sigma_data):
        super().__init__()
        self.image, self.sigma_data = nn.Parameter(image), sigma_data

    def forward(self, scaled, noise_level):
        sigma = (4 * noise_level).exp()[:, None, None, None]
        total = (sigma**2 + self.sigma_data**2).sqrt()
        skip, out = self.sigma_data**2 / total**2, sigma * self.sigma_data / total
        return (self.image - skip * total * scaled) / out


def test_preconditioning_is_that_of_edm():
    image, scheduler = torch.randn(2, 16, 12, generator=seeded()), create_scheduler("sample")
    prior = EDMPrior(BestForOneImage(image, 0.3), scheduler.alphas_cumprod, sigma_data=0.3, n_levels=2).eval()
    for timestep in (10, 400, 900):
        noisy = torch.randn(3, 2, 16, 12, generator=seeded(timestep))
        clean = prior(noisy, torch.tensor(timestep), return_dict=False)[0]
        torch.testing.assert_close(clean, image.expand(3, -1, -1, -1), rtol=1e-3, atol=1e-3)
    out = call(build(unet=prior, scheduler=scheduler), num_inference_steps=3)
    assert torch.isfinite(torch.view_as_real(out.images)).all()
