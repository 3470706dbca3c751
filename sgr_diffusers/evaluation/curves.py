"""Draw the tables of scores as figures in the manner of the paper's Figs. 5 and 6, and as further figures."""

from itertools import cycle
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..figures.colours import BLUE, ORANGE, SKY_BLUE, VERMILION
from .scores import SCORES, ScoreTables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ablation_figure", "coverage_figure", "sample_curve_figure", "score_figure", "width_figure"]

_TITLES = {
    "precision_lower": r"precision of $S^\downarrow$",
    "recall_upper": r"recall of $S^\uparrow$",
    "uncertain_share": r"$V_{unc}\,/\,V^\uparrow$",
    "covered": "reference volume\nlies within the bounds",
    "width": r"$V_{unc}\,/\,V$ of the reference",
}
_STYLES = {
    "SGR": {"color": BLUE, "marker": "o", "label": "SGR"},
    "RR": {"color": ORANGE, "marker": "s", "label": "RR"},
    "RR_equal_budget": {"color": VERMILION, "marker": "^", "label": "RR, equal budget"},
}
_REFERENCES = {"fully_sampled": "against the fully sampled image", "manual": "against manual labels"}


def _grid(n_rows: int, n_columns: int) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * n_columns, 2.7 * n_rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
        ax.tick_params(labelsize=8)
    return figure, axes


def _band(ax: Any, x: pd.Series, rows: pd.DataFrame, name: str, style: dict[str, Any], **line: Any) -> None:
    """Draw the median with quartiles."""
    ax.plot(x, rows[name], markersize=4, **{**style, **line})
    ax.fill_between(x, rows[f"{name}_q25"], rows[f"{name}_q75"], color=style["color"], alpha=0.18, linewidth=0)


def _is_default(frame: pd.DataFrame, strength: float) -> pd.Series:
    return (frame["method"] != "SGR") | ((frame["strength"] - strength).abs() <= 1e-6 * strength)


def score_figure(tables: ScoreTables, strength: float) -> "Figure":
    """Draw the paper's Fig. 5: median and quartiles of the three scores against acceleration, by reference.

    With a second segmenter its medians are dashed.
    """
    scores = tables.scores[(tables.scores["group"] == "all") & _is_default(tables.scores, strength)]
    references = [name for name in _REFERENCES if name in set(scores["reference"])]
    figure, axes = _grid(len(references), len(SCORES))
    for row, reference in zip(axes, references, strict=True):
        for ax, name in zip(row, SCORES, strict=True):
            for method, style in _STYLES.items():
                part = scores[(scores["reference"] == reference) & (scores["method"] == method)]
                guiding, second = (part[part["segmenter"] == segmenter] for segmenter in ("guiding", "second"))
                if len(guiding):
                    _band(ax, guiding["acceleration"], guiding, name, style)
                if len(second):
                    label = f"{style['label']}, second network"
                    ax.plot(second["acceleration"], second[name], **{**style, "linestyle": "--", "label": label})
            ax.set_title(_TITLES[name], fontsize=9)
            ax.set_xticks(sorted(set(scores["acceleration"])))
            ax.set_xlabel("acceleration", fontsize=8)
        row[0].set_ylabel(_REFERENCES[reference], fontsize=8)
    axes[0, 0].legend(fontsize=7)
    return figure


def ablation_figure(tables: ScoreTables) -> "Figure | None":
    """Draw the paper's Fig. 6: the scores against the strength b; `None` where only one was run."""
    scores = tables.scores[(tables.scores["group"] == "all") & (tables.scores["segmenter"] == "guiding")]
    sgr = scores[scores["method"] == "SGR"]
    n_strengths = sgr[sgr["strength"] > 0].groupby("acceleration")["strength"].nunique()
    if n_strengths.empty or n_strengths.max() < 2:
        return None
    acceleration = float(n_strengths.idxmax())
    sgr = sgr[sgr["acceleration"] == acceleration].sort_values("strength")
    figure, axes = _grid(1, len(SCORES))
    references = [name for name in _REFERENCES if name in set(sgr["reference"])]
    for ax, name in zip(axes[0], SCORES, strict=True):
        for reference, colour in zip(references, (BLUE, ORANGE), strict=False):
            part = sgr[sgr["reference"] == reference]
            style = {"color": colour, "marker": "o", "label": _REFERENCES[reference]}
            _band(ax, part["strength"], part, name, style)
        ax.set_title(f"{_TITLES[name]}, {acceleration:g}x", fontsize=9)
        ax.set_xlabel("b", fontsize=8)
        ax.set_xscale("symlog", linthresh=float(sgr.loc[sgr["strength"] > 0, "strength"].min()))
    axes[0, 0].legend(fontsize=7)
    return figure


def sample_curve_figure(tables: ScoreTables) -> "Figure | None":
    """Draw RR against its number of samples, with SGR in the same slices; `None` where no slice has more samples."""
    if tables.curve.empty:
        return None
    curve = tables.curve[tables.curve["segmenter"] == "guiding"]
    acceleration = curve["acceleration"].max()
    curve = curve[curve["acceleration"] == acceleration]
    references = [name for name in _REFERENCES if name in set(curve["reference"])]
    names = ("precision_lower", "recall_upper", "covered", "width")
    figure, axes = _grid(len(references), len(names))
    for row, reference in zip(axes, references, strict=True):
        for ax, name in zip(row, names, strict=True):
            part = curve[curve["reference"] == reference]
            rr, sgr = part[part["method"] == "RR"], part[part["method"] == "SGR"]
            ax.plot(rr["n_samples"], rr[name], markersize=4, **_STYLES["RR"])
            for value in sgr[name]:
                ax.axhline(value, color=_STYLES["SGR"]["color"], label="SGR")
            budget = tables.budgets[tables.budgets["acceleration"] == acceleration]["n_samples"]
            for n_samples in budget:
                ax.axvline(n_samples, color="grey", linestyle=":", label="cost of SGR")
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(set(rr["n_samples"])), [f"{n:g}" for n in sorted(set(rr["n_samples"]))])
            ax.set_title(_TITLES[name], fontsize=9)
            ax.set_xlabel(f"samples of RR, {acceleration:g}x", fontsize=8)
        row[0].set_ylabel(_REFERENCES[reference], fontsize=8)
    axes[0, 0].legend(fontsize=7)
    return figure


def coverage_figure(tables: ScoreTables, strength: float) -> "Figure":
    """Draw how often the volume of the reference lies within the bounds, against the width of the bounds."""
    scores = tables.scores[(tables.scores["group"] == "all") & _is_default(tables.scores, strength)]
    kinds = scores[["segmenter", "reference"]].drop_duplicates().itertuples(index=False, name=None)
    kinds = sorted(kinds)
    figure, axes = _grid(1, len(kinds))
    for ax, (segmenter, reference) in zip(axes[0], kinds, strict=True):
        for method, style in _STYLES.items():
            part = scores[
                (scores["segmenter"] == segmenter) & (scores["reference"] == reference) & (scores["method"] == method)
            ]
            if part.empty:
                continue
            ax.plot(part["width"], part["covered"], markersize=4, **style)
            ends = part.dropna(subset="width").sort_values("acceleration").iloc[[0, -1]]
            for point in ends.to_dict("records"):
                xy, text = (point["width"], point["covered"]), f"{point['acceleration']:g}x"
                ax.annotate(text, xy, fontsize=7, xytext=(3, 3), textcoords="offset points", color=style["color"])
        ax.set_ylim(-0.03, 1.08)
        second = ",\nsecond network" if segmenter == "second" else ""
        ax.set_title(f"{_REFERENCES[reference]}{second}", fontsize=9)
        ax.set_xlabel(_TITLES["width"], fontsize=8)
    axes[0, 0].set_ylabel(_TITLES["covered"], fontsize=8)
    axes[0, 0].legend(fontsize=7)
    return figure


def width_figure(table: pd.DataFrame) -> "Figure":
    """Draw the median widths of the calibrated intervals and of the bounds of each class, against acceleration.

    The medians are over the scans of which an image shows the class.

    Args:
        table: table of `sgr evaluate --coverage` (coverage.csv).
    """
    names, coverages = table["class"].unique(), sorted(table["coverage"].unique(), reverse=True)
    figure, axes = _grid(1, len(names))
    for ax, name in zip(axes[0], names, strict=True):
        of_class = table[table["class"] == name]
        for coverage, colour in zip(coverages, cycle((BLUE, SKY_BLUE)), strict=False):
            widths = of_class[of_class["coverage"] == coverage].groupby("acceleration")["width_mm3"].mean()
            ax.plot(widths, color=colour, marker="o", markersize=4, label=f"{coverage:.0%} interval")
        widths = of_class.groupby("acceleration")["bounds_width_mm3"].mean()
        ax.plot(widths, color=ORANGE, linestyle="--", marker="s", markersize=4, label="guided bounds")
        ax.set_title(name.replace("_", " "), fontsize=9)
        ax.set_xticks(widths.index, [f"{acceleration:g}x" for acceleration in widths.index])
        ax.set_ylim(0, max(ax.get_ylim()[1], 1))  # a class that most scans lack has widths of rounding errors
    axes[0, 0].set_ylabel("median width in mm$^3$", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    return figure
