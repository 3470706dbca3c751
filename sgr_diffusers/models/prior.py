"""Create the prior, a plain diffusers ``UNet2DModel``, from the name of a preset, and the ``DDIMScheduler`` it needs.

The network sees a complex image as two real channels (real, imaginary) and predicts the noise (or velocity) in them.
"""

from typing import Any

from diffusers import DDIMScheduler, UNet2DModel

__all__ = ["PREDICTION_TYPES", "PRIOR_PRESETS", "create_prior", "create_scheduler"]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

PRIOR_PRESETS: dict[str, dict[str, Any]] = {
    # For the synthetic knee (96 x 80) on two CPU cores. Attention is in the mid block only, where it costs little.
    # Height and width must be multiples of 8.
    "small": {
        "sample_size": (96, 80),
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (16, 32, 64, 128),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 32,
        "resnet_time_scale_shift": "scale_shift",
    },
    # The paper's network in diffusers form (138,286,468 parameters): guided diffusion with learned sigma, hence four
    # output channels of which the first two are the noise. Height and width must be multiples of 32.
    "paper": {
        "sample_size": (512, 160),
        "in_channels": 2,
        "out_channels": 4,
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "down_block_types": ("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        "layers_per_block": 2,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": 64,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "time_embedding_type": "positional",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "act_fn": "silu",
    },
}


def create_prior(preset: str = "small", **overrides: Any) -> UNet2DModel:
    """Build an untrained prior.

    Args:
        preset: a key of `PRIOR_PRESETS`: ``"small"`` (two CPU cores, 96 x 80) or ``"paper"`` (138 M parameters,
            512 x 160).
        **overrides: any argument of `UNet2DModel`, replacing the preset's. Where `block_out_channels` has another
            number of levels and the preset has one kind of block only, the block types follow by themselves.

    Returns:
        The network; weights are drawn from PyTorch's global generator, so seed it (or fork it) for a repeatable start.

    Raises:
        ValueError: for an unknown preset, channels other than 2 in and 2 or 4 out, a number of levels for which the
            preset cannot tell the block types, or channels that the attention heads do not divide.
    """
    if preset not in PRIOR_PRESETS:
        raise ValueError(f"`preset` must be one of {sorted(PRIOR_PRESETS)}, got {preset!r}. Pass a preset's name.")
    config = {**PRIOR_PRESETS[preset], **overrides}
    n_levels = len(config["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        kinds = config[key]
        if len(kinds) == n_levels:
            continue
        if key in overrides or len(set(kinds)) > 1:
            raise ValueError(
                f"`{key}` must name one block for each of the {n_levels} levels of `block_out_channels`, got "
                f"{len(kinds)}: {tuple(kinds)}. Pass `down_block_types` and `up_block_types` along with it."
            )
        config[key] = (kinds[0],) * n_levels
    if config["in_channels"] != 2 or config["out_channels"] not in (2, 4):
        raise ValueError(
            "`in_channels` must be 2 (real, imaginary) and `out_channels` 2, or 4 with a learned sigma, got "
            f"{config['in_channels']} and {config['out_channels']}."
        )
    head_dim = config.get("attention_head_dim", 8)
    if head_dim is not None and config["block_out_channels"][-1] % head_dim:
        # UNet2DModel rounds the number of heads down, to none if need be, without a word.
        raise ValueError(
            f"`attention_head_dim` must divide the last of `block_out_channels`, got {head_dim} and "
            f"{config['block_out_channels'][-1]}. Pass another `attention_head_dim`."
        )
    return UNet2DModel(**config)


def create_scheduler(prediction_type: str = "epsilon", **overrides: Any) -> DDIMScheduler:
    """Build the scheduler of the paper's experiments: 1000 linear betas, 1e-4 to 0.02; 100 steps are 990, 980, ..., 0.

    Args:
        prediction_type: prediction of the prior: ``"epsilon"`` (the paper), ``"v_prediction"`` or ``"sample"``.
        **overrides: any argument of `DDIMScheduler`, replacing the paper's.

    Returns:
        The scheduler. The betas are in its config in full: another scheduler made by ``from_config`` then keeps them,
        instead of silently taking its own. Clipping is off, because the real and imaginary parts are not in [-1, 1].

    Raises:
        ValueError: for an unknown `prediction_type`.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"`prediction_type` must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")
    config = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": prediction_type,
        "clip_sample": False,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    }
    return DDIMScheduler(**{**config, **overrides})
