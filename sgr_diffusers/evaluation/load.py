"""Read a results folder: the rows of all units that are done, and the list of those that are not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from .identity import read_config
from .plan import EvaluationPlan, Unit, plan_units
from .store import DamagedShard, read_shard, unpack_labels, unpack_magnitude

__all__ = ["EvaluationResults", "load_results", "planned_units"]


@dataclass(frozen=True)
class EvaluationResults:
    """All that is stored of an evaluation.

    Attributes:
        config: content of `config.json`.
        rows: row of each unit that is done, as `store.SCHEMA` has it.
        missing: units of the plans that are not done.
        damaged: descriptions of what is wrong with shards that could not be read; their units count as missing.
    """

    config: dict[str, Any]
    rows: dict[Unit, dict[str, Any]]
    missing: list[Unit]
    damaged: list[str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the segmentation model, label 1 first."""
        return tuple(self.config["identity"]["classes"])

    @property
    def strength(self) -> float:
        """Strength b of the SGR that is compared with RR."""
        return float(self.config["identity"]["settings"]["guidance_strength"])

    @property
    def rr_samples(self) -> int:
        """Samples of the RR that is compared with SGR: those of the first plan."""
        return EvaluationPlan.from_json(self.config["plans"][0]).rr_samples

    def of_kind(self, kind: str) -> Iterator[tuple[Unit, dict[str, Any]]]:
        """Return the units of a kind that are done, and their rows."""
        return ((unit, row) for unit, row in self.rows.items() if unit.kind == kind)

    def reference(self, unit: Unit) -> dict[str, Any] | None:
        """Return the row of the reference of a unit's slice."""
        return self.rows.get(Unit("reference", unit.scan_id, unit.slice))

    def samples(self, scan_id: str, index: int, acceleration: float) -> list[dict[str, Any]]:
        """Return the images of all unguided samples of a slice, by number, up to the first that is missing."""
        images: dict[int, dict[str, Any]] = {}
        for unit, row in self.rows.items():
            if (unit.kind, unit.scan_id, unit.slice, unit.acceleration) == ("RR", scan_id, index, acceleration):
                images |= {image["sample"]: image for image in row["images"]}
        return [images[k] for k in range(len(images)) if k in images]


def labels_of(row: dict[str, Any], packed: bytes) -> UInt8[np.ndarray, "y x"]:
    """Return a label map of a row."""
    return unpack_labels(packed, (row["height"], row["width"]))


def magnitude_of(row: dict[str, Any], packed: bytes) -> Float[np.ndarray, "y x"]:
    """Return a magnitude of a row, in units of the volume's peak."""
    return unpack_magnitude(packed, (row["height"], row["width"]))


def planned_units(config: dict[str, Any]) -> list[Unit]:
    """Return the units of all plans of a results folder, each once."""
    units: dict[Unit, None] = {}
    default = float(config["identity"]["settings"]["guidance_strength"])
    for content in config["plans"]:
        plan = EvaluationPlan.from_json(content)
        others = tuple(b for b in plan.ablation_strengths if abs(b - default) > 1e-6 * default)
        plan = replace(plan, ablation_strengths=others)
        units |= dict.fromkeys(plan_units(plan, config["slices"], config["finding_slices"]))
    return list(units)


def load_results(folder: str | os.PathLike) -> EvaluationResults:
    """Read a results folder.

    Raises:
        FileNotFoundError, ValueError: it is none, or its `config.json` is damaged.
    """
    config = read_config(folder)
    rows, missing, damaged = {}, [], []
    for unit in planned_units(config):
        try:
            rows[unit] = read_shard(folder, unit)
        except FileNotFoundError:
            missing.append(unit)
        except DamagedShard as error:
            missing.append(unit)
            damaged.append(str(error))
    return EvaluationResults(config, rows, missing, damaged)
