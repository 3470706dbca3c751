"""List the units of work of an evaluation in the order they are done.

A unit is the smallest piece that is computed, stored and resumed: one slice with one method at one acceleration. The
result of a unit depends on its own fields, the settings and the data, never on other units or on their order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..pipeline.settings import check_settings, one_of, real_number, setting, whole_number

__all__ = ["METHODS", "RR_BLOCK", "EvaluationPlan", "Unit", "plan_units"]

METHODS = ("SGR", "RR")
_ACCELERATION = real_number("1 or larger", lambda value: value >= 1)
_STRENGTH = real_number("0 or larger", lambda value: value >= 0)
RR_BLOCK = 16  # samples of a unit of repeated reconstruction; the number of the paper's baseline


@dataclass(frozen=True)
class Unit:
    """One slice with one method at one acceleration.

    Attributes:
        kind: "reference" (what the slice really shows), "SGR" (both bounds of every class) or "RR" (samples).
        scan_id: name of the scan.
        slice: place in the scan, from 0.
        acceleration: acceleration of the stored mask; 0 for a reference.
        strength: strength b of paper Eq. 14, per step, for SGR; `None` for the pipeline's default and for other kinds.
        first_sample: number of the first sample, for RR.
        n_samples: number of samples, for RR.
    """

    kind: str
    scan_id: str
    slice: int
    acceleration: float = 0.0
    strength: float | None = None
    first_sample: int = 0
    n_samples: int = 0

    @property
    def name(self) -> str:
        """Name of its shard within the folder of its scan, without ending."""
        parts = [f"{self.slice:04d}", self.kind]
        if self.kind != "reference":
            parts.append(f"{self.acceleration:g}x")
        if self.kind == "SGR":
            parts.append("default" if self.strength is None else f"b{self.strength:.8g}")
        if self.kind == "RR":
            parts.append(f"{self.first_sample}+{self.n_samples}")
        return "-".join(parts)

    def cost(self, n_classes: int) -> float:
        """Estimate the cost in forward passes of the prior a step: 3 for a guided image, unless it is not pushed."""
        return {"reference": 0.05, "SGR": 2.5 * 2 * n_classes, "RR": float(self.n_samples)}[self.kind]


@dataclass(frozen=True)
class EvaluationPlan:
    """How far an evaluation goes. A results folder may be taken further by another plan; no result depends on it."""

    accelerations: tuple[float, ...] = setting(
        (4.0, 8.0, 12.0, 16.0), _ACCELERATION, "accelerations of the stored masks", "data", several=True
    )
    methods: tuple[str, ...] = setting(METHODS, one_of(METHODS), "methods to evaluate", several=True)
    ablation_strengths: tuple[float, ...] = setting(
        (),
        _STRENGTH,
        "further strengths b for SGR (paper Fig. 6); 0 is read from the unguided samples",
        option="strengths",
        unset="none",
        several=True,
    )
    ablation_acceleration: float | None = setting(
        None, _ACCELERATION, "acceleration of the ablation", unset="the highest"
    )
    ablation_slices: int | None = setting(
        None, whole_number(1), "number of slices of each scan in the ablation", unset="all that are evaluated"
    )
    rr_samples: int = setting(16, whole_number(2), "number of samples of repeated reconstruction; 16 in the paper")
    rr_curve_slices: int = setting(
        0, whole_number(0), "number of slices of each scan that get --rr-curve-samples samples"
    )
    rr_curve_samples: int = setting(
        64, whole_number(2), "number of samples of these slices, at the highest acceleration"
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: an argument is out of range.
        """
        check_settings(self)
        for name in ("accelerations", "methods"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must have at least one entry, got none.")
        if self.rr_curve_slices and self.rr_curve_samples < self.rr_samples:
            raise ValueError(
                f"`rr_curve_samples` must be at least `rr_samples` {self.rr_samples}, got {self.rr_curve_samples}."
            )
        if self.ablation_acceleration not in (None, *self.accelerations):
            raise ValueError(
                f"`ablation_acceleration` must be among `accelerations` {self.accelerations}, got "
                f"{self.ablation_acceleration}."
            )

    def with_intervals(self) -> "EvaluationPlan":
        """Add what calibrated intervals are made of: the bounds, and the samples of the point estimates."""
        from ..calibration.scores import N_SAMPLES  # here, for the help of the command line is quick without numpy

        n_samples = max(self.rr_samples, N_SAMPLES) if "RR" in self.methods else N_SAMPLES
        return replace(self, methods=METHODS, rr_samples=n_samples)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "EvaluationPlan":
        """Return the plan that `to_json` wrote; fields that it does not know yet have their defaults."""
        names = [entry.name for entry in fields(cls) if entry.name in content]
        known: dict[str, Any] = {
            name: tuple(content[name]) if isinstance(content[name], list) else content[name] for name in names
        }
        return cls(**known)


def plan_units(
    plan: EvaluationPlan,
    slices: Mapping[str, Sequence[int]],
    finding_slices: Mapping[str, Sequence[int]] | None = None,
) -> list[Unit]:
    """List the units of a plan, ordered so that an early stop leaves scans, methods and accelerations equally far.

    First one slice of every scan with all accelerations and methods, then the next; then slices that show a finding;
    then the ablation of the strength; then the additional samples of repeated reconstruction.

    Args:
        plan: plan whose units are listed.
        slices: slices of each scan, in the order of the scan.
        finding_slices: further slices of some scans, which show a finding.
    """
    rounds = _rounds(slices)
    known = {(scan_id, index) for _, scan_id, index in rounds}
    further = [entry for entry in _rounds(finding_slices or {}) if entry[1:] not in known]
    units = []
    for _, scan_id, index in rounds + further:
        units.append(Unit("reference", scan_id, index))
        for acceleration in plan.accelerations:
            if "SGR" in plan.methods:
                units.append(Unit("SGR", scan_id, index, acceleration))
            if "RR" in plan.methods:
                units += _samples(scan_id, index, acceleration, 0, plan.rr_samples)
    if "SGR" in plan.methods:
        acceleration = plan.ablation_acceleration or max(plan.accelerations)
        guided = [strength for strength in plan.ablation_strengths if strength > 0]
        for number, scan_id, index in rounds:
            if plan.ablation_slices is None or number < plan.ablation_slices:
                units += [Unit("SGR", scan_id, index, acceleration, strength) for strength in guided]
    if "RR" in plan.methods:
        highest = max(plan.accelerations)
        for number, scan_id, index in rounds:
            if number < plan.rr_curve_slices:
                units += _samples(scan_id, index, highest, plan.rr_samples, plan.rr_curve_samples)
    return units


def _rounds(slices: Mapping[str, Sequence[int]]) -> list[tuple[int, str, int]]:
    """List (round, scan, slice): a round takes one slice of every scan, from the middle of the scan outward."""
    rounds = []
    for scan_id, numbers in slices.items():
        middle = (len(numbers) - 1) / 2
        order = sorted(range(len(numbers)), key=lambda index: (abs(index - middle), index))
        rounds += [(number, scan_id, numbers[index]) for number, index in enumerate(order)]
    return sorted(rounds, key=lambda entry: entry[0])  # stable: scans stay in order


def _samples(scan_id: str, index: int, acceleration: float, start: int, stop: int) -> list[Unit]:
    """List units of RR for the samples from `start` to `stop`; a unit never crosses a multiple of the block."""
    units = []
    while start < stop:
        end = min(stop, (start // RR_BLOCK + 1) * RR_BLOCK)
        units.append(Unit("RR", scan_id, index, acceleration, None, start, end - start))
        start = end
    return units
