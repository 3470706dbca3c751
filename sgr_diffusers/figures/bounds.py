"""Draws images with bounds over them, in the manner of the paper's Fig. 3.

Colours compare a bound with S_f, the segmentation of the fully sampled image. Blue: in both. Yellow: they differ on
the side where they may (S_low leaves out a part of S_f, S_up holds more than S_f). Vermilion with a cross: they differ
on the side where they must not (S_low holds what is not in S_f, S_up leaves out a part of S_f).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ..bounds import uncertain_share
from .colours import BLUE, ORANGE, SKY_BLUE, VERMILION, YELLOW, class_colour
from .intervals import Intervals, draw_intervals, interval_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "AGREES",
    "COLOURS",
    "DEVIATES",
    "OPACITY",
    "UNCERTAIN",
    "VIOLATES",
    "BoundPanels",
    "Panel",
    "PanelRow",
    "bound_row",
    "compare_bound",
    "draw_rows",
    "joint_window",
    "pixel_edges",
]

AGREES, DEVIATES, VIOLATES, UNCERTAIN = 1, 2, 3, 4
COLOURS = {
    AGREES: (BLUE, "in the bound and in the fully sampled image"),
    DEVIATES: (YELLOW, "left open by the measurement"),
    VIOLATES: (VERMILION, "bound violated (crosses)"),
    UNCERTAIN: (ORANGE, "uncertainty boundary: in the upper bound, not in the lower"),
}
OPACITY = {AGREES: 0.6, DEVIATES: 0.7, VIOLATES: 0.9, UNCERTAIN: 0.85}
_OUTLINE = SKY_BLUE  # of S_f; white would vanish on bright cartilage

Image = Float[np.ndarray, "y x"]
Pixels = Bool[np.ndarray, "y x"]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Panel:
    """One image of a figure.

    Attributes:
        title: text over the column, if the panel is in the first row.
        image: `(y, x)` magnitude.
        overlay: `(y, x)` labels, 0 transparent; `AGREES` to `UNCERTAIN`, or classes from 1 if `classes` is set.
        outline: `(y, x)` pixels of S_f, around which a line is drawn.
        caption: text below the image.
        classes: whether `overlay` holds classes rather than a comparison.
    """

    title: str
    image: Image
    overlay: UInt8[np.ndarray, "y x"] | None = None
    outline: Pixels | None = None
    caption: str = ""
    classes: bool = False


@dataclass(frozen=True)
class PanelRow:
    """A row of panels that show the same part of the same slice.

    Attributes:
        label: text to the left of the row.
        panels: panels of the row, from left to right; also charts.
        window: rows and columns of the images to show.
        peak: magnitude shown white; the same in the whole row, so that the images can be compared.
    """

    label: str
    panels: Sequence[Panel | Intervals]
    window: Window
    peak: float


def compare_bound(bound: Pixels, reference: Pixels | None, is_upper: bool) -> UInt8[np.ndarray, "y x"]:
    """Label each pixel by how a bound relates to the reference S_f, as the colours of the paper's Fig. 3 do.

    Args:
        bound: S_low or S_up.
        reference: S_f; `None` if there is none, then all of the bound is labelled `AGREES`.
        is_upper: whether `bound` is S_up.

    Returns:
        0, `AGREES`, `DEVIATES` or `VIOLATES`.
    """
    if reference is None:
        return np.where(bound, AGREES, 0).astype(np.uint8)
    extra, missing = (DEVIATES, VIOLATES) if is_upper else (VIOLATES, DEVIATES)
    return np.select([bound & reference, bound, reference], [AGREES, extra, missing], 0).astype(np.uint8)


def joint_window(masks: Iterable[Pixels], min_size: int = 30, margin: int = 4) -> Window:
    """Return the smallest square window about all masks, so that a cartilage of a few pixels can be seen.

    Args:
        masks: masks of one shape, at least one; if all are empty, the window is the middle of the image.
        min_size: shortest side in pixels.
        margin: pixels kept free around the masks.

    Returns:
        Slices of rows and columns, inside the image. Square where the image is large enough.
    """
    union = np.logical_or.reduce(list(masks))
    if not union.any():
        union[tuple(slice(size // 2, size // 2 + 1) for size in union.shape)] = True
    extents = [np.flatnonzero(union.any(axis=1 - axis)) for axis in (0, 1)]
    side = max(min_size, *(int(np.ptp(extent)) + 1 + 2 * margin for extent in extents))
    window = []
    for extent, size in zip(extents, union.shape, strict=True):
        length = min(side, size)
        start = int(np.clip((extent[0] + extent[-1] + 1 - length) // 2, 0, size - length))
        window.append(slice(start, start + length))
    return window[0], window[1]


@dataclass(frozen=True)
class BoundPanels:
    """What there is to see of one class in one slice. All arrays `(y, x)`, images are magnitudes in one unit.

    Attributes:
        zero_filled: A^H y.
        lower_image: lower reconstruction, if there is one.
        lower: S_low.
        upper_image: upper reconstruction, if there is one.
        upper: S_up.
        fully_sampled: the fully sampled image, if known.
        reference: S_f, its segmentation.
    """

    zero_filled: Image
    lower_image: Image | None = None
    lower: Pixels | None = None
    upper_image: Image | None = None
    upper: Pixels | None = None
    fully_sampled: Image | None = None
    reference: Pixels | None = None

    @property
    def masks(self) -> list[Pixels]:
        """All segmentations there are."""
        return [mask for mask in (self.lower, self.upper, self.reference) if mask is not None]

    @property
    def share_caption(self) -> str:
        """Uncertain share of the upper bound as text, such as "12% of upper"; empty where there is none."""
        if self.lower is None or self.upper is None or not self.upper.any():
            return ""
        return f"{uncertain_share(self.lower.sum(), self.upper.sum()):.0%} of upper"


def bound_row(view: BoundPanels, label: str, window: Window, captions: Mapping[str, str] | None = None) -> PanelRow:
    """Make a row of a figure like the paper's Fig. 3: fully sampled, zero-filled, lower, upper, boundary.

    Args:
        view: arrays to show; panels of those that are missing are left out.
        label: text to the left of the row.
        window: part of the slice to show, for example from `joint_window`.
        captions: text below the panels of "reference", "lower", "upper" and "boundary", such as volumes.
    """
    captions = captions or {}
    images = (view.fully_sampled, view.upper_image, view.lower_image, view.zero_filled)
    brightest = next(image for image in images if image is not None)
    panels = []
    if view.fully_sampled is not None:
        caption = captions.get("reference", "")
        panels.append(Panel("fully sampled", view.fully_sampled, outline=view.reference, caption=caption))
    panels.append(Panel("zero-filled", view.zero_filled))
    for name, image, mask in (("lower", view.lower_image, view.lower), ("upper", view.upper_image, view.upper)):
        if image is not None and mask is not None:
            overlay = compare_bound(mask, view.reference, is_upper=name == "upper")
            panels.append(Panel(f"{name} reconstruction", image))
            panels.append(Panel(f"{name} bound", image, overlay, caption=captions.get(name, "")))
    if view.lower is not None and view.upper is not None:
        overlay = np.where(view.upper & ~view.lower, UNCERTAIN, 0).astype(np.uint8)
        caption = captions.get("boundary", "")
        panels.append(Panel("uncertainty boundary", brightest, overlay, view.reference, caption=caption))
    peak = float(np.quantile(brightest[window], 0.995))
    return PanelRow(label, panels, window, peak or 1.0)


def draw_rows(
    rows: Sequence[PanelRow],
    title: str = "",
    class_names: Sequence[str] = (),
    panel_inches: float = 1.45,
    outline_name: str = "segmentation of the fully sampled image",
) -> "Figure":
    """Draw rows of panels; nothing of pyplot's global state is touched.

    Args:
        rows: rows from top to bottom; those with fewer panels are filled up with nothing.
        title: text over the figure.
        class_names: names of the classes, for the legend of panels that show classes.
        panel_inches: side of a panel in inches.
        outline_name: name of the outlines, for the legend.

    Returns:
        A matplotlib figure; `figure.savefig(path)` writes it.

    Raises:
        ValueError: there is no row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("`rows` must hold at least one row, got none.")
    n_columns = max(len(row.panels) for row in rows)
    row_inches, head_inches = panel_inches + 0.22, 0.95 if title else 0.7
    width, height = n_columns * panel_inches + 1.1, len(rows) * row_inches + head_inches
    width = max(width, 5.5)
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows),
        n_columns,
        squeeze=False,
        gridspec_kw={
            "left": 1.0 / width,
            "right": 1 - 0.05 / width,
            "top": 1 - (head_inches - 0.1) / height,
            "bottom": 0.2 / height,
            "wspace": 0.04,
            "hspace": 0.22 / panel_inches,
        },
    )
    used = set()
    for number, row in enumerate(rows):
        for column, axes in enumerate(grid[number]):
            axes.set_axis_off()
            if column < len(row.panels):
                used |= _draw(axes, row.panels[column], row, with_title=number == 0)
        first = grid[number][0]
        first.text(-0.06, 0.5, row.label, transform=first.transAxes, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.5, y=1 - 0.08 / height, va="top")
    handles = _legend_handles(rows, used, class_names, outline_name)
    place = 0.5, 1 - (0.3 if title else 0.05) / height
    for n_columns in range(min(len(handles), 5), 0, -1):
        legend = figure.legend(
            handles=handles, loc="upper center", bbox_to_anchor=place, ncol=n_columns, fontsize=7.5, frameon=False
        )
        if legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return figure


def _legend_handles(
    rows: Sequence[PanelRow], used: set[int], class_names: Sequence[str], outline_name: str
) -> list[Any]:
    """Entries of the legend for what occurs in the rows."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panels = [panel for row in rows for panel in row.panels if isinstance(panel, Panel)]
    if used & {AGREES, DEVIATES, VIOLATES}:
        used = used | {AGREES, DEVIATES, VIOLATES}  # that nothing is violated is worth knowing, too
    handles: list[Any] = [Patch(color=colour, label=text) for key, (colour, text) in COLOURS.items() if key in used]
    if any(panel.outline is not None for panel in panels):
        handles.append(Line2D([], [], color=_OUTLINE, label=outline_name))
    handles += interval_legend([panel for row in rows for panel in row.panels if isinstance(panel, Intervals)])
    if any(panel.classes for panel in panels):
        handles += [Patch(color=class_colour(k), label=name) for k, name in enumerate(class_names, start=1)]
    return handles


def _draw(axes: Any, panel: Panel | Intervals, row: PanelRow, with_title: bool) -> set[int]:
    """Draw a panel or a chart; returns the comparison labels that occur in it."""
    if with_title:
        axes.set_title(panel.title, fontsize=8, pad=3)
    if isinstance(panel, Intervals):
        draw_intervals(axes, panel)
        return set()
    return _draw_panel(axes, panel, row)


def _draw_panel(axes: Any, panel: Panel, row: PanelRow) -> set[int]:
    rows, columns = row.window
    extent = (columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    axes.imshow(panel.image[row.window], cmap="gray", vmin=0, vmax=row.peak, extent=extent, interpolation="nearest")
    used: set[int] = set()
    if panel.outline is not None and panel.outline.any():
        edges = pixel_edges(panel.outline)
        axes.plot(edges[0], edges[1], color=_OUTLINE, linewidth=0.7, solid_capstyle="butt")
    if panel.overlay is not None:
        labels = panel.overlay[row.window]
        colours = np.zeros((*labels.shape, 4))
        for key in np.unique(labels[labels > 0]).tolist():
            colours[labels == key] = (*class_colour(key), 0.6) if panel.classes else (*COLOURS[key][0], OPACITY[key])
            used |= set() if panel.classes else {key}
        axes.imshow(colours, extent=extent, interpolation="nearest", zorder=3)  # over the outline
        if VIOLATES in used:
            y, x = np.nonzero(labels == VIOLATES)
            size = 0.6 * 72 * axes.get_window_extent().width / axes.figure.dpi / labels.shape[1]
            axes.plot(
                x + columns.start, y + rows.start, "x", color="white", markersize=size, markeredgewidth=0.5, zorder=4
            )
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    if panel.caption:
        axes.text(0.5, -0.02, panel.caption, transform=axes.transAxes, ha="center", va="top", fontsize=7)
    return used


def pixel_edges(mask: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Return the line segments between pixels in and out of a mask, as x and y with NaN between segments."""
    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded[1:] != padded[:-1])
    horizontal = np.stack([x - 1.5, x - 0.5, np.full(len(x), np.nan)], 1), np.stack([y - 0.5] * 3, 1)
    y, x = np.nonzero(padded[:, 1:] != padded[:, :-1])
    vertical = np.stack([x - 0.5] * 3, 1), np.stack([y - 1.5, y - 0.5, np.full(len(y), np.nan)], 1)
    xs, ys = (
        np.concatenate([first.ravel(), second.ravel()]) for first, second in zip(horizontal, vertical, strict=True)
    )
    return xs, ys
