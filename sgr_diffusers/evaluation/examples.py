"""Draw the stored images of example slices as figures in the manner of the paper's Figs. 3 and 4."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from ..bounds import extreme_samples, volume_mm3
from ..figures.bounds import UNCERTAIN, BoundPanels, Panel, PanelRow, bound_row, draw_rows, joint_window
from .load import EvaluationResults, labels_of, magnitude_of
from .plan import Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["boundaries_figure", "bounds_figure"]


@dataclass(frozen=True)
class _Example:
    """A class in a slice, with the bounds of each (acceleration, method)."""

    scan_id: str
    slice: int
    label: int
    views: dict[tuple[float, str], BoundPanels]

    @property
    def masks(self) -> list[Bool[np.ndarray, "y x"]]:
        return [mask for view in self.views.values() for mask in view.masks]


def _examples(results: EvaluationResults) -> list[_Example]:
    """Choose for each example slice the largest class that no other example shows yet."""
    examples: list[_Example] = []
    for scan_id, index in results.config["examples"]:
        row = results.rows.get(Unit("reference", scan_id, index))
        if row is None or row["target_magnitude"] is None:
            continue
        labels = labels_of(row, row["fully_sampled"])
        areas = np.bincount(labels.ravel(), minlength=len(results.class_names) + 1)[1:]
        fresh = [k for k in np.argsort(-areas, kind="stable") if areas[k] and k + 1 not in {e.label for e in examples}]
        label = int((fresh or [int(areas.argmax())])[0]) + 1
        views = _views(results, row, label)
        if views:
            examples.append(_Example(scan_id, index, label, views))
    return sorted(examples, key=lambda example: example.label)


def _views(results: EvaluationResults, row: dict[str, Any], label: int) -> dict[tuple[float, str], BoundPanels]:
    scan_id, index = row["scan_id"], row["slice"]
    target = magnitude_of(row, row["target_magnitude"])
    reference = labels_of(row, row["fully_sampled"]) == label
    views = {}
    for unit, guided in results.of_kind("SGR"):
        if (unit.scan_id, unit.slice) != (scan_id, index) or unit.strength is not None:
            continue
        zero_filled = magnitude_of(row, guided["zero_filled"])
        by_target = {image["target"]: image for image in guided["images"] if image["class_number"] == label}
        views[unit.acceleration, "SGR"] = _view(
            row, label, zero_filled, by_target["lower"], by_target["upper"], target, reference
        )
        samples = results.samples(scan_id, index, unit.acceleration)[: results.rr_samples]
        if len(samples) == results.rr_samples:
            masks = np.stack([labels_of(row, sample["labels"]) == label for sample in samples])
            lowest, highest = (samples[number] for number in extreme_samples(volume_mm3(masks)))
            views[unit.acceleration, "RR"] = _view(row, label, zero_filled, lowest, highest, target, reference)
    return views


def _view(
    row: dict[str, Any],
    label: int,
    zero_filled: np.ndarray,
    lower: dict[str, Any],
    upper: dict[str, Any],
    target: np.ndarray,
    reference: np.ndarray,
) -> BoundPanels:
    return BoundPanels(
        zero_filled=zero_filled,
        lower_image=magnitude_of(row, lower["magnitude"]),
        lower=labels_of(row, lower["labels"]) == label,
        upper_image=magnitude_of(row, upper["magnitude"]),
        upper=labels_of(row, upper["labels"]) == label,
        fully_sampled=target,
        reference=reference,
    )


def _name(results: EvaluationResults, example: _Example) -> str:
    return results.class_names[example.label - 1].replace("_", " ").replace(" cartilage", "\ncartilage")


def bounds_figure(results: EvaluationResults) -> "Figure | None":
    """Draw the paper's Fig. 3: bounds by SGR and by RR at the highest acceleration; `None` without an example."""
    rows = []
    for example in _examples(results):
        highest = max(acceleration for acceleration, _ in example.views)
        views = [view for key, view in example.views.items() if key[0] == highest]
        window = joint_window([mask for view in views for mask in view.masks])
        for method in ("SGR", "RR"):
            view = example.views.get((highest, method))
            if view is not None:
                names = ("lower", "upper", "reference")  # as `masks` has them
                captions = {name: f"{int(mask.sum())} voxels" for name, mask in zip(names, view.masks, strict=True)}
                captions["boundary"] = view.share_caption
                label = f"{_name(results, example)}\n{method}, {highest:g}x"
                rows.append(bound_row(view, label, window, captions))
    return draw_rows(rows, "Bounds by guidance (SGR) and by repeated reconstruction (RR)") if rows else None


def boundaries_figure(results: EvaluationResults) -> "Figure | None":
    """Draw the paper's Fig. 4: the uncertainty boundary against acceleration; `None` without an example."""
    rows = []
    for example in _examples(results):
        window = joint_window(example.masks)
        for method in ("SGR", "RR"):
            panels = []
            for acceleration in sorted({key[0] for key in example.views}):
                view = example.views.get((acceleration, method))
                if view is None or view.lower is None or view.upper is None or view.upper_image is None:
                    continue
                boundary = np.where(view.upper & ~view.lower, UNCERTAIN, 0).astype(np.uint8)
                panels.append(
                    Panel(f"{acceleration:g}x", view.upper_image, boundary, view.reference, view.share_caption)
                )
            if panels:
                peak = max(float(np.quantile(panel.image[window], 0.995)) for panel in panels) or 1.0
                rows.append(PanelRow(f"{_name(results, example)}\n{method}", panels, window, peak))
    return draw_rows(rows, "Uncertainty boundary against acceleration", panel_inches=1.6) if rows else None
