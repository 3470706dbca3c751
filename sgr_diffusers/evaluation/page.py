"""Render tables of scores and figures as a self-contained web page."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from .costs import cost_frame
from .load import EvaluationResults
from .network_meter import BACKWARD_COST
from .scores import NOISE_FREE, QUALITY, SCORES, ScoreTables
from .table1 import table1_cells

__all__ = ["render_page"]

_TEMPLATE = files(__package__) / "report_page.html.jinja"
_TEXTS = {"method", "reference", "segmenter", "group", "baseline", "claim", "holds", "numbers", "scans with"}
_NAMES = {
    "precision_lower": "precision S↓",
    "recall_upper": "recall S↑",
    "uncertain_share": "V_unc / V↑",
    "covered": "coverage",
    "width": "width",
    "ssim": "SSIM",
    "psnr": "PSNR",
    NOISE_FREE: "PSNR to the image without noise",
}
_METHODS = {"RR_equal_budget": "RR, equal budget"}
_GROUPS = {"finding": "with a rare finding", "no_finding": "without"}


def _number(value: Any, digits: int = 3) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def _with_interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    value = _number(row.get(name, float("nan")), digits)
    low, high = row.get(f"{name}_ci_low"), row.get(f"{name}_ci_high")
    if value == "–" or low is None or pd.isna(low):
        return value
    return f"{value} [{_number(low, digits)}, {_number(high, digits)}]"


def _head(row: Mapping[str, Any], *names: str) -> dict[str, str]:
    facts = {}
    for name in names:
        value = row[name]
        if name in ("acceleration", "strength", "n_samples"):
            value = {"acceleration": "{:g}x", "strength": "{:.4g}", "n_samples": "{:g}"}[name].format(value)
        facts[name.replace("n_", "")] = _METHODS.get(value, str(value).replace("_", " "))
    return facts


def _score_table(frame: pd.DataFrame, heads: Sequence[str], names: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for row in frame.to_dict("records"):
        cells = _head(row, *heads)
        cells |= {_NAMES[name]: _with_interval(row, name, 2 if name.startswith("psnr") else 3) for name in names}
        rows.append(cells | {"scans": f"{row['n_scans']:.0f}"})
    return rows


def render_page(
    results: EvaluationResults,
    tables: ScoreTables,
    table1: Sequence[Mapping[str, Any]],
    claims: Sequence[Mapping[str, Any]],
    figures: Mapping[str, tuple[str, Path]],
) -> str:
    """Render the page as HTML, figures included.

    Args:
        results: stored results.
        tables: tables of scores from `score`.
        table1: rows of Table 1 as they are to be shown.
        claims: rows of claims from `check_claims`.
        figures: caption and PNG file of each figure, by name.
    """
    import jinja2

    sections = [
        {
            "title": "Table 1",
            "note": "Medians over scans and classes of scores of volumes; SSIM and PSNR: means over volumes.",
            "rows": table1_cells(table1, missing="–"),
        },
        {"title": "What the paper's table says", "rows": [dict(row) for row in claims]},
        *_score_sections(tables, results.strength),
        *_finding_sections(tables),
        *_sample_sections(tables),
        _cost_section(results),
        *(
            {"title": caption, "image": base64.b64encode(path.read_bytes()).decode()}
            for caption, path in figures.values()
        ),
        {
            "title": "Settings",
            "rows": [
                {"setting": name, "value": value if isinstance(value, str) else json.dumps(value)}
                for name, value in results.config["identity"]["settings"].items()
            ],
        },
    ]
    for section in sections:
        section["texts"] = _TEXTS | {"setting", "value"}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True)
    return environment.from_string(_TEMPLATE.read_text()).render(
        title=f"Evaluation on {results.config['data']}",
        introduction=[f"Command: {run['command']}" for run in results.config.get("runs", [])],
        warnings=_warnings(results),
        sections=sections,
    )


def _score_sections(tables: ScoreTables, strength: float) -> Iterator[dict[str, Any]]:
    """Yield all scores at the default strength, their paired differences, and scores of scans with a rare finding."""
    is_default = (tables.scores["method"] != "SGR") | ((tables.scores["strength"] - strength).abs() <= 1e-6 * strength)
    everything = tables.scores[(tables.scores["group"] == "all") & is_default]
    yield {
        "title": "All scores, with 95 % intervals",
        "note": "Bootstrap over scans. Coverage: share of (scan, class) whose reference volume lies in [V↓, V↑]; "
        "width: median of V_unc over the reference volume, which is what the coverage costs. Segmenter “second”: "
        "the same reconstructions, segmented by a network that guidance never saw. Equal budget: RR with as "
        f"many samples as SGR's passes of the prior pay for, a backward pass counted as {BACKWARD_COST}.",
        "rows": _score_table(
            everything,
            ("acceleration", "method", "segmenter", "reference"),
            (*SCORES, "covered", "width", *QUALITY, NOISE_FREE),
        ),
    }
    yield {
        "title": "SGR − RR, paired",
        "note": "Median (coverage, SSIM, PSNR: mean) of the differences in the same scan and class.",
        "rows": _score_table(
            tables.differences, ("acceleration", "baseline", "segmenter", "reference"), (*SCORES, "covered", *QUALITY)
        ),
    }
    grouped = tables.scores[(tables.scores["group"] != "all") & is_default & (tables.scores["segmenter"] == "guiding")]
    grouped = grouped.assign(**{"scans with": grouped["group"].map(_GROUPS)})
    if len(grouped):
        heads = ("acceleration", "method", "reference", "scans with")
        rows = _score_table(grouped, heads, (*SCORES, "covered", "width"))
        yield {"title": "Scans with a rare finding, and the others", "rows": rows}


def _finding_sections(tables: ScoreTables) -> Iterator[dict[str, Any]]:
    """Yield what becomes of rare findings, where there are any."""
    if len(tables.findings):
        yield {
            "title": "Rare findings",
            "note": "Tissue that a finding took away (known of synthetic knees only), in all slices that show it. "
            "Admitted: share of its voxels that the lower bound leaves out; mostly: share of findings of which at "
            "least half is. Volume covered: the true volume lies within the bounds, in these slices.",
            "rows": [
                {
                    **_head(row, "acceleration", "method", "segmenter"),
                    "findings": f"{row['n_findings']:.0f}",
                    "voxels": f"{row['finding_voxels']:.0f}",
                    "admitted": _number(row["admitted_share"]),
                    "mostly": _number(row["admitted_mostly"]),
                    "volume covered": _number(row["true_volume_covered"]),
                    "width": _number(row["width"]),
                }
                for row in tables.findings.to_dict("records")
            ],
        }


def _sample_sections(tables: ScoreTables) -> Iterator[dict[str, Any]]:
    """Yield scores against the number of samples, where there are slices with more samples."""
    if len(tables.curve):
        yield {
            "title": "Number of samples",
            "note": "The slices with more samples only. Smaller numbers: mean over disjoint sets of samples. "
            "0 samples: SGR, or RR with SGR's budget, in the same slices.",
            "rows": _score_table(
                tables.curve,
                ("acceleration", "method", "n_samples", "segmenter", "reference"),
                (*SCORES, "covered", "width"),
            ),
        }


def _cost_section(results: EvaluationResults) -> dict[str, Any]:
    """Return the seconds of a slice, and the shares of its parts."""
    parts = ("unet_forward", "unet_backward", "segmentation", "physics", "rest")
    return {
        "title": "Cost of a slice",
        "note": f"Forward equivalents: images through the prior, a backward pass counted as {BACKWARD_COST}.",
        "rows": [
            {
                **_head(row, "acceleration", "method"),
                "seconds": _number(row["seconds"], 1),
                **{name.replace("_", " "): f"{row[name]:.0%}" for name in parts},
                "forward equivalents": _number(row["forward_equivalents"], 0),
            }
            for row in cost_frame(results).to_dict("records")
        ],
    }


def _warnings(results: EvaluationResults) -> list[str]:
    warnings = []
    if results.missing:
        warnings.append(
            f"{len(results.missing)} of {len(results.missing) + len(results.rows)} units of work are not done. Scores "
            "are of the slices for which all methods are."
        )
    return warnings + results.damaged
