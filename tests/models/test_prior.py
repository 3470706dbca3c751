import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from sgr_diffusers.models.prior import PRIOR_PRESETS, create_prior, create_scheduler


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_paper_preset_has_the_parameters_of_the_authors_network():
    with torch.device("meta"):
        model = create_prior("paper")
    assert count_parameters(model) == 138_286_468
    assert model.config.out_channels == 4


def test_small_preset_runs_on_the_synthetic_size_and_stays_below_the_bundle_limit():
    model = create_prior("small").eval()
    height, width = PRIOR_PRESETS["small"]["sample_size"]
    with torch.no_grad():
        noise = model(torch.zeros(1, 2, height, width), 10).sample
    assert noise.shape == (1, 2, height, width)
    assert count_parameters(model) * 4 < 13e6


def test_presets_survive_an_override():
    before = dict(PRIOR_PRESETS["small"])
    model = create_prior("small", block_out_channels=(8, 16), layers_per_block=2, attention_head_dim=8)
    assert PRIOR_PRESETS["small"] == before
    assert model.config.down_block_types == ("DownBlock2D",) * 2
    assert model.config.layers_per_block == 2


def test_prior_round_trip(tmp_path):
    model = create_prior("small", block_out_channels=(8, 16), attention_head_dim=8).eval()
    model.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path)
    image = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(image, 3).sample, loaded(image, 3).sample)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "`preset`"),
        ({"preset": "small", "in_channels": 1}, "`in_channels`"),
        ({"preset": "small", "out_channels": 3}, "`out_channels`"),
        ({"preset": "small", "block_out_channels": (8, 16)}, "`attention_head_dim`"),
        ({"preset": "paper", "block_out_channels": (32, 64)}, "`down_block_types`"),
    ],
)
def test_create_prior_names_a_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_prior(**arguments)


def test_scheduler_is_the_papers(tmp_path):
    scheduler = create_scheduler()
    assert isinstance(scheduler, DDIMScheduler)
    scheduler.set_timesteps(100)
    assert scheduler.timesteps.tolist() == list(range(990, -1, -10))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=0)
    assert scheduler.final_alpha_cumprod == 1
    assert not scheduler.config.clip_sample
    scheduler.save_pretrained(tmp_path)
    assert DDIMScheduler.from_pretrained(tmp_path).config.prediction_type == "epsilon"


def test_another_scheduler_made_from_its_config_keeps_the_betas():
    other = DPMSolverMultistepScheduler.from_config(create_scheduler("v_prediction").config)
    assert other.config.beta_end == 0.02
    assert other.config.prediction_type == "v_prediction"


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="`prediction_type`"):
        create_scheduler("score")
