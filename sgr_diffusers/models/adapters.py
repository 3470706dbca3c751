"""Adapt a segmentation network of any library to what the pipeline expects of its `segmentation_model`.

The pipeline gives magnitude `(batch, 1, y, x)`, each slice divided by its 0.99 quantile, and wants logits
`(batch, n_classes + 1, y, x)` of the same size, background first. Networks of other libraries differ in the number of
input channels, the intensity scale, the image size, the form of their output and the order of their classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SegmentationAdapter"]

INTENSITIES = ("quantile", "minmax", "zscore")


class SegmentationAdapter(nn.Module):
    """Wraps any network, so that guidance can differentiate through it.

    Every step is differentiable and per slice. Examples:

    - MONAI, one channel in, background and classes out: `SegmentationAdapter(net, ["cartilage", "meniscus"])`.
    - segmentation-models-pytorch, RGB in, one logit out: `SegmentationAdapter(net, ["cartilage"], in_channels=3,
      mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), intensity="minmax", size_multiple=32)`.
    - transformers, 512 x 512 in, a quarter of that out, 150 labels of which two are bone: `SegmentationAdapter(net,
      ["bone"], channels={"bone": [7, 12]}, in_channels=3, input_size=(512, 512))`.

    Args:
        model: any module; it may return a tensor, a list or tuple (its first entry counts), a mapping with "logits" or
            "out", or an object with `logits`. Put it in evaluation mode.
        class_names: names of the classes without the background, in the order of the labels.
        channels: output channels that make up each class: `{name: channel or channels}`; all others are background.
            `None`: a single channel is the log-odds of a binary model; otherwise channel 0 is the background and the
            rest are the classes.
        in_channels: number of input channels; the magnitude is repeated in each.
        intensity: intensity scale that the network was trained with: "quantile" as given, "minmax" each slice from 0
            to 1, or "zscore" each slice with mean 0 and standard deviation 1; `mean` and `std` come after it.
        mean: number subtracted from the image, one or one for each input channel.
        std: number that the image is divided by after that, likewise.
        input_size: size (y, x) to which slices are resampled; `None` for their own.
        size_multiple: number of pixels of which the sides must be a multiple; the pipeline pads and crops.

    Raises:
        ValueError: an unknown intensity, or `channels` does not name the classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        channels: Mapping[str, int | Sequence[int]] | None = None,
        in_channels: int = 1,
        intensity: str = "quantile",
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        input_size: tuple[int, int] | None = None,
        size_multiple: int = 1,
    ):
        """Check the arguments and hold the network."""
        super().__init__()
        if intensity not in INTENSITIES:
            raise ValueError(f"`intensity` must be one of {INTENSITIES}, got {intensity!r}.")
        if channels is not None and set(channels) != set(class_names):
            raise ValueError(f"`channels` must name the classes {tuple(class_names)}, got {tuple(channels)}.")
        self.model = model
        self.class_names = tuple(class_names)
        self.size_multiple = size_multiple
        self.in_channels, self.intensity, self.input_size = in_channels, intensity, input_size
        self.channels = None
        if channels is not None:
            wanted = (channels[name] for name in self.class_names)
            self.channels = [[c] if isinstance(c, int) else list(c) for c in wanted]
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1), persistent=False)
        self.train(model.training)

    def forward(self, magnitude: Float[Tensor, "batch 1 y x"]) -> Float[Tensor, "batch out_class y x"]:
        """Return the logits `(batch, n_classes + 1, y, x)`, background first.

        Raises:
            TypeError: the network's output has no tensor where one is looked for.
            ValueError: it has too few channels.
        """
        size = magnitude.shape[-2:]
        images = self._rescale(magnitude)
        if self.input_size is not None:
            images = F.interpolate(images, self.input_size, mode="bilinear", antialias=True)
        images = (images.expand(-1, self.in_channels, -1, -1) - self.mean) / self.std
        logits = _logits_of(self.model(images.to(magnitude.dtype)))
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear")
        return self._classes(logits)

    def _rescale(self, magnitude: Tensor) -> Tensor:
        if self.intensity == "quantile":
            return magnitude
        flat = magnitude.flatten(1)
        if self.intensity == "minmax":
            offset, width = flat.amin(dim=1), flat.amax(dim=1) - flat.amin(dim=1)
        else:
            offset, width = flat.mean(dim=1), flat.std(dim=1)
        width = torch.where(width > 0, width, 1.0)
        return (magnitude - offset[:, None, None, None]) / width[:, None, None, None]

    def _classes(self, logits: Tensor) -> Tensor:
        """Sums of probabilities are logsumexp of logits: exact for classes made of several channels."""
        n_channels = logits.shape[1]
        if self.channels is None:
            if n_channels == 1:
                return torch.cat([torch.zeros_like(logits), logits], dim=1)
            return logits
        used = [c for group in self.channels for c in group]
        if not all(0 <= c < n_channels for c in used) or len(used) != len(set(used)) or len(used) == n_channels:
            raise ValueError(
                f"`channels` must be different ones of the network's {n_channels}, with one left for the background, "
                f"got {self.channels}."
            )
        background = [c for c in range(n_channels) if c not in used]
        return torch.stack([logits[:, group].logsumexp(dim=1) for group in [background, *self.channels]], dim=1)


def _logits_of(output: Any) -> Tensor:
    """The tensor of logits in a network's output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and ("logits" in output or "out" in output):
        return output["logits"] if "logits" in output else output["out"]
    if isinstance(output, (list, tuple)) and output and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    raise TypeError(
        f"the network returns {type(output).__name__}, in which no logits are found. Wrap it in a module that returns "
        "the tensor."
    )
