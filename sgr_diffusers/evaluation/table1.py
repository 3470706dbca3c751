"""Write the paper's Table 1 from scores as CSV, Markdown and LaTeX; check the claims that it should bear out."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..figures.tables import format_table
from .scores import QUALITY, SCORES, ScoreTables

__all__ = [
    "COLUMNS",
    "PAPER",
    "check_claims",
    "paper_rows",
    "read_table1",
    "save_table1",
    "table1_cells",
    "table1_latex",
    "table1_markdown",
    "table1_rows",
    "write_table1",
]

COLUMNS = ("acceleration", "method", "reference", *SCORES, *QUALITY, "n_scans")

# Table 1 of arXiv:2407.18026: SKM-TEA's test split, 100 steps, against the segmentation of the fully sampled image.
PAPER = {
    (4.0, "SGR"): (0.992, 0.995, 0.126, 0.914, 34.6),
    (4.0, "RR"): (0.982, 0.989, 0.045, 0.915, 34.6),
    (8.0, "SGR"): (0.989, 0.992, 0.322, 0.857, 30.8),
    (8.0, "RR"): (0.971, 0.976, 0.075, 0.857, 30.9),
    (12.0, "SGR"): (0.984, 0.991, 0.473, 0.818, 29.1),
    (12.0, "RR"): (0.961, 0.966, 0.096, 0.820, 29.1),
    (16.0, "SGR"): (0.980, 0.990, 0.586, 0.788, 27.9),
    (16.0, "RR"): (0.951, 0.957, 0.113, 0.789, 28.0),
}

_HEADS = {
    "acceleration": "acc.",
    "method": "method",
    "reference": "reference",
    "precision_lower": "precision S_low",
    "recall_upper": "recall S_up",
    "uncertain_share": "V_unc / V_up",
    "ssim": "SSIM",
    "psnr": "PSNR",
    "n_scans": "scans",
}
_LATEX_HEADS = {
    **_HEADS,
    "precision_lower": r"Prec.\ $S^\downarrow$",
    "recall_upper": r"Recall $S^\uparrow$",
    "uncertain_share": r"$V_{unc}/V^\uparrow$",
}
_FORMATS = {"acceleration": "{:g}x", "psnr": "{:.2f}", "n_scans": "{:.0f}"}


def table1_rows(tables: ScoreTables, strength: float) -> list[dict[str, Any]]:
    """Return the rows of Table 1: acceleration, SGR before RR, reference; medians, and for SSIM and PSNR means.

    Args:
        tables: tables of scores from `score`.
        strength: strength b of the SGR to show.
    """
    scores = tables.scores
    is_guided = (scores["method"] == "SGR") & ((scores["strength"] - strength).abs() <= 1e-6 * strength)
    is_shown = (scores["group"] == "all") & (scores["segmenter"] == "guiding")
    table = scores[is_shown & (is_guided | (scores["method"] == "RR"))]
    table = table.assign(order=table["method"].map({"SGR": 0, "RR": 1}))
    table = table.sort_values(["reference", "acceleration", "order"])
    return [{name: row.get(name) for name in COLUMNS} for row in table.to_dict("records")]


def write_table1(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `table1.csv`: the columns `COLUMNS`, in full precision; what has no value is left empty."""
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, lineterminator="\n")


def read_table1(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the rows of a `table1.csv`.

    Raises:
        ValueError: it has other columns, or a cell is no number.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # no text, or no table
        raise ValueError(f"{path} is neither a results folder nor a table1.csv ({error}).") from error
    if tuple(frame.columns) != COLUMNS:
        raise ValueError(
            f"{path} must have the columns {COLUMNS}, as `sgr report` writes it, got {list(frame.columns)}."
        )
    try:
        numbers = frame.drop(columns=["method", "reference"]).replace("", "nan").astype(float)
    except ValueError as error:
        raise ValueError(f"{path} has a cell that is no number ({error}).") from error
    return frame.assign(**numbers).to_dict("records")


def paper_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the paper's numbers for the accelerations of `rows`; 36 scans, the test split."""
    accelerations = {row["acceleration"] for row in rows}
    return [
        {"acceleration": key[0], "method": f"{key[1]}, paper", "reference": "fully_sampled"}
        | dict(zip((*SCORES, *QUALITY, "n_scans"), (*values, 36), strict=True))
        for key, values in PAPER.items()
        if key[0] in accelerations
    ]


def _cell(name: str, value: Any) -> str | None:
    if isinstance(value, str):
        return value.replace("_", " ")
    return None if pd.isna(value) else _FORMATS.get(name, "{:.3f}").format(value)


def table1_cells(rows: Sequence[Mapping[str, Any]], missing: str | None = None) -> list[dict[str, str | None]]:
    """Return the table as texts, rounded; `missing` where there is no value."""
    return [{_HEADS[name]: _cell(name, row[name]) or missing for name in COLUMNS} for row in rows]


def table1_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the table in Markdown, for a README or a card.

    Raises:
        ValueError: there is no row.
    """
    return format_table(table1_cells(rows), markdown=True)


def table1_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the table in LaTeX, which needs the package booktabs."""
    cells = pd.DataFrame(table1_cells(rows, missing="--")).set_axis([_LATEX_HEADS[name] for name in COLUMNS], axis=1)
    return cells.to_latex(index=False, column_format="lllrrrrrr")


def check_claims(rows: Sequence[Mapping[str, Any]], growth: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Check whether these rows bear out the claims of the paper's table.

    Against the fully sampled reference if it is there. (The paper's own RR grows 2.51 times, if its rounded numbers
    are divided: more than the limit here.)

    Args:
        rows: rows of Table 1 from `table1_rows`.
        growth: rows of `ScoreTables.growth`, for confidence intervals.

    Returns:
        Rows of `claim`, `holds` and `numbers` (a text); none without both methods.
    """
    references = [row["reference"] for row in rows]
    reference = "fully_sampled" if "fully_sampled" in references else "manual"
    by_method = {(row["acceleration"], row["method"]): row for row in rows if row["reference"] == reference}
    accelerations = sorted(key[0] for key in by_method if key[1] == "SGR" and (key[0], "RR") in by_method)
    if not accelerations:
        return []
    pairs = [(by_method[a, "SGR"], by_method[a, "RR"]) for a in accelerations]
    claims = []
    for name, text in (("precision_lower", "precision of S_low"), ("recall_upper", "recall of S_up")):
        above = [sgr[name] - rr[name] for sgr, rr in pairs]
        numbers = ", ".join(f"{a:g}x {d:+.3f}" for a, d in zip(accelerations, above, strict=True))
        claims.append(_claim(f"SGR's {text} is above RR's at every acceleration", min(above) > 0, numbers))
    if len(accelerations) > 1:
        factors = {
            method: _ratio(
                by_method[accelerations[-1], method]["uncertain_share"],
                by_method[accelerations[0], method]["uncertain_share"],
            )
            for method in ("SGR", "RR")
        }
        span = f"from {accelerations[0]:g}x to {accelerations[-1]:g}x"
        for method, holds, most in (
            ("SGR", factors["SGR"] >= 3, "at least 3x"),
            ("RR", factors["RR"] < 2.5, "less than 2.5x"),
        ):
            numbers = f"{factors[method]:.2f}x"
            for row in growth:
                if (row["method"], row["segmenter"], row["reference"]) == (method, "guiding", reference):
                    numbers += f" (95 %: {row['growth_ci_low']:.2f} to {row['growth_ci_high']:.2f})"
            claims.append(_claim(f"{method}'s V_unc / V_up grows {most} {span}", holds, numbers))
    for name, limit, text in (("ssim", 0.005, "SSIM"), ("psnr", 0.2, "PSNR")):
        apart = [sgr[name] - rr[name] for sgr, rr in pairs]
        numbers = ", ".join(f"{a:g}x {d:+.4f}" for a, d in zip(accelerations, apart, strict=True))
        holds = max(abs(value) for value in apart) <= limit
        claims.append(_claim(f"{text} of SGR and RR lie within {limit:g}", holds, numbers))
    return claims


def _claim(claim: str, holds: Any, numbers: str) -> dict[str, Any]:
    return {"claim": claim, "holds": "yes" if holds else "no", "numbers": numbers}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def save_table1(folder: Path, rows: Sequence[Mapping[str, Any]], is_skm_tea: bool) -> None:
    """Write `table1.csv`, `table1.md` and `table1.tex`; the paper's numbers stand in the latter two, for its data."""
    write_table1(folder / "table1.csv", rows)
    table = [*rows, *(paper_rows(rows) if is_skm_tea else [])]
    (folder / "table1.md").write_text(table1_markdown(table) + "\n")
    (folder / "table1.tex").write_text(table1_latex(table))
