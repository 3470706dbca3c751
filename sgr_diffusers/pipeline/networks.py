"""Calls the prior on noisy images and the segmentation model on complex images, whatever the size or precision.

The one place that calls the two networks. Sizes are padded to what a network needs and cropped after, data types are
cast on the way in and out; everything else sees float32 images of the size that the user gave.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Complex, Float
from safetensors import safe_open
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..utils.late_flags import LateFlags

__all__ = [
    "FiniteWatch",
    "batches",
    "check_all_used",
    "check_complete",
    "check_components",
    "check_finite",
    "check_networks",
    "class_names_of",
    "fastest_batch_size",
    "predict",
    "segment",
    "size_multiple",
    "unwrap",
]


def check_finite(name: str, network: nn.Module, output: Tensor) -> None:
    """Refuse the output of a network that is not finite; waits for the device.

    Raises:
        ValueError: naming the component and the cause.
    """
    if not bool(output.isfinite().all()):
        _refuse_output(name, network, output.dtype)


class FiniteWatch:
    """Refuses outputs of networks that are not finite, as `check_finite`, without waiting for an accelerator.

    What an accelerator computes in a step is looked at when the step after the next begins.
    """

    def __init__(self) -> None:
        """Begin with nothing to look at."""
        self._steps: list[list[tuple[str, nn.Module, torch.dtype, LateFlags]]] = [[]]

    def __call__(self, name: str, network: nn.Module, output: Tensor) -> None:
        """Look at an output of this step: at once on the host, later on an accelerator."""
        self._steps[-1].append((name, network, output.dtype, LateFlags(output.isfinite().all())))
        if not self._steps[-1][-1][-1].are_late:
            self._look_back(0)

    def begin_step(self) -> None:
        """Look at the outputs of the step before the last."""
        self._look_back(1)
        self._steps.append([])

    def finish(self) -> None:
        """Look at all outputs that are left."""
        self._look_back(0)

    def _look_back(self, n_left: int) -> None:
        """Look at the outputs of all steps but the last `n_left`."""
        while len(self._steps) > n_left:
            for name, network, dtype, is_finite in self._steps.pop(0):
                if not all(is_finite.tolist()):
                    _refuse_output(name, network, dtype)
        self._steps = self._steps or [[]]


Check = Callable[[str, nn.Module, Tensor], None]


def predict(
    unet: nn.Module, noisy: Float[Tensor, "batch 2 y x"], timestep: Tensor, check: Check = check_finite
) -> Float[Tensor, "batch 2 y x"]:
    """Return the output of the prior for noisy images, float32, without the channels of a learned sigma.

    Noisy images are continued periodically to the multiple that the UNet needs: the border then has the noise level
    that the network expects, where zeros would be a frame without noise, and is air for a body inside the field of
    view.

    Args:
        unet: the prior.
        noisy: noisy images.
        timestep: timestep at the input of the network, on its device.
        check: `check_finite`, or a `FiniteWatch`, which does not wait for the device.

    Raises:
        ValueError: the output is not finite.
    """
    padded = _pad(noisy, size_multiple(unet), is_periodic=True)
    with _kept_weights(unet):
        output = unet(padded.to(unwrap(unet).dtype), timestep, return_dict=False)[0]
    check("unet", unet, output[:, :2])
    return _crop(output[:, :2].float(), noisy.shape[-2:])


def segment(
    model: nn.Module, images: Complex[Tensor, "batch y x"], multiple: int = 1, check: Check = check_finite
) -> Float[Tensor, "batch out_class y x"]:
    """Return the logits of the segmentation model, float32, for complex images scaled as its training images were.

    Args:
        model: segmentation model from magnitude `(batch, 1, y, x)` to logits.
        images: complex images `(batch, y, x)`; their edges are repeated up to the multiple that the model needs.
        multiple: multiple that the sides must have, unless the model has an attribute `size_multiple`.
        check: `check_finite`, or a `FiniteWatch`, which does not wait for the device.

    Raises:
        TypeError: the model does not return a tensor.
        ValueError: what it returns is not `(batch, n_classes + 1, y, x)`, or not finite.
    """
    inner = unwrap(model)
    # The gradient of abs is zero at zero, as the method asks.
    magnitude = _pad(images.abs()[:, None], getattr(inner, "size_multiple", multiple), is_periodic=False)
    # The `dtype` of diffusers' models is the type they compute in; parameters may be stored in another one.
    dtype = getattr(inner, "dtype", None) or next(model.parameters(), magnitude).dtype
    with _kept_weights(model):
        logits = model(magnitude.to(dtype))
    if not isinstance(logits, Tensor) or logits.is_complex():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(
            f"`segmentation_model` must return a tensor of real logits, got {kind}. Wrap it in a module that picks "
            "the logits out."
        )
    expected = (len(images), *magnitude.shape[2:])
    if logits.ndim != 4 or (logits.shape[0], *logits.shape[2:]) != expected:
        raise ValueError(
            f"`segmentation_model` must return logits (batch, n_classes + 1, y, x) of its input's size, got "
            f"{tuple(logits.shape)} for an input of {tuple(magnitude.shape)}. Wrap it in a module that resizes them."
        )
    check("segmentation_model", model, logits)
    return _crop(logits.float(), images.shape[-2:])


def unwrap(network: Any) -> Any:
    """Return the network inside of `torch.compile`, `DataParallel` or `DistributedDataParallel`."""
    is_parallel = isinstance(network, DataParallel | DistributedDataParallel)
    inner = network.module if is_parallel else getattr(network, "_orig_mod", None)
    return network if inner is None else unwrap(inner)


# A CPU with a cache of 2 MiB a core took the least time for an image while the first feature maps of a network call
# were below this size: a tenth less than for 4 times as many images with `general` on 320 x 256 pixels, a fifth less
# at the paper's size. With smaller feature maps, an image took less time the more images a call had.
_CPU_FEATURE_BYTES = 20 * 2**20


def fastest_batch_size(unet: nn.Module, size: Sequence[int], device: torch.device) -> int | None:
    """Number of images in a call of the prior that take least time an image on a CPU; `None` for all at once.

    Args:
        unet: the prior.
        size: rows and columns of an image.
        device: the device of the prior.
    """
    channels = (getattr(getattr(unwrap(unet), "config", None), "block_out_channels", None) or [None])[0]
    if device.type != "cpu" or channels is None:
        return None
    return max(_CPU_FEATURE_BYTES // (4 * channels * math.prod(size)), 1)


def batches(images: list[int], batch_size: int | None) -> Iterator[list[int]]:
    """Split the numbers of images into runs of at most `batch_size`, one network call each."""
    batch_size = batch_size or max(len(images), 1)
    return (images[start : start + batch_size] for start in range(0, len(images), batch_size))


def class_names_of(model: nn.Module | None) -> tuple[str, ...] | None:
    """Return the names that a segmentation model gives to its classes, label 1 first; `None` if it gives none."""
    model = unwrap(model)
    names = getattr(getattr(model, "config", None), "class_names", None) or getattr(model, "class_names", None)
    if names is None:
        return None
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) < len(names):
        raise ValueError(f"`segmentation_model.class_names` must be a list of different names, got {names!r}.")
    return tuple(names)


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


def check_all_used(name: str, network: nn.Module, folder: str | os.PathLike, variant: str | None = None) -> None:
    """Refuse a network whose files hold more weights than it has: diffusers logs that, and leaves the rest out.

    The configuration then belongs to another network than the weights. Weights are counted rather than named, since
    diffusers renames those of old checkpoints.

    Args:
        name: name of the component.
        network: network that lacks no weights.
        folder: folder of the component's files.
        variant: variant that was asked for, such as "fp16".

    Raises:
        ValueError: naming a weight that is left over.
    """
    files = [file for file in Path(folder).glob("*.safetensors") if variant or "." not in file.stem]
    stored: set[str] = set()
    for file in [file for file in files if variant and f".{variant}" in file.name] or files:
        with safe_open(file, framework="pt") as weights:
            stored |= set(weights.keys())
    own = network.state_dict()
    if len(stored) > len(own):
        raise ValueError(
            f"`{name}` has {len(own)} weights by its config.json, but its files hold {len(stored)}, such as "
            f"{min(stored - set(own))}, which would be left out: configuration and weights belong to different "
            "networks. Get both again."
        )


def check_components(unet: nn.Module | None, scheduler: object) -> None:
    """Refuse a pipeline without its prior or its scheduler, and a prior that has no configuration.

    Raises:
        TypeError: the prior is no model of diffusers.
        ValueError: naming the component that is missing.
    """
    for name, component in (("unet", unet), ("scheduler", scheduler)):
        if component is None:
            raise ValueError(
                f"`{name}` is needed to reconstruct, but it is None. Load the pipeline without `{name}=None`, or add "
                f"one by `pipe.register_modules({name}=...)`."
            )
    if not hasattr(getattr(unwrap(unet), "config", None), "block_out_channels"):
        raise TypeError(
            f"`unet` must be a UNet2DModel of diffusers, got {type(unwrap(unet)).__name__}. "
            "`sgr_diffusers.create_prior` makes one that fits."
        )


def check_networks(
    unet: nn.Module,
    segmentation_model: nn.Module | None,
    size: tuple[int, ...],
    device: torch.device,
    needs_gradient: bool = False,
) -> tuple[str, ...]:
    """Refuse networks that do not fit the method, without calling the prior.

    The segmentation model is called once, with one empty slice, to see how many classes it has.

    Args:
        unet: the prior.
        segmentation_model: the segmentation model; may be missing (`None`).
        size: size (y, x) of the slices.
        device: device on which the networks run.
        needs_gradient: flag that says whether images are pushed.

    Returns:
        Names of the classes, label 1 first; "class_1", ... if the model does not name them; none without a model.

    Raises:
        TypeError: the segmentation model does not return a tensor.
        ValueError: a channel count, the number of classes or an output size is wrong, the segmentation model gives no
            gradient that is needed, or a network is in training mode.
    """
    config = unwrap(unet).config
    channels = config.in_channels, config.out_channels
    if channels not in {(2, 2), (2, 4)}:
        raise ValueError(
            "`unet` must have 2 input channels (real, imaginary) and 2 output channels, or 4 with learned sigma, got "
            f"{channels[0]} in and {channels[1]} out. `sgr_diffusers.create_prior` makes one that fits."
        )
    for name, network in (("unet", unet), ("segmentation_model", segmentation_model)):
        if network is not None and unwrap(network).training:
            raise ValueError(f"`{name}` must be in evaluation mode, got training mode. Call `pipe.{name}.eval()`.")
        if needs_gradient and network is not None and any(value.is_inference() for value in network.parameters()):
            raise ValueError(
                f"`{name}` was made in `torch.inference_mode`, so it gives no gradient for guidance. Load the "
                "pipeline outside of it, or reconstruct with target='none'."
            )
    if segmentation_model is None:
        return ()
    multiple = getattr(unwrap(segmentation_model), "size_multiple", 1)
    if not isinstance(multiple, int) or not 1 <= multiple <= 4096:
        raise ValueError(
            f"`segmentation_model.size_multiple` must be a whole number from 1 to 4096, got {multiple!r}."
        )
    with torch.set_grad_enabled(needs_gradient):
        empty = torch.zeros(1, *size, dtype=torch.complex64, device=device, requires_grad=needs_gradient)
        logits = segment(segmentation_model, empty, size_multiple(unet))
    if needs_gradient and not logits.requires_grad:
        raise ValueError(
            "`segmentation_model` must give a gradient with respect to its input for guidance, but it runs in "
            "`torch.no_grad` or `inference_mode`. Take that away, or reconstruct with target='none'."
        )
    n_channels = logits.shape[1]
    names = class_names_of(segmentation_model)
    if n_channels < 2 or (names is not None and len(names) != n_channels - 1):
        wanted = "at least one class" if names is None else f"the classes {names}"
        raise ValueError(
            f"`segmentation_model` must return one channel for the background and one for each of {wanted}, got "
            f"{n_channels} channels. Correct its `class_names`; put a background of zeros before a binary model's "
            "logit."
        )
    return names or tuple(f"class_{number}" for number in range(1, n_channels))


def size_multiple(unet: nn.Module) -> int:
    """Number of pixels of which the prior needs a multiple along y and x."""
    return 2 ** (len(unwrap(unet).config.block_out_channels) - 1)


def _kept_weights(network: nn.Module) -> AbstractContextManager:
    """Let the backward pass see the weights of the forward pass, where hooks move or change them in between.

    CPU offload, group offload and layerwise casting give a layer other weights once it has run. What autograd saves is
    detached from the layer then, and copied if a hook could overwrite it in place.
    """
    hooks = ("_hf_hook", "_diffusers_hook", "_forward_hooks", "_forward_pre_hooks")  # accelerate, diffusers, torch
    has_hooks = (getattr(module, name, None) for module in network.modules() for name in hooks)
    if not torch.is_grad_enabled() or not any(has_hooks):
        return nullcontext()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}

    def keep(saved: Tensor) -> Tensor:
        is_weight = saved.untyped_storage().data_ptr() in weights
        return saved.detach().clone() if is_weight else saved.detach()

    return saved_tensors_hooks(keep, lambda saved: saved)


def _refuse_output(name: str, network: nn.Module, dtype: torch.dtype) -> NoReturn:
    weights = (key for key, value in network.named_parameters() if not value.is_meta and not value.isfinite().all())
    bad = next(weights, None)
    cause = (
        f"its weights are not finite, such as those of {bad}. Load it again, from files that are whole"
        if bad
        else f"its weights are finite, so it overflows in {dtype}. Call `pipe.to(torch.float32)`, or check the "
        "scale of `kspace` and of `latents`"
    )
    raise ValueError(f"`{name}` returned NaN or infinity: {cause}.")


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
