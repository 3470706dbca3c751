"""Renders the card of the general checkpoint from the records in its folder."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from .cards import render_card

__all__ = ["general_card", "real_scan_rows"]

_SCANS = {
    "fse": "knee, 3-D FSE, native size",
    "fse-low": "knee, 3-D FSE, at 1.5 mm",
    "brain16": "brain, raw data of 16 coils",
    "fold3": "brain, T1 with contrast agent",
    "folder": "synthetic knee, varied",
}


def general_card(folder: str | Path) -> str:
    """Render the card of the general checkpoint.

    Args:
        folder: folder of the checkpoint, with `training/prior.json` and `training/segmentation.json`, the records of
            the trainings, `evaluation/segmentation.json` of `tests/benchmarks/benchmark_segmentation.py` and
            `evaluation/real_scans.csv` of `tests/benchmarks/benchmark_real.py`.
    """
    folder = Path(folder)
    records = {
        name: json.loads((folder / place).read_text(encoding="utf-8"))
        for name, place in (
            ("prior", "training/prior.json"),
            ("segmentation", "training/segmentation.json"),
            ("dice", "evaluation/segmentation.json"),
        )
    }
    return render_card("general_card.md.jinja", records | {"real": real_scan_rows(folder)})


def real_scan_rows(folder: str | Path) -> list[dict[str, Any]]:
    """Return the errors on real scans, a row for each kind of scan and acceleration, as means over scans.

    Args:
        folder: folder of the checkpoint, with `evaluation/real_scans.csv`.
    """
    table = pd.read_csv(Path(folder, "evaluation", "real_scans.csv"))
    table = table[table["against"] == "fully sampled"]
    rows = []
    for (kind, acceleration), group in table.groupby(["kind", "acceleration"], sort=False):
        means = group.groupby("method").mean(numeric_only=True)
        rows.append(
            {
                "scans": _SCANS[kind],
                "n": group["case"].nunique(),
                "acceleration": acceleration,
                "l1_wavelet": means.loc["l1_wavelet", "nrmse"],
                "sample": means.loc["sample", "nrmse"],
                "mean": means.loc["mean", "nrmse"],
                "ratio_sample": means.loc["sample", "ratio"],
                "ratio_mean": means.loc["mean", "ratio"],
                "ratio_bart": means.loc["mean", "ratio_bart"],
                "dispersion": means.loc["mean", "dispersion"],
            }
        )
    return rows
