"""Segmentation-guided reconstruction (SGR): reconstructs bounds of tissues from undersampled k-space of MRI.

Importing the package loads nothing else: each name of `__all__` is imported when it is first used. `SGRMRIPipeline`
registers itself and `SegmentationUNet` with diffusers, so that diffusers finds them as pipeline and component. Once
`datasets` is imported, the feature of the data sets is registered with it, so that `load_from_disk` knows it. No class
of either is changed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .utils.late_import import import_after

if TYPE_CHECKING:
    from .bounds import SegmentationBounds, bounds_from_samples, bounds_from_segmentations
    from .data.load import load_skmtea
    from .guidance.guiders import Guidance, SegmentationGuidance
    from .io.raw_file import read_raw
    from .models.adapted import AdaptedSegmentation
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
    "AdaptedSegmentation",
    "SegmentationGuidance",
    "Guidance",
    "create_prior",
    "create_scheduler",
    "SegmentationBounds",
    "bounds_from_segmentations",
    "bounds_from_samples",
    "SenseOperator",
    "load_skmtea",
    "read_raw",
]

_HOMES = {
    "SGRMRIPipeline": "pipeline.pipeline_sgr_mri",
    "SGRMRIPipelineOutput": "pipeline.output",
    "SegmentationUNet": "models.segmentation",
    "SegmentationAdapter": "models.adapters",
    "AdaptedSegmentation": "models.adapted",
    "SegmentationGuidance": "guidance.guiders",
    "Guidance": "guidance.guiders",
    "create_prior": "models.prior",
    "create_scheduler": "models.prior",
    "SegmentationBounds": "bounds",
    "bounds_from_segmentations": "bounds",
    "bounds_from_samples": "bounds",
    "SenseOperator": "mri.operators",
    "load_skmtea": "data.load",
    "read_raw": "io.raw_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


import_after("datasets", f"{__name__}.data.lazy_features")
