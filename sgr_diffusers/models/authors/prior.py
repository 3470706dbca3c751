"""Convert the prior of the paper's authors to a `UNet2DModel` with the same weights, and back.

Their prior is the UNet of guided diffusion (Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis",
NeurIPS 2021). Every tensor is used exactly once or named in an error. The architecture is read from names and shapes;
what they do not show (the size of the attention heads, the order of query, key and value) is asked for.

Where the names go (L residual blocks a level; attention only in the levels that have it):

| guided diffusion | `UNet2DModel` |
|---|---|
| `time_embed.0`, `.2` | `time_embedding.linear_1`, `.linear_2` |
| `input_blocks.0.0` | `conv_in` |
| then for each level L blocks: child 0 residual, 1 attention | `down_blocks.l.resnets.k`, `.attentions.k` |
| and, but for the last level, one block that halves the size | `down_blocks.l.downsamplers.0` |
| `middle_block.0`, `.1`, `.2` | `mid_block.resnets.0`, `.attentions.0`, `.resnets.1` |
| for each level, from the last, L + 1 `output_blocks` as above | `up_blocks.l.resnets.k`, `.attentions.k` |
| and, but for the first level, in the last of them one more child | `up_blocks.l.upsamplers.0` |
| `out.0`, `.2` | `conv_norm_out`, `conv_out` |
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ..prior import PRIOR_PRESETS, create_prior
from .checkpoint_files import check_keys, shape_of, shortened

__all__ = ["PRIOR_ANCHORS", "authors_flags", "prior_from_authors", "prior_to_authors"]

PRIOR_ANCHORS = ("time_embed.0.weight",)  # what `read_state_dict` recognises a prior by

_N_GROUPS = 32  # of every normalisation; fixed in the authors' code, and not to be seen in a checkpoint
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def prior_from_authors(
    state: Mapping[str, Tensor],
    num_head_channels: int | None = None,
    new_attention_order: bool = False,
    sample_size: tuple[int, int] | None = None,
) -> UNet2DModel:
    """Convert the state dict of a guided diffusion UNet.

    Args:
        state: state dict of `guided_diffusion.unet.UNetModel`, float32 or half precision.
        num_head_channels: number of channels of an attention head, as in training. May be left out for the
            architecture of the paper (64).
        new_attention_order: whether it was trained with `use_new_attention_order`.
        sample_size: size (y, x) of the training images; for the record only, the network takes any size that its
            levels divide.

    Returns:
        The prior, float32, in evaluation mode; its output agrees with that of the authors' network up to rounding.

    Raises:
        ValueError: names the key at fault: one that is missing, unexpected, of another shape, not finite, or part of
            an architecture that `UNet2DModel` or the method does not have; or `num_head_channels` is needed or wrong.
    """
    config = _read_architecture(state)
    paper = PRIOR_PRESETS["paper"]
    is_paper = all(config[key] == paper[key] for key in config)
    if num_head_channels is None and is_paper:
        num_head_channels = paper["attention_head_dim"]
    sample_size = sample_size or (paper["sample_size"] if is_paper else None)
    num_head_channels = _checked_heads(num_head_channels, config)
    with torch.device("meta"):
        unet = create_prior("paper", **config, attention_head_dim=num_head_channels, sample_size=sample_size)
    empty = unet.state_dict()
    names = _key_names(unet)
    check_keys(state, {key: _authors_shape(key, [empty[name] for name in mine]) for key, mine in names.items()})
    converted = {}
    for key, mine in names.items():
        tensor = state[key].to(torch.float32)
        parts = _split_qkv(tensor, num_head_channels, new_attention_order) if len(mine) == 3 else [tensor]
        for name, part in zip(mine, parts, strict=True):
            converted[name] = part.reshape(empty[name].shape).clone(memory_format=torch.contiguous_format)
    unet.load_state_dict(converted, assign=True)
    return unet.eval()


def prior_to_authors(unet: UNet2DModel, new_attention_order: bool = False) -> dict[str, Tensor]:
    """Return the state dict, in the authors' order and form, of a prior that their network can express.

    Args:
        unet: prior such as `prior_from_authors` makes, or one trained from the preset "paper".
        new_attention_order: whether it is to be loaded with `use_new_attention_order`.

    Returns:
        Copies of the weights, in their type. `authors_flags` says what to make the network with.

    Raises:
        ValueError: a setting of the network has no counterpart in guided diffusion.
    """
    _check_expressible(unet)
    weights = unet.state_dict()
    state = {}
    for key, mine in _key_names(unet).items():
        tensors = [weights[name] for name in mine]
        head_dim = unet.config.attention_head_dim
        joined = _join_qkv(tensors, head_dim, new_attention_order) if len(mine) == 3 else tensors[0]
        state[key] = joined.detach().reshape(_authors_shape(key, tensors)).clone()
    return state


def authors_flags(unet: UNet2DModel, new_attention_order: bool = False) -> dict[str, Any]:
    """Return arguments of `guided_diffusion.unet.UNetModel` that fit `prior_to_authors`, but for its `image_size`."""
    config = unet.config
    width = config.block_out_channels[0]
    return {
        "in_channels": config.in_channels,
        "model_channels": width,
        "out_channels": config.out_channels,
        "num_res_blocks": config.layers_per_block,
        "attention_resolutions": [2**level for level, has in enumerate(_attention_levels(unet)) if has],
        "channel_mult": [c / width if c % width else c // width for c in config.block_out_channels],
        "num_head_channels": config.attention_head_dim,
        "use_scale_shift_norm": config.resnet_time_scale_shift == "scale_shift",
        "resblock_updown": _has_residual_resampling(unet),
        "use_new_attention_order": new_attention_order,
    }


def _children(state: Mapping[str, Tensor], part: str) -> dict[int, dict[int, set[str]]]:
    """Block number -> child number -> first names below it, of `input_blocks` or `output_blocks`."""
    children: dict[int, dict[int, set[str]]] = {}
    for key in state:
        names = key.split(".")
        if names[0] == part and len(names) > 3 and names[1].isdigit() and names[2].isdigit():
            children.setdefault(int(names[1]), {}).setdefault(int(names[2]), set()).add(names[3])
    return children


def _read_architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `UNet2DModel` that a checkpoint shows."""
    if "label_emb.weight" in state:
        raise ValueError(
            "label_emb.weight: the network is class-conditional. The prior of this method has no classes."
        )
    time_width = shape_of(state, PRIOR_ANCHORS[0], 2)[1]
    width, n_in = shape_of(state, "input_blocks.0.0.weight", 4)[:2]
    n_out = shape_of(state, "out.2.weight", 4)[0]
    if n_in != 2 or n_out not in (2, 4):
        key = "out.2.weight" if n_in == 2 else "input_blocks.0.0.weight"
        raise ValueError(
            f"{key}: the network has {n_in} channels in and {n_out} out. A prior has 2 in (real, imaginary) and 2 "
            "out, or 4 with learned sigma."
        )
    if time_width != width:
        raise ValueError(
            f"{PRIOR_ANCHORS[0]}: the timestep has {time_width} channels, the first level {width}. `UNet2DModel` can "
            "only have as many, that is a first `channel_mult` of 1."
        )
    down, up = _children(state, "input_blocks"), _children(state, "output_blocks")
    # A block that doubles the size is one more child in the last block of a level of the decoder.
    resizing = [n for n, children in sorted(up.items()) if any(_is_resampler(children.get(k)) for k in (1, 2))]
    n_levels = len(resizing) + 1
    n_blocks = (resizing[0] if resizing else max(up, default=0)) + 1  # L + 1
    for part, blocks in (("input_blocks", down), ("output_blocks", up)):
        expected = set(
            range(n_levels * n_blocks)
        )  # L + 1 a level; in the encoder the first convolution is one of them
        absent, surplus = sorted(expected - set(blocks)), sorted(set(blocks) - expected)
        if absent or surplus:
            raise ValueError(
                f"{part}.{(absent or surplus)[0]} {'has no weights' if absent else 'is one too many'} for {n_levels} "
                f"levels of {n_blocks - 1} residual blocks. Either the checkpoint is not complete, or the network "
                "resizes without weights (`resblock_updown` and `conv_resample` off), which `UNet2DModel` cannot."
            )
    first = [1 + level * n_blocks for level in range(n_levels)]
    channels = [shape_of(state, f"input_blocks.{n}.0.out_layers.3.weight", 4)[0] for n in first]
    for n, n_channels in zip(first, channels, strict=True):
        if n_channels % _N_GROUPS:
            raise ValueError(f"input_blocks.{n}.0.out_layers.3.weight: {n_channels} channels do not make 32 groups.")
    has_attention = ["qkv" in down[n].get(1, ()) for n in first]
    is_residual = n_levels == 1 or "op" not in down[n_blocks].get(0, ())
    rows = shape_of(state, "middle_block.0.emb_layers.1.weight", 2)[0]
    return {
        "in_channels": n_in,
        "out_channels": n_out,
        "block_out_channels": tuple(channels),
        "layers_per_block": n_blocks - 1,
        "down_block_types": _block_types("Down", has_attention, is_residual),
        "up_block_types": _block_types("Up", has_attention, is_residual)[::-1],
        "downsample_type": "resnet" if is_residual else "conv",
        "upsample_type": "resnet" if is_residual else "conv",
        "resnet_time_scale_shift": "scale_shift" if rows == 2 * channels[-1] else "default",
    }


def _is_resampler(names: set[str] | None) -> bool:
    return names is not None and not names.isdisjoint({"conv", "in_layers", "emb_layers", "out_layers"})


def _block_types(direction: str, has_attention: Sequence[bool], is_residual: bool) -> tuple[str, ...]:
    plain = f"Resnet{direction}sampleBlock2D" if is_residual else f"{direction}Block2D"
    return tuple(f"Attn{direction}Block2D" if has else plain for has in has_attention)


def _checked_heads(num_head_channels: int | None, config: dict[str, Any]) -> int:
    """Refuse a size of the attention heads that is not known or does not divide the channels of the attention."""
    channels, kinds = config["block_out_channels"], config["down_block_types"]
    widths = sorted({channels[-1], *(c for c, kind in zip(channels, kinds, strict=True) if kind.startswith("Attn"))})
    if num_head_channels is None:
        raise ValueError(
            "`num_head_channels` (--num-head-channels) is needed: a checkpoint does not show it. It stands in the "
            "settings of the training; with a `num_heads` there, it is the channels of the attention (here "
            f"{', '.join(map(str, widths))}) divided by that, if it is the same for all."
        )
    if num_head_channels < 1 or any(width % num_head_channels for width in widths):
        raise ValueError(
            f"`num_head_channels` must divide the channels of the attention, {', '.join(map(str, widths))}, got "
            f"{num_head_channels}."
        )
    return num_head_channels


def _attention_levels(unet: UNet2DModel) -> list[bool]:
    return [kind.startswith("Attn") for kind in unet.config.down_block_types]


def _has_residual_resampling(unet: UNet2DModel) -> bool:
    """Whether residual blocks change the size; for a single level, which has none, as its kind of block says."""
    config = unet.config
    return all((config.downsample_type if kind.startswith("Attn") else kind).lower().startswith("resnet")
               for kind in config.down_block_types)  # fmt: skip


def _check_expressible(unet: UNet2DModel) -> None:
    """Refuse settings that guided diffusion does not have, by name."""
    config, has_attention = unet.config, _attention_levels(unet)
    wanted = {key: PRIOR_PRESETS["paper"][key] for key in ("norm_num_groups", "attn_norm_num_groups", "norm_eps")}
    wanted |= {"time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu"}
    wanted |= {"center_input_sample": False, "add_attention": True, "class_embed_type": None, "num_class_embeds": None}
    wanted |= {"mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2D", "downsample_padding": 1}
    is_residual = _has_residual_resampling(unet)
    wanted["down_block_types"] = _block_types("Down", has_attention, is_residual)
    wanted["up_block_types"] = _block_types("Up", has_attention, is_residual)[::-1]
    wanted["upsample_type"] = wanted["downsample_type"] = "resnet" if is_residual else "conv"
    if not any(has_attention):  # then nothing reads these two
        del wanted["upsample_type"], wanted["downsample_type"]
    if config.resnet_time_scale_shift == "default" and config.attn_norm_num_groups is None:
        del wanted["attn_norm_num_groups"]  # means `norm_num_groups`
    for key, value in wanted.items():
        given = tuple(config[key]) if isinstance(value, tuple) else config[key]
        if given != value:
            raise ValueError(
                f"`unet` has {key} {given!r}, and guided diffusion only {value!r}: it has no such network."
            )
    if config.time_embedding_dim not in (None, 4 * config.block_out_channels[0]):
        raise ValueError(
            f"`unet` has time_embedding_dim {config.time_embedding_dim}, and guided diffusion only "
            f"{4 * config.block_out_channels[0]}: it has no such network."
        )
    if config.attention_head_dim is None:
        raise ValueError("`unet` has attention_head_dim None, which guided diffusion cannot express.")


def _key_names(unet: UNet2DModel) -> dict[str, tuple[str, ...]]:
    """Name of each tensor of the authors, in their order -> its name in `UNet2DModel`; of a `qkv`, the three names."""
    existing = set(unet.state_dict())
    modules = _module_names(unet)
    names = {}
    for theirs, mine in modules.items():
        targets = tuple(f"{mine}.to_{part}" for part in "qkv") if theirs.endswith(".qkv") else (mine,)
        for leaf in ("weight", "bias"):
            mapped = tuple(f"{target}.{leaf}" for target in targets)
            if existing.issuperset(mapped):  # not every residual block has a shortcut
                names[f"{theirs}.{leaf}"] = mapped
    unmapped = existing - {name for mapped in names.values() for name in mapped}
    if unmapped:
        raise ValueError(f"`unet` has weights without counterpart in guided diffusion: {shortened(sorted(unmapped))}.")
    return names


def _module_names(unet: UNet2DModel) -> dict[str, str]:
    """Modules with weights, in the authors' order: their name -> name in `UNet2DModel`."""
    n_levels, n_layers = len(unet.config.block_out_channels), unet.config.layers_per_block
    has_attention, is_residual = _attention_levels(unet), _has_residual_resampling(unet)
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    names["input_blocks.0.0"] = "conv_in"

    def add_residual(theirs: str, mine: str) -> None:
        names.update({f"{theirs}.{theirs_leaf}": f"{mine}.{leaf}" for theirs_leaf, leaf in _RESIDUAL.items()})

    def add_attention(theirs: str, mine: str) -> None:
        names.update({f"{theirs}.norm": f"{mine}.group_norm", f"{theirs}.qkv": mine})
        names[f"{theirs}.proj_out"] = f"{mine}.to_out.0"

    def add_layer(theirs: str, level: str, layer: int, attends: bool) -> None:
        add_residual(f"{theirs}.0", f"{level}.resnets.{layer}")
        if attends:
            add_attention(f"{theirs}.1", f"{level}.attentions.{layer}")

    number = 1
    for level in range(n_levels):
        for layer in range(n_layers):
            add_layer(f"input_blocks.{number}", f"down_blocks.{level}", layer, has_attention[level])
            number += 1
        if level < n_levels - 1:
            resampler = f"down_blocks.{level}.downsamplers.0"
            if is_residual:
                add_residual(f"input_blocks.{number}.0", resampler)
            else:
                names[f"input_blocks.{number}.0.op"] = f"{resampler}.conv"
            number += 1
    add_residual("middle_block.0", "mid_block.resnets.0")
    add_attention("middle_block.1", "mid_block.attentions.0")
    add_residual("middle_block.2", "mid_block.resnets.1")
    for level in range(n_levels):  # of `up_blocks`: from the coarsest
        attends = has_attention[n_levels - 1 - level]
        for layer in range(n_layers + 1):
            number = level * (n_layers + 1) + layer
            add_layer(f"output_blocks.{number}", f"up_blocks.{level}", layer, attends)
        if level < n_levels - 1:
            child, resampler = f"output_blocks.{number}.{1 + attends}", f"up_blocks.{level}.upsamplers.0"
            if is_residual:
                add_residual(child, resampler)
            else:
                names[f"{child}.conv"] = f"{resampler}.conv"
    return names | {"out.0": "conv_norm_out", "out.2": "conv_out"}


def _authors_shape(key: str, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Shape of their tensor for one of ours, or for query, key and value; their attention is a 1-D convolution."""
    rows, *rest = tensors[0].shape
    is_attention_weight = key.endswith((".qkv.weight", ".proj_out.weight"))
    return (len(tensors) * rows, *rest, *(1,) * is_attention_weight)


def _split_qkv(tensor: Tensor, head_dim: int, new_attention_order: bool) -> list[Tensor]:
    """Rows of query, key and value, each ordered by head.

    The rows of the older order are (head, query | key | value, head_dim), of the newer (query | key | value, head,
    head_dim).
    """
    order = (3, -1, head_dim) if new_attention_order else (-1, 3, head_dim)
    return list(tensor.unflatten(0, order).unbind(0 if new_attention_order else 1))


def _join_qkv(parts: Sequence[Tensor], head_dim: int, new_attention_order: bool) -> Tensor:
    by_head = [part.unflatten(0, (-1, head_dim)) for part in parts]
    return torch.stack(by_head, dim=0 if new_attention_order else 1).flatten(0, 2)
