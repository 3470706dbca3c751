"""Segmentation networks of MONAI and transformers with their adapter: loaded by name, saved with the pipeline.

A network is rebuilt from its configuration, by a class of the library that is installed. No code and no pickled object
of a repository is run.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jaxtyping import Float
from torch import Tensor, nn

from .adapters import SegmentationAdapter
from .segmentation import SegmentationUNet

__all__ = ["AdaptedSegmentation", "load_segmentation"]

_MONAI_CONFIG, _MONAI_WEIGHTS, _MONAI_METADATA = "configs/inference.json", "models/model.pt", "configs/metadata.json"


class AdaptedSegmentation(ModelMixin, ConfigMixin):
    """A network of MONAI or transformers in a `SegmentationAdapter`, whose settings are in its configuration.

    Make one by `from_hub`. It is saved and loaded like any model of diffusers, alone or with the pipeline.

    Args:
        library: "monai" or "transformers".
        network: configuration of the network: of MONAI `_target_` and arguments as in a bundle; of transformers what
            its `config.json` says.
        class_names: names of the classes; this and all others as for `SegmentationAdapter`.
        channels: output channels of each class.
        in_channels: number of input channels.
        intensity: intensity scale.
        mean: number subtracted from the image.
        std: number that the image is divided by.
        input_size: size (y, x) to which slices are resampled.
        size_multiple: number of pixels of which the sides must be a multiple.

    Raises:
        ValueError: the network is none of these libraries, or a setting cannot be used.
    """

    @register_to_config
    def __init__(
        self,
        library: str,
        network: dict[str, Any],
        class_names: Sequence[str],
        channels: Mapping[str, int | Sequence[int]] | None = None,
        in_channels: int = 1,
        intensity: str = "quantile",
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        input_size: Sequence[int] | None = None,
        size_multiple: int = 1,
    ):
        """Build the network with untrained weights."""
        super().__init__()
        size = None if input_size is None else (input_size[0], input_size[1])
        arguments = (class_names, channels, in_channels, intensity, mean, std, size, size_multiple)
        self.adapter = SegmentationAdapter(_build(library, network), *arguments)

    @property
    def size_multiple(self) -> int:
        """Number of pixels of which the sides of the input must be a multiple."""
        return self.config.size_multiple

    def forward(self, magnitude: Float[Tensor, "batch 1 y x"]) -> Float[Tensor, "batch out_class y x"]:
        """Return the logits `(batch, n_classes + 1, y, x)`, background first."""
        return self.adapter(magnitude)

    @classmethod
    def from_hub(cls, name: str | os.PathLike, **settings: Any) -> "AdaptedSegmentation":
        """Load a model for semantic segmentation of transformers, or a MONAI bundle with a 2-D network.

        Args:
            name: name of a Hub repository, or folder with the same files.
            **settings: settings of the adapter; by default those that the repository states: classes (labels without
                "background"), number of input channels, and of transformers mean, standard deviation and size.

        Raises:
            ValueError: the repository holds neither, or its configuration cannot be used.
            OSError: there is no such repository, or it cannot be reached.
        """
        if _find(name, _MONAI_CONFIG) is not None:
            return cls._from_monai(name, settings)
        return cls._from_transformers(name, settings)

    @classmethod
    def _from_monai(cls, name: str | os.PathLike, settings: dict[str, Any]) -> "AdaptedSegmentation":
        network = _read(name, _MONAI_CONFIG).get("network_def")
        if not isinstance(network, dict) or any(mark in json.dumps(network) for mark in ('"$', '"@')):
            raise ValueError(
                f"`network_def` of {name} must hold plain values, got {network!r}. Build the network yourself and "
                "wrap it in `SegmentationAdapter`."
            )
        data = _read(name, _MONAI_METADATA).get("network_data_format", {})
        labels = data.get("outputs", {}).get("pred", {}).get("channel_def", {})
        stated = _stated_classes({int(label): text for label, text in labels.items()})
        stated["in_channels"] = data.get("inputs", {}).get("image", {}).get("num_channels", 1)
        model = cls(library="monai", network=network, **_merged(name, stated, settings))
        weights = _find(name, _MONAI_WEIGHTS)
        if weights is None:
            raise ValueError(f"{name} must hold the weights as {_MONAI_WEIGHTS}, but does not.")
        state = torch.load(weights, map_location="cpu", weights_only=True)
        model.adapter.model.load_state_dict(state.get("model", state))
        return model.eval()

    @classmethod
    def _from_transformers(cls, name: str | os.PathLike, settings: dict[str, Any]) -> "AdaptedSegmentation":
        import transformers

        network = transformers.AutoModelForSemanticSegmentation.from_pretrained(name, use_safetensors=True)
        config = network.config
        stated = _stated_classes(config.id2label) | {"in_channels": getattr(config, "num_channels", 3)}
        if _find(name, "preprocessor_config.json") is not None:
            processor = _read(name, "preprocessor_config.json")
            stated |= {"intensity": "minmax", "mean": processor["image_mean"], "std": processor["image_std"]}
            size = processor.get("size")
            if isinstance(size, dict) and "height" in size:
                stated["input_size"] = [size["height"], size["width"]]
        arguments = {key: value for key, value in config.to_diff_dict().items() if key != "_name_or_path"}
        model = cls(library="transformers", network=arguments, **_merged(name, stated, settings))
        model.adapter.model.load_state_dict(network.state_dict())
        return model.eval()


def load_segmentation(name: str | os.PathLike) -> nn.Module:
    """Load the segmentation model that a Hub repository or a folder holds, whichever of the known kinds it is.

    Args:
        name: repository or folder of a saved `SegmentationUNet` or `AdaptedSegmentation`, of a model of transformers
            or of a MONAI bundle.

    Raises:
        ValueError: the model is of another kind, or does not state its classes.
        OSError: there is no such repository, or it cannot be reached.
    """
    kinds = {kind.__name__: kind for kind in (SegmentationUNet, AdaptedSegmentation)}
    config = _read(name, "config.json")
    kind = kinds.get(config.get("_class_name"))
    if kind is not None:
        return kind.from_pretrained(name, use_safetensors=True).eval()
    return AdaptedSegmentation.from_hub(name)


def _build(library: str, network: Mapping[str, Any]) -> nn.Module:
    """Network of a configuration; only classes of the two libraries are looked up."""
    if library == "transformers":
        import transformers

        config = transformers.AutoConfig.for_model(**network)
        return transformers.AutoModelForSemanticSegmentation.from_config(config).eval()
    if library != "monai":
        raise ValueError(f"`library` must be 'monai' or 'transformers', got {library!r}.")
    from monai.networks import nets

    arguments = {name: value for name, value in network.items() if name != "_target_"}
    kind = getattr(nets, str(network.get("_target_")).removeprefix("monai.networks.nets."), None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or arguments.get("spatial_dims", 2) != 2:
        raise ValueError(f"`network` must be a 2-D network of monai.networks.nets, got {dict(network)}.")
    return kind(**arguments).eval()


def _stated_classes(labels: Mapping[int, str]) -> dict[str, Any]:
    """Classes and their channels by the labels of a repository, without those called background."""
    channels = {text: label for label, text in labels.items() if text.lower() != "background"}
    if len(channels) == len(labels):  # no channel is left for what belongs to no class
        return {}
    return {"class_names": list(channels), "channels": channels}


def _merged(name: str | os.PathLike, stated: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings given, and those that the repository states of which nothing was said."""
    if "class_names" in settings or "channels" in settings:
        stated = {key: value for key, value in stated.items() if key not in ("class_names", "channels")}
    merged = {**stated, **settings}
    if "class_names" not in merged:
        if not merged.get("channels"):
            raise ValueError(
                f"`class_names` must be given: {name} does not state its classes and a background. Load it by "
                "`AdaptedSegmentation.from_hub(name, class_names=[...])`."
            )
        merged["class_names"] = list(merged["channels"])
    return merged


def _read(name: str | os.PathLike, file: str) -> dict[str, Any]:
    path = _find(name, file)
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _find(name: str | os.PathLike, file: str) -> str | None:
    """Path of a file of a repository or folder; `None` where there is no such file."""
    if Path(name).is_dir():
        path = Path(name) / file
        return str(path) if path.is_file() else None
    try:
        return hf_hub_download(str(name), file)
    except EntryNotFoundError:
        return None
