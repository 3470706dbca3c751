"""Convert the state dict of a MONAI UNet to a `SegmentationUNet` with the same weights, and back.

The paper's authors segment with ``monai.networks.nets.UNet``, which `SegmentationUNet` has inside. Levels, channels
and residual units are read from names and shapes; strides other than 2 and the names of the classes are asked for.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..segmentation import SegmentationUNet
from .checkpoint_files import check_keys, shape_of

__all__ = ["SEGMENTATION_ANCHORS", "segmentation_from_authors", "segmentation_to_authors"]

# What `read_state_dict` recognises a MONAI UNet by: the first convolution, with and without residual units.
SEGMENTATION_ANCHORS = ("model.0.conv.unit0.conv.weight", "model.0.conv.weight")

_SKM_TEA_CLASSES = ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus")
_INSIDE = "network."  # where `SegmentationUNet` has the MONAI network


def segmentation_from_authors(
    state: Mapping[str, Tensor],
    class_names: Sequence[str] | None = None,
    strides: Sequence[int] | None = None,
    flip_average: bool = False,
) -> SegmentationUNet:
    """Convert the state dict of a two-dimensional ``monai.networks.nets.UNet`` with its default norm and activation.

    Args:
        state: state dict of the network, float32 or half precision.
        class_names: names of the output channels but the first, which is the background. May be left out for five
            output channels, which are taken for those of the paper on SKM-TEA.
        strides: downsampling factors between levels, as in training; by default 2 wherever the checkpoint does not
            show that it is 1.
        flip_average: whether to average over the four flips of the image, as the authors do (the paper does not say
            so).

    Returns:
        The network, float32, in evaluation mode.

    Raises:
        ValueError: names the key at fault: one that is missing, unexpected, of another shape or not finite; or
            `class_names` or `strides` do not fit.
    """
    channels, n_units, shown_strides = _read_levels(state)
    n_in = shape_of(state, SEGMENTATION_ANCHORS[n_units == 0], 4)[1]
    if n_in != 1:
        raise ValueError(
            f"{SEGMENTATION_ANCHORS[n_units == 0]}: the network has {n_in} input channels. A segmentation model has "
            "1, the magnitude."
        )
    if n_units:
        n_out = shape_of(state, "model.2.1.conv.unit0.conv.weight", 4)[0]
    else:
        n_out = shape_of(state, "model.2.conv.weight", 4)[1]  # transposed: (in, out, y, x)
    class_names = _check_classes(class_names, n_out)
    strides = _check_strides(strides, shown_strides)
    with torch.device("meta"):
        model = SegmentationUNet(
            class_names, channels=channels, strides=strides, num_res_units=n_units, flip_average=flip_average
        )
    shapes = {key.removeprefix(_INSIDE): tuple(value.shape) for key, value in model.state_dict().items()}
    check_keys(state, shapes)
    model.load_state_dict({_INSIDE + key: state[key].to(torch.float32, copy=True) for key in shapes}, assign=True)
    return model.eval()


def segmentation_to_authors(model: SegmentationUNet) -> dict[str, Tensor]:
    """Return the state dict of the ``monai.networks.nets.UNet`` inside, copies of the weights in their type."""
    return {key: value.detach().clone() for key, value in model.network.state_dict().items()}


def _read_levels(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], int, list[int | None]]:
    """Channels of each level, residual units a level, and strides where they can be seen."""
    n_units = len({key.split(".")[3] for key in state if key.startswith("model.0.conv.unit")})
    first_convolution = "conv.unit0.conv.weight" if n_units else "conv.weight"
    channels, strides = [], []
    level, n_above = "model", 1
    while any(key.startswith(f"{level}.1.submodule.") for key in state):
        channels.append(shape_of(state, f"{level}.0.{first_convolution}", 4)[0])
        strides.append(_shown_stride(state, f"{level}.0.residual.weight", n_above, channels[-1]) if n_units else None)
        level, n_above = f"{level}.1.submodule", channels[-1]
    # Checked last: a file of something else is better described by what it lacks.
    channels.append(shape_of(state, f"{level}.{first_convolution}" if channels else SEGMENTATION_ANCHORS[0], 4)[0])
    return tuple(channels), n_units, strides


def _shown_stride(state: Mapping[str, Tensor], key: str, n_in: int, n_out: int) -> int | None:
    """1 where the shortcut of a residual unit has the form that MONAI gives it without a stride, else unknown."""
    if key not in state:
        return 1 if n_in == n_out else None  # no shortcut is needed; if one is, its absence is reported later
    return 1 if state[key].shape[-1] == 1 else None


def _check_classes(class_names: Sequence[str] | None, n_out: int) -> tuple[str, ...]:
    if class_names is None and n_out == len(_SKM_TEA_CLASSES) + 1:
        return _SKM_TEA_CLASSES
    if class_names is None or len(class_names) != n_out - 1:
        given = "none" if class_names is None else f"{len(class_names)}: {', '.join(class_names)}"
        raise ValueError(
            f"`class_names` (--class-names) must name the {n_out - 1} output channels that are not the background, "
            f"got {given}. The network has {n_out} output channels; the first is taken for the background."
        )
    return tuple(class_names)


def _check_strides(strides: Sequence[int] | None, shown: list[int | None]) -> tuple[int, ...]:
    if strides is None:
        return tuple(stride or 2 for stride in shown)
    if len(strides) != len(shown) or any(stride < 1 for stride in strides):
        raise ValueError(
            f"`strides` (--strides) must be {len(shown)} factors of 1 or more, one between each pair of levels, got "
            f"{tuple(strides)}."
        )
    for level, (stride, seen) in enumerate(zip(strides, shown, strict=True)):
        if seen == 1 and stride != 1:
            raise ValueError(f"`strides` has {stride} below level {level}, where the checkpoint shows a stride of 1.")
    return tuple(strides)
