# Made from the Python package sgr_diffusers (Apache-2.0) by `sgr publish bundle`.
# To change it, change the package.
"""The files of this repository leave, so that a pipeline that was loaded from it can be saved whole."""

import inspect
from pathlib import Path

ROOT_FILES = (
    "pipeline.py",
    "sgr_callbacks.py",
    "sgr_coils.py",
    "sgr_consistency.py",
    "sgr_guidance.py",
    "sgr_hub_bundle.py",
    "sgr_hub_layout.py",
    "sgr_inputs.py",
    "sgr_masks.py",
    "sgr_model_index.py",
    "sgr_networks.py",
    "sgr_operators.py",
    "sgr_pipeline_output.py",
    "sgr_scheduler_checks.py",
    "sgr_scheduler_table.py",
    "sgr_schedules.py",
    "sgr_shapes.py",
    "sgr_solvers.py",
)
SEGMENTATION_PATH = "segmentation_model/segmentation_unet.py"


def code_files(segmentation_class=None):
    """Path in the repository -> text, for a segmentation model of this class."""
    here = Path(__file__).parent
    files = {name: (here / name).read_text(encoding="utf-8") for name in ROOT_FILES}
    if segmentation_class is not None:
        files[SEGMENTATION_PATH] = Path(inspect.getfile(segmentation_class)).read_text(encoding="utf-8")
    return files
