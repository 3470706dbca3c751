"""The conversion of the prior against an independent implementation of the authors' network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sgr_diffusers.models.authors.prior import authors_flags, prior_from_authors, prior_to_authors
from sgr_diffusers.models.prior import PRIOR_PRESETS, create_prior
from tests.helpers.authors_unet import AuthorsUNet, random_authors_unet

PAPER = {
    "width": 128,
    "multipliers": (1, 1, 2, 2, 4, 4),
    "attention_levels": (3, 4, 5),
    "n_res_blocks": 2,
    "head_channels": 64,
}
TINY = {"multipliers": (1, 1), "attention_levels": (1,)}
VARIANTS = {
    "like_the_papers": {},
    "new_attention_order": {"new_order": True},
    "one_head": {"head_channels": 32, "multipliers": (1, 1)},
    "no_scale_shift": {"scale_shift": False},
    "convolutions_resize": {"residual_resizing": False},
    "attention_only_in_the_middle": {"attention_levels": ()},
    "convolutions_and_no_attention": {"attention_levels": (), "residual_resizing": False},
    "attention_at_full_size": {"attention_levels": (0,)},
    "one_level": {"multipliers": (1,), "attention_levels": ()},
    "two_blocks_a_level_no_sigma": {"n_res_blocks": 2, "n_out": 2, "multipliers": (1, 2, 1)},
}


def fixture_folder():
    folders = [parent / "shared/fixtures/authors_unet_tiny" for parent in Path(__file__).parents]
    found = next((folder for folder in folders if folder.is_dir()), None)
    return found or pytest.skip("the authors' tiny checkpoint, ../shared/fixtures/authors_unet_tiny, is not here")


def relative_error(actual, expected):
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).norm() / expected.norm())


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convert(network, settings):
    return prior_from_authors(
        network.state_dict(), settings.get("head_channels", 16), settings.get("new_order", False)
    )


@pytest.fixture(scope="module")
def tiny_state():
    return random_authors_unet(**TINY).state_dict()


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_outputs_and_input_gradients_agree(settings):
    network = random_authors_unet(**settings)
    unet = convert(network, settings)
    timesteps = torch.tensor([3, 870])
    for size in ((16, 16), (24, 40), (8, 56)):
        images = drawn(2, 2, *size).requires_grad_()
        expected, actual = network(images, timesteps), unet(images, timesteps).sample
        assert expected.std() > 0.1
        assert relative_error(actual, expected) < 1e-5
        direction = drawn(*expected.shape, seed=1)
        gradients = [torch.autograd.grad((output * direction).sum(), images)[0] for output in (actual, expected)]
        assert relative_error(*gradients) < 1e-5


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_there_and_back_is_the_same_to_the_bit(settings):
    network = random_authors_unet(**settings)
    state = network.state_dict()
    unet = convert(network, settings)
    back = prior_to_authors(unet, settings.get("new_order", False))
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) and back[key].dtype == value.dtype for key, value in state.items())
    assert not any(value.requires_grad for value in back.values())
    back["out.2.bias"].zero_()  # a copy: the network is not changed
    assert unet.conv_out.bias.abs().sum() > 0


@pytest.mark.parametrize("wrong", [{"new_attention_order": True}, {"num_head_channels": 32}, {"num_head_channels": 8}])
def test_what_a_checkpoint_does_not_show_matters(wrong):
    network = random_authors_unet()
    unet = prior_from_authors(network.state_dict(), **{"num_head_channels": 16, **wrong})
    images, timesteps = drawn(1, 2, 16, 16), torch.tensor([500])
    with torch.no_grad():
        assert relative_error(unet(images, timesteps).sample, network(images, timesteps)) > 1e-3


def test_the_papers_network_converts_key_for_key():
    with torch.device("meta"):
        network, preset = AuthorsUNet(**PAPER), create_prior("paper")
    state = network.state_dict()
    unet = prior_from_authors(state)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 138_286_468
    assert sum(value.numel() for value in state.values()) == 138_286_468
    assert {key: unet.config[key] for key in PRIOR_PRESETS["paper"]} == PRIOR_PRESETS["paper"]
    shapes = {key: value.shape for key, value in unet.state_dict().items()}
    assert shapes == {key: value.shape for key, value in preset.state_dict().items()}
    back = prior_to_authors(unet)
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in state.items()}
    assert authors_flags(unet) == {
        "in_channels": 2,
        "model_channels": 128,
        "out_channels": 4,
        "num_res_blocks": 2,
        "attention_resolutions": [8, 16, 32],
        "channel_mult": [1, 1, 2, 2, 4, 4],
        "num_head_channels": 64,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_new_attention_order": False,
    }


@pytest.mark.slow
def test_outputs_of_the_papers_network_agree():
    network = random_authors_unet(**PAPER)
    unet = prior_from_authors(network.state_dict())
    images, timesteps = drawn(1, 2, 64, 32), torch.tensor([400])
    with torch.no_grad():
        assert relative_error(unet(images, timesteps).sample, network(images, timesteps)) < 1e-5


def test_the_flags_say_what_the_network_was_made_with():
    unet = prior_from_authors(
        random_authors_unet(scale_shift=False, residual_resizing=False, attention_levels=(0,)).state_dict(), 16
    )
    flags = authors_flags(unet, new_attention_order=True)
    assert (flags["use_scale_shift_norm"], flags["resblock_updown"], flags["attention_resolutions"]) == (
        False,
        False,
        [1],
    )
    assert flags["use_new_attention_order"]


def test_a_prior_trained_here_can_be_used_by_the_authors():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = create_prior(
            "paper",
            block_out_channels=(32, 32, 64),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            attention_head_dim=16,
        ).eval()
    network = AuthorsUNet()
    network.load_state_dict(prior_to_authors(unet))
    images, timesteps = drawn(1, 2, 16, 24), torch.tensor([77])
    with torch.no_grad():
        assert relative_error(unet(images, timesteps).sample, network(images, timesteps)) < 1e-5


def test_half_precision_checkpoints_become_single_precision(tiny_state):
    half = {key: value.half() for key, value in tiny_state.items()}
    unet = prior_from_authors(half, 16)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    assert all(torch.equal(value, half[key].float()) for key, value in prior_to_authors(unet).items())
    assert not unet.training


def test_every_missing_key_is_named(tiny_state):
    shows_the_architecture = [
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.out_layers.3.weight",
        "middle_block.0.emb_layers.1.weight",
        "output_blocks.1.2.in_layers.0.weight",
        "out.2.weight",
    ]
    for key in [*shows_the_architecture, *list(tiny_state)[::9]]:
        with pytest.raises(ValueError) as error:
            prior_from_authors({name: value for name, value in tiny_state.items() if name != key}, 16)
        assert key in str(error.value)


@pytest.mark.parametrize(
    "key", ["time_embed.2.bias", "input_blocks.1.0.in_layers.2.weight", "input_blocks.3.1.qkv.bias"]
)
def test_a_wrong_shape_is_named(tiny_state, key):
    with pytest.raises(ValueError, match=rf"{key} must have the shape .* in this architecture, got \(7,\)"):
        prior_from_authors({**tiny_state, key: torch.ones(7)}, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_emb.weight": torch.ones(10, 128)}, r"label_emb\.weight: the network is class-conditional"),
        ({"extra.weight": torch.ones(1)}, r"unexpected: extra\.weight"),
        ({"input_blocks.9.0.in_layers.0.weight": torch.ones(1)}, r"input_blocks\.9 is one too many"),
        (
            {"input_blocks.0.0.weight": torch.ones(32, 3, 3, 3)},
            r"input_blocks\.0\.0\.weight: .* 3 channels in and 4 out",
        ),
        ({"out.2.weight": torch.ones(6, 32, 3, 3)}, r"out\.2\.weight: .* 2 channels in and 6 out"),
        ({"input_blocks.0.0.weight": torch.ones(32, 2, 3, 3, 3)}, r"input_blocks\.0\.0\.weight must have 4 axes"),
        ({"time_embed.0.weight": torch.ones(128, 16)}, r"time_embed\.0\.weight: the timestep has 16 channels"),
        (
            {"input_blocks.3.0.out_layers.3.weight": torch.ones(40, 40, 3, 3)},
            r"input_blocks\.3\.0\.out_layers\.3\.weight: 40 channels do not make 32 groups",
        ),
        ({"out.0.bias": torch.full((32,), torch.nan)}, r"out\.0\.bias has values that are not finite"),
        ({"out.0.bias": torch.ones(32, dtype=torch.int64)}, r"out\.0\.bias must be float32, .* got torch\.int64"),
        ({"out.0.bias": torch.ones(32, dtype=torch.float64)}, r"out\.0\.bias must be float32, .* got torch\.float64"),
    ],
)
def test_another_architecture_is_refused_by_the_key(tiny_state, change, message):
    with pytest.raises(ValueError, match=message):
        prior_from_authors({**tiny_state, **change}, 16)


def test_a_network_that_resizes_without_weights_is_refused():
    state = random_authors_unet(residual_resizing=False).state_dict()
    pooled = {key: value for key, value in state.items() if ".op." not in key and "conv." not in key}
    with pytest.raises(ValueError, match=r"input_blocks\.2 has no weights .*`conv_resample` off"):
        prior_from_authors(pooled, 16)


def test_attention_on_one_way_only_is_refused(tiny_state):
    other = {key: value for key, value in tiny_state.items() if not key.startswith("output_blocks.0.1.")}
    with pytest.raises(ValueError, match=r"missing: output_blocks\.0\.1\.norm\.weight"):
        prior_from_authors(other, 16)


def test_an_empty_checkpoint_is_refused():
    with pytest.raises(
        ValueError, match=r"time_embed\.0\.weight is missing in the checkpoint, which begins with nothing"
    ):
        prior_from_authors({}, 16)


@pytest.mark.parametrize(
    ("num_head_channels", "message"),
    [
        (None, r"`num_head_channels` \(--num-head-channels\) is needed: .* \(here 32\)"),
        (24, "`num_head_channels` must divide the channels of the attention, 32, got 24"),
        (0, "got 0"),
    ],
)
def test_the_size_of_the_heads_is_asked_for(tiny_state, num_head_channels, message):
    with pytest.raises(ValueError, match=message):
        prior_from_authors(tiny_state, num_head_channels)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"norm_num_groups": 8}, "norm_num_groups 8"),
        ({"attn_norm_num_groups": None}, "attn_norm_num_groups None"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos False"),
        ({"freq_shift": 1}, "freq_shift 1"),
        ({"add_attention": False}, "add_attention False"),
        ({"time_embedding_dim": 64}, "time_embedding_dim 64"),
        ({"attention_head_dim": None}, "attention_head_dim None"),
        ({"num_class_embeds": 3}, "num_class_embeds 3"),
        ({"up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D")}, "up_block_types"),
        ({"down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")}, "down_block_types"),
    ],
)
def test_a_network_that_the_authors_cannot_express_is_refused(change, key):
    config = {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "attention_head_dim": 16,
    }
    with torch.device("meta"):
        assert prior_to_authors(create_prior("paper", **config))
        unet = create_prior("paper", **{**config, **change})
    with pytest.raises(ValueError, match=f"`unet` has {key}"):
        prior_to_authors(unet)


def test_the_small_preset_is_no_guided_diffusion_network():
    with torch.device("meta"), pytest.raises(ValueError, match="norm_num_groups 8, and guided diffusion only 32"):
        prior_to_authors(create_prior("small"))


def test_the_authors_own_tiny_checkpoint():
    folder = fixture_folder()
    flags = json.loads((folder / "meta.json").read_text())
    state = torch.load(folder / "prior_tiny.pt", weights_only=True)
    recorded = {key: torch.from_numpy(value) for key, value in np.load(folder / "unet_io.npz").items()}
    timesteps_of = recorded.pop("t")
    recorded = {key: value.float() for key, value in recorded.items()}  # the inputs are stored in half precision
    unet = prior_from_authors(state, flags["num_head_channels"], not flags["legacy_attention_order"])
    with torch.no_grad():
        for timesteps, expected in zip(timesteps_of, recorded["y"], strict=True):
            assert relative_error(unet(recorded["x"], timesteps).sample, expected) < 1e-5
        wide = unet(recorded["x_wide"], torch.tensor(250)).sample
    assert relative_error(wide, recorded["y_wide"]) < 1e-5
    images = recorded["x"].requires_grad_()
    (unet(images, torch.tensor(500)).sample * recorded["vjp_w"]).sum().backward()
    assert relative_error(images.grad, recorded["vjp"]) < 1e-5
    back = prior_to_authors(unet)
    assert list(back) == list(state)
    assert all(torch.equal(back[key].to(value.dtype), value) for key, value in state.items())
