"""Collects what the card of a checkpoint says of its calibration, from its records."""

from pathlib import Path
from typing import Any

import pandas as pd

from ..calibration.record import FILE_NAME as CALIBRATION_FILE
from ..calibration.record import Calibration
from ..evaluation.coverage import coverage_rows

__all__ = ["calibration_facts"]


def calibration_facts(folder: Path) -> dict[str, Any] | None:
    """Collect what a checkpoint is calibrated for, and the coverage that was measured, for its card.

    Args:
        folder: folder of the checkpoint.

    Returns:
        Values by the names that the templates have for them; `None` without a calibration.
    """
    if not (folder / CALIBRATION_FILE).is_file():
        return None
    calibration = Calibration.load(folder)
    measured = folder / "evaluation" / "coverage.csv"
    rows = coverage_rows(pd.read_csv(measured)) if measured.is_file() else []
    settings = calibration.settings
    return {
        "n_scans": len(calibration.splits["calibration"]),
        "groups": list(dict.fromkeys(str(entry.group) for entry in calibration.quantiles)),
        "scheduler": settings.scheduler["class"],
        "steps": settings.num_inference_steps,
        "timesteps": settings.timesteps,
        "strength": f"{settings.guidance_strength:.4g}",
        "reference": calibration.reference.replace("_", " "),
        "slices": calibration.slices_text,
        "slice_rule": calibration.slice_rule,
        "has_diagram": measured.with_suffix(".png").is_file(),
        "coverage": [list(row.values()) for row in rows],
    }
