"""Segmentation-guided reconstruction (SGR) of accelerated MRI: undersampled k-space enters, bounds of tissues leave.

Importing the package registers `SGRMRIPipeline` and `SegmentationUNet` with diffusers by name, so that diffusers finds
them as pipeline and component. No class of diffusers is changed.
"""

import diffusers
from diffusers.pipelines import pipeline_loading_utils as _loading

from .bounds import SegmentationBounds, bounds_from_samples, bounds_from_segmentations
from .guidance.guiders import Guidance, SegmentationGuidance
from .hub.loading import use_package_classes as _use_package_classes
from .models.adapters import SegmentationAdapter
from .models.prior import create_prior, create_scheduler
from .models.segmentation import SegmentationUNet
from .mri.operators import SenseOperator
from .pipeline.output import SGRMRIPipelineOutput
from .pipeline.pipeline_sgr_mri import SGRMRIPipeline

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in the order of the README
    "SGRMRIPipeline",
    "SGRMRIPipelineOutput",
    "SegmentationUNet",
    "SegmentationAdapter",
    "SegmentationGuidance",
    "Guidance",
    "create_prior",
    "create_scheduler",
    "SegmentationBounds",
    "bounds_from_segmentations",
    "bounds_from_samples",
    "SenseOperator",
]

# In place: diffusers records a component as [package, class], and loads it, only if both of its tables know it.
_METHODS = {SegmentationUNet.__name__: ["save_pretrained", "from_pretrained"]}
_loading.LOADABLE_CLASSES["sgr_diffusers"] = _METHODS
_loading.ALL_IMPORTABLE_CLASSES.update(_METHODS)
diffusers.SGRMRIPipeline = SGRMRIPipeline
_use_package_classes(SGRMRIPipeline)
