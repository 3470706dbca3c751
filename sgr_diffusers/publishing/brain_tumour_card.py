"""Renders the card of the brain tumour checkpoint from the records in its folder."""

import json
from pathlib import Path
from typing import Any

from .calibrated import calibration_facts
from .cards import render_card

__all__ = ["brain_tumour_card"]


def brain_tumour_card(folder: str | Path) -> str:
    """Render the card of the brain tumour checkpoint.

    Args:
        folder: folder of the checkpoint, with `training/<number>_segmentation.json`, the records of the trainings in
            their order; `training/assembly.json` with a note on what was chosen; `evaluation/segmentation.json` of
            `tests/benchmarks/benchmark_segmentation.py`; and once it is calibrated `calibration.json` and
            `evaluation/coverage.csv`.
    """
    folder = Path(folder)
    runs = [_read(path) for path in sorted((folder / "training").glob("*_segmentation.json"))]
    validated = [row for row in runs[-1]["history"] if "val_dice" in row]
    return render_card(
        "brain_tumour_card.md.jinja",
        {
            "data": runs[-1]["data"],
            "runs": runs,
            "minutes": f"{sum(run['minutes'] for run in runs):.0f}",
            "val_dice": validated[-1]["val_dice"],
            "assembly": _read(folder / "training" / "assembly.json"),
            "dice": _read(folder / "evaluation" / "segmentation.json"),
            "calibration": calibration_facts(folder),
        },
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
