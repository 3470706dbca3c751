"""Units of work: which there are, in which order, and who does them."""

import dataclasses

import pytest

from sgr_diffusers.calibration.scores import N_SAMPLES
from sgr_diffusers.evaluation.plan import EvaluationPlan, Unit, plan_units

SLICES = {"A": (10, 20, 30), "B": (5,)}


def test_every_slice_has_its_reference_and_every_method_and_acceleration_once():
    units = plan_units(EvaluationPlan((4.0, 8.0)), SLICES)
    assert len(units) == len(set(units)) == 4 * (1 + 2 * 2)
    assert {(u.kind, u.acceleration) for u in units if u.scan_id == "B"} == {
        ("reference", 0.0),
        ("SGR", 4.0),
        ("SGR", 8.0),
        ("RR", 4.0),
        ("RR", 8.0),
    }
    assert {u.n_samples for u in units if u.kind == "RR"} == {16}


def test_an_early_stop_leaves_one_slice_of_every_scan_before_a_second_of_any():
    order = [(u.scan_id, u.slice) for u in plan_units(EvaluationPlan((4.0,)), SLICES) if u.kind == "reference"]
    assert order == [("A", 20), ("B", 5), ("A", 10), ("A", 30)]


def test_ablation_and_curve_are_done_at_the_highest_acceleration_in_the_first_slices():
    plan = EvaluationPlan(
        (4.0, 16.0), ablation_strengths=(0.0, 0.01), ablation_slices=1, rr_curve_slices=1, rr_curve_samples=40
    )
    more = plan_units(plan, SLICES)[len(plan_units(EvaluationPlan((4.0, 16.0)), SLICES)) :]
    assert [u.name for u in more if u.scan_id == "A"] == [
        "0020-SGR-16x-b0.01",  # nothing is computed for strength 0
        "0020-RR-16x-16+16",
        "0020-RR-16x-32+8",
    ]


def test_slices_with_a_finding_are_added_unless_they_are_there():
    plan = EvaluationPlan((4.0,))
    units = plan_units(plan, SLICES, {"A": (20, 21)})
    assert sorted(u.slice for u in units if u.kind == "reference" and u.scan_id == "A") == [10, 20, 21, 30]


def test_names_tell_units_apart():
    plan = EvaluationPlan((4.0, 4.5), ablation_strengths=(0.005, 0.0051), rr_curve_slices=3)
    names = [(u.scan_id, u.name) for u in plan_units(plan, SLICES)]
    assert len(names) == len(set(names))


def test_json_round_trip_and_unknown_fields():
    plan = EvaluationPlan((4.0,), ("RR",), ablation_acceleration=4.0)
    assert EvaluationPlan.from_json(plan.to_json()) == plan
    assert EvaluationPlan.from_json({"accelerations": [4.0], "of_later": 1}) == EvaluationPlan((4.0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerations": ()}, "`accelerations`"),
        ({"accelerations": (0.5,)}, "`accelerations`"),
        ({"methods": ("XX",)}, "`methods`"),
        ({"methods": ()}, "`methods`"),
        ({"rr_samples": 1}, "`rr_samples`"),
        ({"ablation_strengths": (-1.0,)}, "`ablation_strengths`"),
        ({"ablation_acceleration": 5.0}, "`ablation_acceleration` must be among `accelerations`"),
        ({"rr_curve_slices": 1, "rr_curve_samples": 8}, "`rr_curve_samples`"),
        ({"ablation_slices": 0}, "`ablation_slices`"),
    ],
)
def test_bad_plans(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(EvaluationPlan(), **changes)


def test_a_unit_is_its_fields():
    assert Unit("SGR", "A", 1, 4.0) == Unit("SGR", "A", 1, 4.0) != Unit("SGR", "A", 1, 4.0, 0.01)


@pytest.mark.parametrize(
    ("plan", "n_samples"),
    [
        (EvaluationPlan(methods=("SGR",)), N_SAMPLES),
        (EvaluationPlan(methods=("SGR", "RR"), rr_samples=16), 16),
        (EvaluationPlan(methods=("RR",), rr_samples=2), N_SAMPLES),
    ],
)
def test_intervals_need_bounds_and_samples(plan, n_samples):
    complete = plan.with_intervals()
    assert (complete.methods, complete.rr_samples) == (("SGR", "RR"), n_samples)
    assert dataclasses.replace(complete, methods=plan.methods, rr_samples=plan.rr_samples) == plan
