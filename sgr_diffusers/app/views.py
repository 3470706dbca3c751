"""Renders results as HTML with pictures in it, which needs no script and nothing from elsewhere."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ..bounds import uncertain_share, volume_mm3
from ..figures.bounds import (
    AGREES,
    COLOURS,
    DEVIATES,
    OPACITY,
    UNCERTAIN,
    VIOLATES,
    Window,
    compare_bound,
    joint_window,
    pixel_edges,
)
from .runs import CaseResult
from .uploads import CaseInfo

__all__ = [
    "case_summary",
    "example_view",
    "headline_view",
    "interval_plot",
    "message",
    "preview_view",
    "progress_view",
    "result_views",
    "tissue_label",
]

_TEXTS = {
    AGREES: "Agreement: in the bound and in the fully sampled image",
    DEVIATES: "Room: left open by the measurement",
    VIOLATES: "Violation (crosses): the bound is wrong here",
    UNCERTAIN: "Uncertainty boundary: in the upper bound, not in the lower",
}
_CROSS = np.eye(7, dtype=bool) | np.eye(7, dtype=bool)[::-1]  # over each pixel in which a bound is violated


@dataclass(frozen=True)
class _Frame:
    """What all pictures of a slice share: the part shown, the grey scale, the shape of a pixel, the directions."""

    window: Window
    peak: float
    pixel_mm: tuple[float, float]
    directions: tuple[str, str] | None  # in which rows and columns run, such as ("AP", "LR")

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def style(self) -> str:
        n_y, n_x = self.shape
        return f"aspect-ratio:{n_x * self.pixel_mm[1]:.4f}/{n_y * self.pixel_mm[0]:.4f}"


def tissue_label(name: str) -> str:
    """Class name for people: "patellar_cartilage" -> "patellar cartilage"."""
    return name.replace("_", " ")


def message(text: str, kind: str = "note") -> str:
    """A line of text; `kind` is "note", "done" or "error"."""
    return f'<p class="sgr-message sgr-{kind}" role="{"alert" if kind == "error" else "status"}">{escape(text)}</p>'


def case_summary(case: CaseInfo) -> str:
    """What was found in a file, in a sentence."""
    voxels = "its voxel size is not stated"
    if case.voxel_size_mm is not None:
        voxels = "voxels of " + " x ".join(f"{edge:.3g}" for edge in case.voxel_size_mm) + " mm"
    slices = f"{case.n_slices} slice{'s' if case.n_slices > 1 else ''}"
    coils = f"{case.n_coils} coil{'s' if case.n_coils > 1 else ''}"
    sampled = "with the fully sampled image" if case.is_fully_sampled else "without a fully sampled image"
    text = f"{case.name}: {slices} of {case.size[0]} x {case.size[1]} pixels, {coils}, {voxels}, {sampled}."
    warnings = "".join(message(f"Beware: {suspicion}", "error") for suspicion in case.suspicions)
    return message(text) + warnings


def example_view() -> str:
    """Show a finished result, of the synthetic knee at 8x, before the first run."""
    data = base64.b64encode(Path(__file__).with_name("example.png").read_bytes()).decode()
    text = (
        "Two tissues of a synthetic knee measured 8 times faster, each with the undersampled image, the images at the "
        "lower and the upper end of a 90 % interval, what is left open, the fully sampled image, and the intervals at "
        "4x, 8x and 16x."
    )
    return (
        "<h2>What a result looks like</h2>"
        "<p>At this speed the measurement leaves much of the tibial cartilage open, and little of the meniscus. Press "
        "Run to see the bounds of the case chosen above.</p>"
        f'<img class="sgr-example" alt="{text}" src="data:image/png;base64,{data}">'
    )


def progress_view(done: int, total: int, seconds_left: float) -> str:
    """A line for the progress bar."""
    left = f"{seconds_left:.0f} s" if seconds_left < 100 else f"{seconds_left / 60:.0f} min"
    return f"Step {done} of {total}, about {left} left"


def preview_view(
    zero_filled: Float[np.ndarray, "y x"],
    fully_sampled: Float[np.ndarray, "y x"] | None,
    voxel_size_mm: Sequence[float],
    orientation: Sequence[str] | None,
    sampling: str,
) -> str:
    """The slice before the run: what the scanner measured at this acceleration, and the full measurement if known."""
    whole = (slice(0, zero_filled.shape[0]), slice(0, zero_filled.shape[1]))
    best = zero_filled if fully_sampled is None else fully_sampled
    frame = _frame(whole, best, voxel_size_mm, orientation)
    panels = [_panel(f"Undersampled, {sampling}", zero_filled, frame, caption="image of the measured samples alone")]
    if fully_sampled is not None:
        panels.insert(0, _panel("Fully sampled", fully_sampled, frame, caption="for comparison only"))
    return f'<div class="sgr-panels sgr-preview">{"".join(panels)}</div>'


def headline_view(result: CaseResult) -> str:
    """What the result is of, and how well it fits."""
    request = result.request
    n_slices = len(result.scan.slice_indices)
    slices = f"{n_slices} slices" if n_slices > 1 else f"slice {request.measurement.slice_number}"
    where = f"{request.measurement.case.name}, {slices}, {result.scan.label}"
    steps = f"{request.n_steps} {'fast ' if request.fast else ''}steps"
    how = f"{steps}, strength of the search {request.strength:g}, random seed {request.seed}, {result.seconds:.0f} s"
    residual, noise = 100 * result.bounds.data_residual.max(), 100 * result.bounds.noise_residual
    fit = (
        f"The images differ from the measured data by at most {residual:.2g} %, where noise alone makes {noise:.2g} %."
    )
    return f"<h2>Bounds of {escape(where)}</h2>{message(f'{how}. {fit}')}"


def result_views(result: CaseResult, class_name: str, zoom: bool = True) -> tuple[str, str]:
    """Panels of one tissue with their legend: fully sampled (or plain), lower, upper, boundary; and the cross-fade.

    Args:
        result: result of a run.
        class_name: name of one of its tissues.
        zoom: whether to show the surroundings of the tissue rather than the whole slice.
    """
    bounds, scan = result.bounds, result.scan
    place = bounds.classes.index(class_name)
    shown = result.shown
    lower, upper = bounds.masks[shown, place]
    lower_image, upper_image = bounds.magnitudes[shown, place]
    reference = None
    if result.plain is not None:
        base, base_title = result.plain.magnitudes[shown, 0, 0], "Plain reconstruction"
        base_mask = result.plain.masks[shown, place, 0]
    else:
        assert bounds.fully_sampled is not None and bounds.reference_masks is not None  # else there is a plain one
        base, base_title = bounds.fully_sampled[shown], "Fully sampled"
        reference = base_mask = bounds.reference_masks[shown, place]
    whole = (slice(0, base.shape[0]), slice(0, base.shape[1]))
    window = joint_window([lower, upper, base_mask], min_size=40, margin=6) if zoom else whole
    frame = _frame(window, base, scan.voxel_size_mm, scan.orientation)
    overlays = {
        "lower": compare_bound(lower, reference, is_upper=False),
        "upper": compare_bound(upper, reference, is_upper=True),
        "boundary": np.where(upper & ~lower, UNCERTAIN, 0).astype(np.uint8),
    }
    masks = {"lower": lower, "upper": upper, "base": base_mask}
    volumes = {key: float(volume_mm3(mask, scan.voxel_size_mm)) for key, mask in masks.items()}
    share = "the upper bound is empty"
    if upper.any():
        share = f"{uncertain_share(lower.sum(), upper.sum()):.0%} of the upper bound"
    tissue = tissue_label(class_name)
    panels = [
        _panel(base_title, base, frame, outline=base_mask, caption=_mm3(volumes["base"])),
        _panel("Lower bound", lower_image, frame, overlays["lower"], caption=_mm3(volumes["lower"])),
        _panel("Upper bound", upper_image, frame, overlays["upper"], caption=_mm3(volumes["upper"])),
        _panel("Uncertainty boundary", base, frame, overlays["boundary"], base_mask, share),
    ]
    keys = [AGREES, DEVIATES, VIOLATES, UNCERTAIN] if reference is not None else [AGREES, UNCERTAIN]
    outline = "fully sampled" if reference is not None else "plain"
    panels_view = (
        '<label class="sgr-toggle"><input type="checkbox" class="sgr-colours" checked> '
        "Show the segmentations in colour</label>"
        f'<div class="sgr-panels">{"".join(panels)}</div>{_legend(keys, outline, reference is not None)}'
    )
    fade = _crossfade({"lower": lower_image, "upper": upper_image}, overlays, volumes, frame, tissue)
    return panels_view, f"<h3>From lower to upper bound: {escape(tissue)}</h3>{fade}"


def interval_plot(rows: Sequence[Mapping[str, Any]], coverage: float | None = None, n_slices: int = 1) -> str:
    """The intervals of all tissues on one axis of mm^3, each with its numbers beside it.

    Args:
        rows: rows of volumes, as `CaseResult.rows` gives them.
        coverage: coverage of calibrated intervals; `None` for plain bounds.
        n_slices: number of slices that the volumes are of.
    """
    known = "plain_mm3" if "plain_mm3" in rows[0] else "fully_sampled_mm3"
    name = "plain reconstruction" if known == "plain_mm3" else "fully sampled"
    ends = ("lower_mm3", "upper_mm3") if coverage is None else ("interval_low_mm3", "interval_high_mm3")
    top = _round_up(max(max(row["upper_mm3"], row["lower_mm3"], row[ends[1]], row[known]) for row in rows) or 1.0)
    lines, between = [], '</span><span class="sgr-known">'
    for row in rows:
        low, high = sorted((row[ends[0]], row[ends[1]]))
        is_inside = low <= row[known] <= high
        interval = f"{_mm3(row[ends[0]])} to {_mm3(row[ends[1]])}" if high or row[known] else "not found"
        tick = "sgr-tick" if is_inside else "sgr-tick sgr-outside"
        marks = [f'<span class="{tick}" style="left:{100 * row[known] / top:.2f}%"></span>']
        notes = [f"{name}: {_mm3(row[known])}{'' if is_inside else ', outside'}"]
        if coverage is not None:
            marks += _marks(row, top)
            notes = [f"best estimate: {_mm3(row['point_mm3'])}", *notes, _ATTAINED[row["attained"]]]
        bar = f"left:{100 * low / top:.2f}%;width:{100 * (high - low) / top:.2f}%"
        lines.append(
            f'<div class="sgr-row"><span class="sgr-name">{escape(tissue_label(row["class"]))}</span>'
            f'<span class="sgr-track" aria-hidden="true"><span class="sgr-bar" style="{bar}"></span>'
            f'{"".join(marks)}</span><span class="sgr-numbers"><b>{interval}</b> '
            f'<span class="sgr-known">{between.join(notes)}</span></span></div>'
        )
    scale = "".join(f"<span>{value:.0f}</span>" for value in (0, top / 2, top))
    where = "this slice" if n_slices == 1 else f"{n_slices} slices together"
    return (
        f'<h3>Volumes in {where}</h3><div class="sgr-plot">{"".join(lines)}'
        '<div class="sgr-row sgr-scale" aria-hidden="true"><span class="sgr-name">mm³</span>'
        f'<span class="sgr-track sgr-ticks">{scale}</span><span class="sgr-numbers"></span></div>'
        f"{_plot_legend(name, coverage)}</div>"
    )


_ATTAINED = {
    "both": "images reach both ends",
    "lower": "images reach the lower end only",
    "upper": "images reach the upper end only",
    "neither": "images reach neither end",
}


def _marks(row: Mapping[str, Any], top: float) -> list[str]:
    """Marks of a calibrated tissue: the images for both ends, filled where they get there, and the best estimate."""
    marks = []
    for target in ("lower", "upper"):
        is_attained = row["attained"] in ("both", target)
        kind = "sgr-dot" if is_attained else "sgr-dot sgr-short"
        marks.append(f'<span class="{kind}" style="left:{100 * row[f"{target}_mm3"] / top:.2f}%"></span>')
    return [*marks, f'<span class="sgr-diamond" style="left:{100 * row["point_mm3"] / top:.2f}%"></span>']


def _plot_legend(name: str, coverage: float | None) -> str:
    """Legend of the intervals, and what they mean."""
    entries = {"sgr-tick-swatch": name}
    if coverage is None:
        entries |= {"sgr-tick-swatch sgr-outside": f"{name}, outside the bounds"}
        entries = {"sgr-bar-swatch": "lower to upper bound", **entries}
        note = "Bounds are found by a search, with this model: the volume can lie outside of them."
    else:
        entries |= {
            "sgr-tick-swatch sgr-outside": f"{name}, outside the interval",
            "sgr-diamond": "best estimate: the image without guidance",
            "sgr-dot": "image at its end of the interval",
            "sgr-dot sgr-short": "image that does not reach its end of the interval",
        }
        entries = {"sgr-bar-swatch": f"{coverage:.0%} interval", **entries}
        note = (
            f"An interval holds the volume in at least {coverage:.0%} of scans like those that the model was "
            "calibrated on. It says nothing about other scans."
        )
    items = "".join(f'<span><i class="sgr-swatch {kind}"></i>{text}</span>' for kind, text in entries.items())
    return f'<p class="sgr-legend">{items}</p><p>{note}</p>'


def _mm3(volume: float) -> str:
    return f"{volume:.0f} mm³"


def _round_up(value: float) -> float:
    """The next number of the series 1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10, 12, ..."""
    magnitude = 10 ** np.floor(np.log10(value))
    steps = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
    return float(next(step * magnitude for step in steps if step * magnitude >= value))


def _frame(
    window: Window,
    image: Float[np.ndarray, "y x"],
    voxel_size_mm: Sequence[float] | None,
    orientation: Sequence[str] | None,
) -> _Frame:
    assert voxel_size_mm is not None  # the page asks for it where the file does not state it
    peak = float(np.quantile(image[window], 0.995)) or 1.0
    directions = None if orientation is None else (orientation[1], orientation[2])
    return _Frame(window, peak, (voxel_size_mm[1], voxel_size_mm[2]), directions)


def _panel(
    title: str,
    image: Float[np.ndarray, "y x"],
    frame: _Frame,
    overlay: UInt8[np.ndarray, "y x"] | None = None,
    outline: Bool[np.ndarray, "y x"] | None = None,
    caption: str = "",
) -> str:
    layers = [_grey(image, frame, f"{title}: {caption}" if caption else title)]
    layers += [] if outline is None else [_outlined(outline, frame)]  # below the colours, which are thin at places
    layers += [] if overlay is None else [_coloured(overlay, frame)]
    return (
        f'<figure><figcaption class="sgr-title">{escape(title)}</figcaption>'
        f'<div class="sgr-picture" style="{frame.style}">{"".join(layers)}{_edges(frame)}</div>'
        f'<figcaption class="sgr-caption">{escape(caption)}</figcaption></figure>'
    )


def _crossfade(
    images: Mapping[str, Float[np.ndarray, "y x"]],
    overlays: Mapping[str, UInt8[np.ndarray, "y x"]],
    volumes_mm3: Mapping[str, float],
    frame: _Frame,
    tissue: str,
) -> str:
    """Both reconstructions on top of each other; the slider sets how much of the upper one is seen, in the browser."""
    layers = [_grey(images[name], frame, f"{name} reconstruction", f"sgr-{name}") for name in ("lower", "upper")]
    layers += [_coloured(overlays[name], frame, f"sgr-{name}-colours") for name in ("lower", "upper")]
    ends = {name: f"<span>{name}<br>{_mm3(volumes_mm3[name])}</span>" for name in ("lower", "upper")}
    return (
        '<div class="sgr-fade" style="--mix:0">'
        f'<div class="sgr-picture" style="{frame.style}">{"".join(layers)}{_edges(frame)}</div>'
        f'<div class="sgr-slider">{ends["lower"]}<input type="range" min="0" max="100" value="0" aria-label="From the '
        f'lower to the upper reconstruction of {escape(tissue)}" oninput="this.closest(&quot;.sgr-fade&quot;)'
        f'.style.setProperty(&quot;--mix&quot;, this.value / 100)">{ends["upper"]}</div></div>'
    )


def _legend(keys: Sequence[int], outline: str, is_compared: bool) -> str:
    items = []
    for key in keys:
        colour = ",".join(str(round(255 * part)) for part in COLOURS[key][0])
        text = _TEXTS[key] if is_compared or key != AGREES else "In the bound"
        mark = "×" if key == VIOLATES else ""
        items.append(f'<span><i class="sgr-swatch" style="background:rgb({colour})">{mark}</i>{text}</span>')
    items.append(
        f'<span><i class="sgr-swatch sgr-line-swatch"></i>Outline: segmentation of the {outline} image</span>'
    )
    return f'<p class="sgr-legend">{"".join(items)}</p>'


def _grey(image: Float[np.ndarray, "y x"], frame: _Frame, text: str, kind: str = "") -> str:
    pixels = (np.clip(image[frame.window] / frame.peak, 0, 1) * 255).round().astype(np.uint8)
    return f'<img class="{kind}" alt="{escape(text)}" src="{_png(pixels)}">'


def _coloured(overlay: UInt8[np.ndarray, "y x"], frame: _Frame, kind: str = "") -> str:
    labels = overlay[frame.window]
    pixels = np.zeros((*labels.shape, 4), np.uint8)
    for key, (colour, _) in COLOURS.items():
        pixels[labels == key] = (*(round(255 * part) for part in colour), round(255 * OPACITY[key]))
    fine = pixels.repeat(_CROSS.shape[0], axis=0).repeat(_CROSS.shape[1], axis=1)
    fine[np.kron(labels == VIOLATES, _CROSS)] = 255
    return f'<img class="sgr-overlay {kind}" alt="" src="{_png(fine)}">'


def _outlined(mask: Bool[np.ndarray, "y x"], frame: _Frame) -> str:
    n_y, n_x = frame.shape
    x, y = (edges.reshape(-1, 3)[:, :2] + 0.5 for edges in pixel_edges(mask[frame.window]))
    lines = "".join(f"M{a:g} {b:g}L{c:g} {d:g}" for (a, c), (b, d) in zip(x, y, strict=True))
    return (
        f'<svg class="sgr-overlay" viewBox="0 0 {n_x} {n_y}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{lines}"/></svg>'
    )


def _edges(frame: _Frame) -> str:
    """Letters of the sides of the body, where the file says how the slice lies."""
    if frame.directions is None:
        return ""
    rows, columns = frame.directions
    letters = {"top": rows[0], "bottom": rows[-1], "left": columns[0], "right": columns[-1]}
    return "".join(
        f'<b class="sgr-edge sgr-{side}" aria-hidden="true">{letter}</b>' for side, letter in letters.items()
    )


def _png(pixels: UInt8[np.ndarray, "y x *colour"]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
