"""Calls the prior on noisy images and the segmentation model on complex images, whatever the size or precision.

The one place that calls the two networks. Sizes are padded to what a network needs and cropped after, data types are
cast on the way in and out; everything else sees float32 images of the size that the user gave.
"""

from collections.abc import Iterator, Sequence

import torch
from diffusers import UNet2DModel
from jaxtyping import Complex, Float
from torch import Tensor, nn

__all__ = ["batches", "check_complete", "check_networks", "class_names_of", "predict", "segment", "size_multiple"]


def predict(unet: UNet2DModel, noisy: Float[Tensor, "batch 2 y x"], timestep: Tensor) -> Float[Tensor, "batch 2 y x"]:
    """Output of the prior for noisy images, float32, without the channels of a learned sigma.

    Noisy images are continued periodically to the multiple that the UNet needs: the border then has the noise level
    that the network expects, where zeros would be a frame without noise, and is air for a body inside the field of
    view.
    """
    padded = _pad(noisy, size_multiple(unet), is_periodic=True)
    output = unet(padded.to(unet.dtype), timestep, return_dict=False)[0]
    return _crop(output[:, :2].float(), noisy.shape[-2:])


def segment(
    model: nn.Module, images: Complex[Tensor, "batch y x"], multiple: int = 1
) -> Float[Tensor, "batch out_class y x"]:
    """Logits of the segmentation model, float32, for complex images scaled as its training images were.

    Args:
        model: segmentation model from magnitude `(batch, 1, y, x)` to logits.
        images: complex images `(batch, y, x)`; their edges are repeated up to the multiple that the model needs.
        multiple: multiple that the sides must have, unless the model has an attribute `size_multiple`.

    Raises:
        TypeError: the model does not return a tensor.
        ValueError: what it returns is not `(batch, n_classes + 1, y, x)`.
    """
    # The gradient of abs is zero at zero, as the method asks.
    magnitude = _pad(images.abs()[:, None], getattr(model, "size_multiple", multiple), is_periodic=False)
    dtype = next(model.parameters(), magnitude).dtype
    logits = model(magnitude.to(dtype))
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"`segmentation_model` must return a tensor of logits, got {type(logits).__name__}. Wrap it in a module "
            "that picks the logits out."
        )
    expected = (len(images), *magnitude.shape[2:])
    if logits.ndim != 4 or (logits.shape[0], *logits.shape[2:]) != expected:
        raise ValueError(
            f"`segmentation_model` must return logits (batch, n_classes + 1, y, x) of its input's size, got "
            f"{tuple(logits.shape)} for an input of {tuple(magnitude.shape)}. Wrap it in a module that resizes them."
        )
    return _crop(logits.float(), images.shape[-2:])


def batches(images: list[int], batch_size: int | None) -> Iterator[list[int]]:
    """Split the numbers of images into runs of at most `batch_size`, one network call each."""
    batch_size = batch_size or max(len(images), 1)
    return (images[start : start + batch_size] for start in range(0, len(images), batch_size))


def class_names_of(model: nn.Module | None) -> tuple[str, ...] | None:
    """Names that a segmentation model gives to its classes, label 1 first; `None` if it gives none."""
    names = getattr(getattr(model, "config", None), "class_names", None) or getattr(model, "class_names", None)
    return None if names is None else tuple(names)


def check_complete(**networks: object) -> None:
    """Refuse networks of which the files lacked something: diffusers warns, and leaves such weights without values.

    Raises:
        ValueError: naming the network and a weight.
    """
    for name, network in networks.items():
        if not isinstance(network, nn.Module) or any(hasattr(module, "_hf_hook") for module in network.modules()):
            continue  # what accelerate has moved elsewhere has no values here either
        missing = [key for key, value in network.state_dict().items() if value.is_meta]
        if missing:
            raise ValueError(
                f"`{name}` has no values for {len(missing)} of its weights, such as {missing[0]}: the files it was "
                "loaded from are not complete, or belong to another configuration. Get them again."
            )


def check_networks(
    unet: UNet2DModel, segmentation_model: nn.Module | None, size: tuple[int, ...], device: torch.device
) -> tuple[str, ...]:
    """Refuse networks that do not fit the method, without calling the prior.

    The segmentation model is called once, with one empty slice, to see how many classes it has.

    Args:
        unet: the prior.
        segmentation_model: the segmentation model; may be missing (`None`).
        size: size (y, x) of the slices.
        device: device on which the networks run.

    Returns:
        Names of the classes, label 1 first; "class_1", ... if the model does not name them; none without a model.

    Raises:
        TypeError: the segmentation model does not return a tensor.
        ValueError: a channel count, the number of classes or an output size is wrong, or a network is in training
            mode.
    """
    channels = unet.config.in_channels, unet.config.out_channels
    if channels not in {(2, 2), (2, 4)}:
        raise ValueError(
            "`unet` must have 2 input channels (real, imaginary) and 2 output channels, or 4 with learned sigma, got "
            f"{channels[0]} in and {channels[1]} out. `sgr_diffusers.create_prior` makes one that fits."
        )
    for name, network in (("unet", unet), ("segmentation_model", segmentation_model)):
        if network is not None and network.training:
            raise ValueError(f"`{name}` must be in evaluation mode, got training mode. Call `pipe.{name}.eval()`.")
    if segmentation_model is None:
        return ()
    empty = torch.zeros(1, *size, dtype=torch.complex64, device=device)
    n_channels = segment(segmentation_model, empty, size_multiple(unet)).shape[1]
    names = class_names_of(segmentation_model)
    if n_channels < 2 or (names is not None and len(names) != n_channels - 1):
        wanted = "at least one class" if names is None else f"the classes {names}"
        raise ValueError(
            f"`segmentation_model` must return one channel for the background and one for each of {wanted}, got "
            f"{n_channels} channels. Correct its `class_names`; put a background of zeros before a binary model's "
            "logit."
        )
    return names or tuple(f"class_{number}" for number in range(1, n_channels))


def size_multiple(unet: UNet2DModel) -> int:
    """Number of pixels of which the prior needs a multiple along y and x."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


def _pad(images: Tensor, multiple: int, is_periodic: bool) -> Tensor:
    """Extend the last two axes about their centre to a multiple; of an odd number, one more pixel goes after."""
    for axis in (-2, -1):
        size = images.shape[axis]
        missing = -size % multiple
        if missing:
            source = torch.arange(size + missing, device=images.device) - missing // 2
            source = source % size if is_periodic else source.clamp(0, size - 1)
            images = images.index_select(axis, source)
    return images


def _crop(images: Tensor, size: Sequence[int]) -> Tensor:
    """Undo `_pad`."""
    top, left = ((padded - wanted) // 2 for padded, wanted in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
