"""Define the segmentation model, which computes per-pixel class logits of magnitude images (channel 0: background).

This file is self-contained (no import from the package), so that a Hub repository can carry it along.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SegmentationUNet"]


class SegmentationUNet(ModelMixin, ConfigMixin):
    """A `monai.networks.nets.UNet` that loads and saves like any diffusers model (safetensors only).

    The defaults are the paper's network for SKM-TEA: four tissue classes and the background.

    Args:
        class_names: the names of the classes; class ``i`` of the segmentation (from 1) is ``class_names[i - 1]``.
        in_channels: number of input channels; 1, the magnitude.
        channels: numbers of feature channels, one entry a resolution level.
        strides: downsampling factors between levels, one fewer than `channels`.
        num_res_units: number of residual units a level.
        dropout: dropout probability inside the residual units, in [0, 1).
        flip_average: whether to average the class probabilities over the four flips of the image (none, y, x, both),
            as the paper's authors do. Costs four forward passes. Only in evaluation mode: when training, mirror the
            data.

    Raises:
        ValueError: if there is no class, a name appears twice, or `strides` does not fit `channels`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        class_names: Sequence[str] = ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus"),
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[int] = (2, 2, 2, 2),
        num_res_units: int = 2,
        dropout: float = 0.0,
        flip_average: bool = False,
    ):
        """Build the network with untrained weights."""
        super().__init__()
        is_list = isinstance(class_names, Sequence) and not isinstance(class_names, str)
        is_list = is_list and all(isinstance(name, str) for name in class_names)
        if not is_list or len(class_names) == 0 or len(set(class_names)) != len(class_names):
            raise ValueError(f"`class_names` must be one or more different names, got {class_names!r}.")
        if len(strides) != len(channels) - 1:
            raise ValueError(
                f"`strides` must have one entry fewer than `channels`, got {tuple(strides)} for {tuple(channels)}."
            )
        from monai.networks.nets import UNet

        self.network = UNet(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=len(class_names) + 1,
            channels=tuple(channels),
            strides=tuple(strides),
            num_res_units=num_res_units,
            dropout=dropout,
        )
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "SegmentationUNet":
        """Load as `ModelMixin.from_pretrained` does, from safetensors only: unpickling weights can run code."""
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})

    @property
    def n_classes(self) -> int:
        """Number of tissue classes, without the background."""
        return len(self.config.class_names)

    @property
    def size_multiple(self) -> int:
        """Height and width are padded internally to a multiple of this many pixels."""
        return math.prod(self.config.strides)

    def forward(self, magnitude: Float[Tensor, "batch channel y x"]) -> Float[Tensor, "batch out_class y x"]:
        """Segment a batch of slices.

        Args:
            magnitude: magnitude images ``(batch, 1, y, x)``, real, non-negative, scaled like the training images (each
                slice divided by the 0.99 quantile of its magnitude). Any size: the edges are replicated up to what the
                strides need.

        Returns:
            Logits ``(batch, n_classes + 1, y, x)``, channel 0 the background. With `flip_average` they are the
            logarithm of the averaged probabilities, so that softmax returns exactly that average.

        Raises:
            ValueError: if the channel count is not `in_channels`.
        """
        if magnitude.shape[1] != self.config.in_channels:
            raise ValueError(
                f"`magnitude` must be (batch, {self.config.in_channels}, y, x), got {tuple(magnitude.shape)}. "
                "Pass the magnitude of the complex image with a channel axis: image.abs()[:, None]."
            )
        height, width = magnitude.shape[-2:]
        top, bottom = self._padding(height)
        left, right = self._padding(width)
        if top or bottom or left or right:
            magnitude = F.pad(magnitude, (left, right, top, bottom), mode="replicate")
        if self.config.flip_average and not self.training:
            logits = self._flip_averaged(magnitude)
        elif self.gradient_checkpointing and self.training:
            logits = self._checkpointed(self.network.model, magnitude)
        else:
            logits = self.network(magnitude)
        return logits[..., top : top + height, left : left + width]

    def _padding(self, size: int) -> tuple[int, int]:
        # Two pixels must remain at the coarsest level: the instance norm there has no variance for a single one.
        multiple = self.size_multiple
        missing = max(math.ceil(size / multiple), 2) * multiple - size
        return missing // 2, missing - missing // 2

    def _checkpointed(self, block: nn.Module, x: Tensor) -> Tensor:
        """MONAI's nested blocks one by one: what is inside of a block is computed again in the backward pass."""
        from monai.networks.layers.simplelayers import SkipConnection

        if isinstance(block, SkipConnection):
            return torch.cat([x, self._checkpointed(block.submodule, x)], dim=1)
        if type(block) is nn.Sequential:
            for child in block:
                x = self._checkpointed(child, x)
            return x
        return self._gradient_checkpointing_func(block, x)

    def _flip_averaged(self, magnitude: Tensor) -> Tensor:
        all_axes = ((), (-2,), (-1,), (-2, -1))
        logits = self.network(torch.cat([magnitude.flip(axes) for axes in all_axes]))
        log_probabilities = torch.stack(
            [part.flip(axes).log_softmax(dim=1) for part, axes in zip(logits.chunk(4), all_axes, strict=True)]
        )
        return log_probabilities.logsumexp(dim=0) - math.log(4)
