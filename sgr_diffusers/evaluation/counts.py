"""Count the voxels of stored label maps, in a table with one row for each slice, class and pair of bounds.

All scores of segmentations are quotients of sums of these counts. Columns:

=============== =====================================================================================================
scan_id, slice  scan and slice of the label maps
part            "main" for the slices of the protocol, "finding" for further ones that show a rare finding
acceleration    acceleration of the stored mask
method          "SGR", "RR", "RR_equal_budget" (as many samples as SGR's network evaluations pay for), or "RR_curve"
strength        strength b used, 0 for RR
n_samples       number of samples of RR; 0 for SGR, and for an equal budget, which differs from slice to slice
subset          number of the set among several disjoint ones of that many samples
segmenter       "guiding", or "second": the model that guidance never saw
reference       "fully_sampled" (by the same segmenter) or "manual"
label           label number of the class
lower, upper    voxels of S_low and S_up
lower_in        voxels of S_low that are in the reference
upper_in        voxels of S_up that are in the reference
truth           voxels of the reference
finding         voxels that a rare finding took away from the class
finding_lower   of these, voxels in S_low: the lower bound denies the finding there
=============== =====================================================================================================
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Integer, UInt8

from ..bounds import extreme_samples
from ..calibration.scores import N_SAMPLES
from .load import EvaluationResults, labels_of
from .network_meter import BACKWARD_COST
from .plan import Unit

__all__ = ["CURVE_SIZES", "complete_slices", "count_bounds", "count_point_estimates", "equal_budget_samples"]

CURVE_SIZES = (2, 4, 8, 16, 32, 64)
Slice = tuple[str, int]


@dataclass(frozen=True)
class _Truth:
    """References of a slice: the label map of each (segmenter, reference), and the voxels that a finding removed."""

    maps: dict[tuple[str, str], UInt8[np.ndarray, "y x"]]
    finding: UInt8[np.ndarray, "y x"] | None  # label before the finding, 0 elsewhere


def count_bounds(results: EvaluationResults) -> pd.DataFrame:
    """Count all stored bounds; see the head of this module for the columns."""
    further = {(scan_id, n) for scan_id, numbers in results.config["finding_slices"].items() for n in numbers}
    main = {(scan_id, n) for scan_id, numbers in results.config["slices"].items() for n in numbers}
    samples = _samples_by_slice(results)
    guided_units: dict[Slice, list[tuple[Unit, dict[str, Any]]]] = defaultdict(list)
    for unit, row in results.of_kind("SGR"):
        guided_units[unit.scan_id, unit.slice].append((unit, row))
    budgets = equal_budget_samples(results)
    rows: list[dict[str, Any]] = []
    for unit, row in results.of_kind("reference"):
        key = (unit.scan_id, unit.slice)
        truth = _truth(row, results.config["identity"]["settings"].get("references", "both"))
        where = {"scan_id": unit.scan_id, "slice": unit.slice, "part": "finding" if key in further - main else "main"}
        for guided, guided_row in guided_units[key]:
            head = {**where, "acceleration": guided.acceleration, "method": "SGR", "n_samples": 0, "subset": 0}
            head["strength"] = guided_row["strength_used"]
            rows += _count_guided(head, guided_row, truth, len(results.class_names))
        for acceleration, images in samples[key].items():
            head = {**where, "acceleration": acceleration, "strength": 0.0}
            counts = _SampleCounts(row, images, truth, len(results.class_names))
            rows += _count_unguided(head, counts, results.rr_samples, budgets.get((*key, acceleration)))
    return pd.DataFrame(rows)


def count_point_estimates(results: EvaluationResults) -> pd.DataFrame:
    """Count the voxels of the first `N_SAMPLES` unguided samples of each slice, where there are so many.

    Returns:
        One row for each `scan_id`, `slice`, `acceleration` and `label`, with the mean over the samples as `point`.
    """
    labels = range(1, len(results.class_names) + 1)
    shapes = {(unit.scan_id, unit.slice): row for unit, row in results.of_kind("reference")}
    rows = []
    for key, by_acceleration in _samples_by_slice(results).items():
        for acceleration, images in by_acceleration.items():
            if key in shapes and len(images) >= N_SAMPLES:
                maps = [labels_of(shapes[key], image["labels"]) for image in images[:N_SAMPLES]]
                points = np.mean([_histogram(one, len(labels)) for one in maps], axis=0)
                rows += [(*key, acceleration, label, points[label]) for label in labels]
    return pd.DataFrame(rows, columns=["scan_id", "slice", "acceleration", "label", "point"])


def _samples_by_slice(results: EvaluationResults) -> dict[Slice, dict[float, list[dict[str, Any]]]]:
    blocks: dict[tuple[Slice, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for unit, row in results.of_kind("RR"):
        blocks[(unit.scan_id, unit.slice), unit.acceleration] |= {image["sample"]: image for image in row["images"]}
    samples: dict[Slice, dict[float, list[dict[str, Any]]]] = defaultdict(dict)
    for (key, acceleration), images in blocks.items():
        ordered = [images[k] for k in sorted(images)]
        if [image["sample"] for image in ordered] == list(range(len(ordered))):
            samples[key][acceleration] = ordered
    return samples


def _truth(row: dict[str, Any], references: str) -> _Truth:
    maps = {("guiding", "fully_sampled"): labels_of(row, row["fully_sampled"])}
    has_second = row["second_fully_sampled"] is not None
    if has_second:
        maps["second", "fully_sampled"] = labels_of(row, row["second_fully_sampled"])
    finding = None
    if row["manual"] is not None:
        manual = labels_of(row, row["manual"])
        maps["guiding", "manual"] = manual
        if has_second:
            maps["second", "manual"] = manual
        if row["without_finding"] is not None:
            without = labels_of(row, row["without_finding"])
            finding = np.where(without != manual, without, 0)
    wanted = [key for key in maps if references in ("both", key[1])]
    return _Truth({key: maps[key] for key in wanted}, finding)


def _count_pair(
    lower: Bool[np.ndarray, "y x"], upper: Bool[np.ndarray, "y x"], truth: Bool[np.ndarray, "y x"]
) -> dict[str, int]:
    return {
        "lower": int(lower.sum()),
        "upper": int(upper.sum()),
        "lower_in": int((lower & truth).sum()),
        "upper_in": int((upper & truth).sum()),
        "truth": int(truth.sum()),
    }


def _count_guided(
    head: dict[str, Any], row: dict[str, Any], truth: _Truth, n_classes: int
) -> Iterator[dict[str, Any]]:
    images = {(image["class_number"], image["target"]): image for image in row["images"]}
    for (segmenter, reference), truth_map in truth.maps.items():
        column = "labels" if segmenter == "guiding" else "second_labels"
        for label in range(1, n_classes + 1):
            lower, upper = (labels_of(row, images[label, target][column]) == label for target in ("lower", "upper"))
            finding = np.zeros(lower.shape, bool) if truth.finding is None else truth.finding == label
            yield {
                **head,
                "segmenter": segmenter,
                "reference": reference,
                "label": label,
                **_count_pair(lower, upper, truth_map == label),
                "finding": int(finding.sum()),
                "finding_lower": int((finding & lower).sum()),
            }


class _SampleCounts:
    """Counts of each unguided sample, from which those of any subset's bounds are picked."""

    def __init__(self, row: dict[str, Any], images: Sequence[dict[str, Any]], truth: _Truth, n_classes: int) -> None:
        self.n_classes, self.keys = n_classes, list(truth.maps)
        maps = {"guiding": [labels_of(row, image["labels"]) for image in images]}
        if any(segmenter == "second" for segmenter, _ in truth.maps):
            maps["second"] = [labels_of(row, image["second_labels"]) for image in images]
        self.volume = {
            name: np.stack([_histogram(labels, n_classes) for labels in samples]) for name, samples in maps.items()
        }
        self.inside, self.truth = {}, {}
        for key, truth_map in truth.maps.items():
            self.truth[key] = _histogram(truth_map, n_classes)
            self.inside[key] = np.stack(
                [_histogram(np.where(labels == truth_map, labels, 0), n_classes) for labels in maps[key[0]]]
            )
        self.finding = np.zeros(n_classes + 1, np.int64)
        self.in_finding = {name: np.zeros_like(samples) for name, samples in self.volume.items()}
        if truth.finding is not None:
            self.finding = _histogram(truth.finding, n_classes)
            for name, samples in maps.items():
                overlap = [_histogram(np.where(labels == truth.finding, labels, 0), n_classes) for labels in samples]
                self.in_finding[name] = np.stack(overlap)

    def __len__(self) -> int:
        return len(self.volume["guiding"])

    def bounds(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Return the counts of the bounds that the samples from `start` to `stop` make.

        The guiding model chooses the samples; a second one only measures what was chosen.
        """
        volumes = self.volume["guiding"][start:stop]
        lowest, highest = (start + number for number in extreme_samples(volumes, axis=0))
        for key in self.keys:
            segmenter, reference = key
            volume, inside = self.volume[segmenter], self.inside[key]
            for label in range(1, self.n_classes + 1):
                low, high = lowest[label], highest[label]
                yield {
                    "segmenter": segmenter,
                    "reference": reference,
                    "label": label,
                    "lower": int(volume[low, label]),
                    "upper": int(volume[high, label]),
                    "lower_in": int(inside[low, label]),
                    "upper_in": int(inside[high, label]),
                    "truth": int(self.truth[key][label]),
                    "finding": int(self.finding[label]),
                    "finding_lower": int(self.in_finding[segmenter][low, label]),
                }


def _histogram(labels: UInt8[np.ndarray, "y x"], n_classes: int) -> Integer[np.ndarray, " class"]:
    return np.bincount(labels.ravel(), minlength=n_classes + 1)


def _count_unguided(
    head: dict[str, Any], counts: _SampleCounts, rr_samples: int, budget: int | None
) -> Iterator[dict[str, Any]]:
    sets = []
    if len(counts) >= rr_samples:
        sets.append(("RR", rr_samples, 0, 0))
        # strength 0 guides nothing: both bounds are the first sample, whose noise SGR shares
        sets.append(("SGR", 1, 0, 0))
    if budget is not None and 2 <= budget <= len(counts):
        sets.append(("RR_equal_budget", budget, 0, 0))
    if len(counts) > rr_samples:
        for size in CURVE_SIZES:
            sets += [("RR_curve", size, k, k * size) for k in range(len(counts) // size)]
    for method, size, subset, start in sets:
        more = {"method": method, "n_samples": size if method in ("RR", "RR_curve") else 0, "subset": subset}
        for counted in counts.bounds(start, start + size):
            yield {**head, **more, **counted}


def equal_budget_samples(results: EvaluationResults) -> dict[tuple[str, int, float], int]:
    """Count the unguided samples that cost as much as SGR did, for each (scan, slice, acceleration).

    Cost is counted in forward passes of the prior on one image, from what was really run; a backward pass counts as
    `BACKWARD_COST` of them. Rounded up: in doubt RR has one sample more.
    """
    per_sample = {}
    for unit, row in results.of_kind("RR"):
        per_sample[unit.scan_id, unit.slice, unit.acceleration] = row["n_forward"] / unit.n_samples
    n_samples = {}
    for unit, row in results.of_kind("SGR"):
        key = (unit.scan_id, unit.slice, unit.acceleration)
        if unit.strength is None and per_sample.get(key):
            cost = row["n_forward"] + BACKWARD_COST * row["n_backward"]
            n_samples[key] = int(np.ceil(cost / per_sample[key]))
    return n_samples


def complete_slices(results: EvaluationResults) -> dict[float, set[Slice]]:
    """Find, for each acceleration, the slices for which everything that is compared is there."""
    done: dict[float, dict[str, set[Slice]]] = defaultdict(lambda: defaultdict(set))
    known = {(unit.scan_id, unit.slice) for unit, _ in results.of_kind("reference")}
    for unit, _ in results.of_kind("SGR"):
        if unit.strength is None:
            done[unit.acceleration]["SGR"].add((unit.scan_id, unit.slice))
    for key, by_acceleration in _samples_by_slice(results).items():
        for acceleration, images in by_acceleration.items():
            if len(images) >= results.rr_samples:
                done[acceleration]["RR"].add(key)
    return {
        acceleration: set.intersection(known, *by_method.values()) for acceleration, by_method in sorted(done.items())
    }
