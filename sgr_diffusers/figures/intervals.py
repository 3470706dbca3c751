"""Draws the volumes between which a tissue lies as a chart that is read at a glance.

A bar is an interval. Where it is a calibrated one, a diamond is the point estimate, the mean volume of unguided
images, and two dots are the volumes of the images that were made for its ends: filled where the image has the volume
of its end, open where it falls short of it. A line is the volume in the fully sampled image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .colours import BLUE, ORANGE

__all__ = ["Intervals", "draw_intervals", "interval_legend"]


@dataclass(frozen=True)
class Intervals:
    """A chart of the volumes between which a tissue lies, one bar for each sampling.

    Attributes:
        title: text over the column, if the chart is in the first row.
        labels: names of the samplings, from top to bottom.
        lower: lower volumes in mm^3 or voxels, one for each sampling.
        upper: upper volumes in the same unit.
        known: volume in the fully sampled image; `None` if unknown.
        points: point estimates, for calibrated intervals.
        images: volumes of the images at the lower and upper ends of calibrated intervals.
        attained: whether these images have the volumes of the ends.
    """

    title: str
    labels: Sequence[str]
    lower: Sequence[float]
    upper: Sequence[float]
    known: float | None = None
    points: Sequence[float] = ()
    images: Sequence[tuple[float, float]] = ()
    attained: Sequence[tuple[bool, bool]] = ()


def draw_intervals(axes: Any, chart: Intervals) -> None:
    """Draw a chart into axes of matplotlib."""
    from matplotlib.ticker import MaxNLocator

    axes.set_axis_on()
    places = np.arange(len(chart.labels))
    lower, upper = np.asarray(chart.lower), np.asarray(chart.upper)
    axes.barh(places, upper - lower, left=lower, height=0.45, color=ORANGE)
    if chart.known is not None:
        axes.axvline(chart.known, color=BLUE, linewidth=1.2)
    for place, ends, reached in zip(places, chart.images, chart.attained, strict=False):
        for volume, is_attained in zip(ends, reached, strict=True):
            axes.plot(volume, place, **_dot(is_attained))
    for place, volume in zip(places, chart.points, strict=False):
        axes.plot(volume, place, **_DIAMOND)
    volumes = [*lower, *upper, *chart.points, *(volume for ends in chart.images for volume in ends)]
    largest = max([*volumes, chart.known or 0.0]) or 1.0
    axes.set_xlim(-0.3 * largest, 1.05 * largest)  # names of the samplings stand left of zero
    axes.set_ylim(len(places) - 0.4, -0.6)
    for place, label in zip(places, chart.labels, strict=True):
        axes.text(-0.05 * largest, place, label, ha="right", va="center", fontsize=7)
    axes.set_yticks([])
    axes.set_xticks(MaxNLocator(3).tick_values(0, largest)[:-1])
    axes.tick_params(axis="x", labelsize=7, length=2, pad=1)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 1.05 * largest)


def interval_legend(charts: Sequence[Intervals]) -> list[Any]:
    """Return entries of a legend for what occurs in charts; plain bounds need none but that of the line."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    reached = {bool(end) for chart in charts for ends in chart.attained for end in ends}
    if reached:
        handles.append(Patch(color=ORANGE, label="calibrated interval"))
        handles.append(Line2D([], [], linestyle="", label="point estimate", **_DIAMOND))
        texts = {True: "image at its end", False: "image short of its end"}
        handles += [
            Line2D([], [], linestyle="", label=text, **_dot(end)) for end, text in texts.items() if end in reached
        ]
    if any(chart.known is not None for chart in charts):
        handles.append(Line2D([], [], color=BLUE, linewidth=1.2, label="volume in the fully sampled image"))
    return handles


_MARK = {"markersize": 4, "markeredgecolor": "black", "markeredgewidth": 0.8}
_DIAMOND: dict[str, Any] = {**_MARK, "marker": "D", "color": "white"}


def _dot(is_attained: bool) -> dict[str, Any]:
    """Properties of the mark of an image at an end."""
    return {**_MARK, "marker": "o", "color": "black" if is_attained else "white"}
