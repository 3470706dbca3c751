"""Renders the card of the general checkpoint from the records in its folder."""

import json
from pathlib import Path

import pandas as pd

from ..evaluation.table1 import read_table1, table1_markdown
from .cards import render_card

__all__ = ["KINDS", "general_card", "real_scans"]

# Kinds of scans of `tests/benchmarks/benchmark_real.py`, in the order of the tables.
KINDS = {
    "fse-low": "knee, 3-D FSE, 106 x 102",
    "fse": "knee, 3-D FSE, 320 x 256",
    "brain16": "brain, raw data of 16 coils",
    "fold3": "brain, T1 with contrast agent",
    "folder": "synthetic knee, varied, 96 x 80",
}


def general_card(folder: str | Path) -> str:
    """Render the card of the general checkpoint.

    Args:
        folder: folder of the checkpoint, with `model_index.json`, `training/prior.json` and
            `training/segmentation.json`, the records of the trainings, `evaluation/segmentation.json` of
            `tests/benchmarks/benchmark_segmentation.py`, `evaluation/real_scans.csv` of
            `tests/benchmarks/benchmark_real.py`, and `evaluation/table1.csv` of `sgr report` on varied knees.
    """
    folder = Path(folder)
    records = {
        name: json.loads((folder / place).read_text(encoding="utf-8"))
        for name, place in (
            ("prior", "training/prior.json"),
            ("segmentation", "training/segmentation.json"),
            ("dice", "evaluation/segmentation.json"),
            ("settings", "model_index.json"),
        )
    }
    rows = [
        {"scans": KINDS[kind], "acceleration": acceleration, **row}
        for (kind, acceleration), row in real_scans(folder).to_dict("index").items()
    ]
    table1 = table1_markdown(read_table1(folder / "evaluation" / "table1.csv"))
    return render_card("general_card.md.jinja", records | {"real": rows, "table1": table1})


def real_scans(folder: str | Path) -> pd.DataFrame:
    """Return mean errors over the scans of each kind and acceleration, against the fully sampled image.

    Args:
        folder: folder of the checkpoint, with `evaluation/real_scans.csv`.

    Returns:
        Columns `n`, NRMSE of `l1_wavelet`, `l1_wavelet_bart`, `sample` and `mean`, of the mean of samples `ratio` and
        `ratio_bart` (means of the ratios to the two) and `dispersion`, `ratio_sample`, and `dispersion_noise_free`
        (against the image without simulated noise; NaN where there is none), by `kind` and `acceleration`.
    """
    table = pd.read_csv(Path(folder, "evaluation", "real_scans.csv"))
    groups = table[table["against"] == "fully sampled"].groupby(["kind", "acceleration", "method"])
    noise_free = table[(table["against"] == "noise free") & (table["method"] == "mean")]
    of_noise_free = noise_free.groupby(["kind", "acceleration"])["dispersion"].mean().rename("dispersion_noise_free")
    errors = groups["nrmse"].mean().unstack()[["l1_wavelet", "l1_wavelet_bart", "sample", "mean"]]
    ratios = groups[["ratio", "ratio_bart", "dispersion"]].mean()
    of_samples = ratios["ratio"].xs("sample", level="method").rename("ratio_sample")
    counts = groups.size().unstack()["mean"]
    columns = errors.join(ratios.xs("mean", level="method")).join([of_samples, of_noise_free])
    return columns.assign(n=counts).loc[list(KINDS)]
