"""Makes the pipeline and the networks of this package known to diffusers."""

import diffusers
from diffusers.pipelines import pipeline_loading_utils

from .loading import use_package_classes

__all__ = ["register"]


def register(pipeline_class: type[diffusers.DiffusionPipeline], network_class: type[diffusers.ModelMixin]) -> None:
    """Register a pipeline and its network, so that `DiffusionPipeline.from_pretrained` finds them.

    Args:
        pipeline_class: class of the pipeline, which a `model_index.json` names.
        network_class: class of the network, a component of the pipeline.
    """
    # In place: diffusers records a component as [package, class], and loads it, only if both of its tables know it.
    methods = {network_class.__name__: ["save_pretrained", "from_pretrained"]}
    pipeline_loading_utils.LOADABLE_CLASSES["sgr_diffusers"] = methods
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(methods)
    setattr(diffusers, pipeline_class.__name__, pipeline_class)
    use_package_classes(pipeline_class)
