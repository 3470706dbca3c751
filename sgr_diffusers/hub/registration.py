"""Makes the pipeline and the network of this package known to diffusers."""

import os
from typing import TypeVar

import diffusers
from diffusers.pipelines import pipeline_loading_utils
from torch import nn

from ..models.adapted import AdaptedSegmentation, load_segmentation
from .loading import use_package_classes
from .model_index import OWN_SEGMENTATION

__all__ = ["named_segmentation", "register"]

Pipeline = TypeVar("Pipeline", bound=diffusers.DiffusionPipeline)


def register(pipeline_class: type[Pipeline]) -> type[Pipeline]:
    """Register a pipeline and its network with diffusers, so that `DiffusionPipeline.from_pretrained` finds them.

    Args:
        pipeline_class: class of the pipeline, which a `model_index.json` names.

    Returns:
        The same class, so that this is its decorator.
    """
    # In place: diffusers records a component as [package, class], and loads it, only if both of its tables know it.
    names = OWN_SEGMENTATION, AdaptedSegmentation.__name__
    methods = {name: ["save_pretrained", "from_pretrained"] for name in names}
    pipeline_loading_utils.LOADABLE_CLASSES["sgr_diffusers"] = methods
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(methods)
    setattr(diffusers, pipeline_class.__name__, pipeline_class)
    use_package_classes(pipeline_class)
    return pipeline_class


def named_segmentation(name: str | os.PathLike) -> nn.Module:
    """Load a segmentation model by the name of its repository or its folder, see `load_segmentation`."""
    return load_segmentation(name)
