"""Collects what the card of a checkpoint says of its calibration, from its records."""

from pathlib import Path
from typing import Any

import pandas as pd

from ..calibration.record import FILE_NAME as CALIBRATION_FILE
from ..calibration.record import Calibration

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
    rows = pd.read_csv(measured).to_dict("records") if measured.is_file() else []
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
        "coverage": [
            [
                f"{row['acceleration']:g}x",
                f"{row['coverage']:g}",
                str(row["class"]).replace("_", " "),
                f"{row['n_covered']:.0f} of {row['n_test']:.0f}",
                f"{row['expected_low']:.2f} to {row['expected_high']:.2f}",
                f"{row['ci_low']:.2f} to {row['ci_high']:.2f}",
                f"{row['width_mm3']:.0f}",
                f"{row['bounds_width_mm3']:.0f}",
            ]
            for row in rows
        ],
    }
