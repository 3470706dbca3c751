"""Compute the mean cost of a slice and the shares of its time from a results folder, as tables."""

import os

import pandas as pd

from ..figures.tables import format_table
from .load import EvaluationResults, load_results
from .network_meter import BACKWARD_COST

__all__ = ["cost_frame", "cost_table"]

_PARTS = ("unet_forward", "unet_backward", "segmentation", "physics")


def cost_frame(results: EvaluationResults) -> pd.DataFrame:
    """Compute the mean seconds of a slice for each method and acceleration, and how they divide among the parts.

    `forward_equivalents` counts the prior's passes of one image; a backward pass counts as `BACKWARD_COST`.
    """
    rows = []
    for unit, row in results.rows.items():
        if unit.kind == "reference" or unit.first_sample:
            continue
        spent = {part: row[f"seconds_{part}"] for part in _PARTS}
        rows.append(
            {
                "method": unit.kind,
                "acceleration": unit.acceleration,
                "seconds": row["seconds"],
                **spent,
                "rest": row["seconds"] - sum(spent.values()),
                "forward_equivalents": row["n_forward"] + BACKWARD_COST * row["n_backward"],
            }
        )
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    means = frame.groupby(["method", "acceleration"], as_index=False).mean()
    means["n_slices"] = frame.groupby(["method", "acceleration"], as_index=False)["seconds"].count()["seconds"]
    for part in (*_PARTS, "rest"):
        means[part] = means[part] / means["seconds"]
    return means


def cost_table(folder: str | os.PathLike) -> str:
    """Format the costs of `cost_frame` for the screen; empty if nothing is done yet."""
    frame = cost_frame(load_results(folder))
    if frame.empty:
        return ""
    rows = [
        {
            "method": row["method"],
            "acceleration": f"{row['acceleration']:g}x",
            "slices": int(row["n_slices"]),
            "s per slice": f"{row['seconds']:.1f}",
            "UNet forward": f"{row['unet_forward']:.0%}",
            "UNet backward": f"{row['unet_backward']:.0%}",
            "segmentation": f"{row['segmentation']:.0%}",
            "physics": f"{row['physics']:.0%}",
            "rest": f"{row['rest']:.0%}",
            "forward equivalents": f"{row['forward_equivalents']:.0f}",
        }
        for row in frame.to_dict("records")
    ]
    return format_table(rows)
