"""Write a folder with Table 1, all scores, the figures and a web page from a results folder."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from ..data.skm_tea import SKM_TEA
from ..utils.files import RECORD_FILE, whole_folder
from .costs import cost_frame
from .curves import ablation_figure, coverage_figure, sample_curve_figure, score_figure
from .examples import boundaries_figure, bounds_figure
from .load import EvaluationResults, load_results
from .page import render_page
from .scores import ScoreTables, score
from .table1 import check_claims, paper_rows, save_table1, table1_markdown, table1_rows

__all__ = ["CAPTIONS", "write_report"]

CAPTIONS = {
    "figure3_bounds": "Fig. 3: bounds",
    "figure4_boundaries": "Fig. 4: uncertainty boundary against acceleration",
    "figure5_scores": "Fig. 5: median and quartiles of the scores against acceleration",
    "figure6_ablation": "Fig. 6: ablation over the strength b",
    "figure7_samples": "Repeated reconstruction against its number of samples",
    "figure8_coverage": "Coverage of the bounds and the width paid for it",
}


def write_report(
    results_folder: str | os.PathLike, output: str | os.PathLike, seed: int = 0, overwrite: bool = False
) -> list[str]:
    """Write all tables and figures of what is stored.

    Args:
        results_folder: results folder of `sgr evaluate`; need not be complete.
        output: folder to make.
        seed: seed of the bootstrap.
        overwrite: whether the folder of an earlier report may be replaced.

    Returns:
        Lines for the screen: what is missing, Table 1, and which of the paper's claims hold.

    Raises:
        FileNotFoundError, ValueError: it is no results folder, or nothing is done yet.
        FileExistsError: `output` is taken.
    """
    results = load_results(results_folder)
    tables = score(results, seed)
    rows = table1_rows(tables, results.strength)
    is_skm_tea = results.config["data"] == SKM_TEA
    claims = check_claims(rows, tables.growth.to_dict("records"))
    with whole_folder(output, overwrite) as folder:
        save_table1(folder, rows, is_skm_tea)
        for name, frame in {
            "scores": tables.scores,
            "differences": tables.differences,
            "growth": tables.growth,
            "rr_curve": tables.curve,
            "equal_budget": tables.budgets,
            "findings": tables.findings,
            "volumes": tables.volumes,
            "costs": cost_frame(results),
            "claims": pd.DataFrame(claims),
        }.items():
            if len(frame):
                frame.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        figures = _write_figures(folder, results, tables)
        table = [*rows, *(paper_rows(rows) if is_skm_tea else [])]
        (folder / "report.html").write_text(render_page(results, tables, table, claims, figures), encoding="utf-8")
        n_slices = len(tables.counts.loc[tables.counts["part"] == "main", ["scan_id", "slice"]].drop_duplicates())
        record = {
            "bootstrap_seed": seed,
            "n_slices": n_slices,
            **{key: results.config[key] for key in ("data", "identity", "runs")},
        }
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=1))
    lines = list(results.damaged)
    if results.missing:
        lines.append(f"{len(results.missing)} units of work are not done; scores are of the slices that are complete.")
    lines += [table1_markdown(table), ""]
    lines += [f"{claim['holds']:>3}  {claim['claim']}: {claim['numbers']}" for claim in claims]
    return [*lines, f"{Path(output) / 'report.html'}"]


def _write_figures(folder: Path, results: EvaluationResults, tables: ScoreTables) -> dict[str, tuple[str, Path]]:
    """Write a PNG file of each figure that there is something to draw of."""
    drawn: dict[str, Any] = {
        "figure3_bounds": bounds_figure(results),
        "figure4_boundaries": boundaries_figure(results),
        "figure5_scores": score_figure(tables, results.strength),
        "figure6_ablation": ablation_figure(tables),
        "figure7_samples": sample_curve_figure(tables),
        "figure8_coverage": coverage_figure(tables, results.strength),
    }
    written = {}
    for name, figure in drawn.items():
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path)
            written[name] = (CAPTIONS[name], path)
    return written
