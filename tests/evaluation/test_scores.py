"""Scores against numbers worked out by hand."""

import numpy as np
import pytest

from sgr_diffusers.evaluation.load import load_results
from sgr_diffusers.evaluation.plan import EvaluationPlan
from sgr_diffusers.evaluation.scores import score
from sgr_diffusers.evaluation.table1 import table1_rows
from tests.helpers.evaluation_results import HandMade, labels

NONE = labels()


def two_slices(folder, **plan):
    """Scan A: class one in slices 0 and 1. Scan B: one slice. Class two is nowhere but in B."""
    made = HandMade(folder, EvaluationPlan((4.0,), rr_samples=2, **plan))
    made.reference("A", 0, labels(one=[0, 1, 2, 3]), manual=labels(one=[0, 1]))
    made.reference("A", 1, labels(one=[5]), manual=labels(one=[5]))
    made.reference("B", 3, labels(one=[0], two=[6, 7]), manual=labels(two=[6, 7]))
    made.guided("A", 0, [(labels(one=[0, 1, 9]), labels(one=[0, 1, 2, 3, 4, 9])), (NONE, NONE)], error=0.01)
    made.guided("A", 1, [(NONE, labels(one=[5, 6])), (NONE, NONE)], error=0.03)
    made.guided("B", 3, [(labels(one=[0]), labels(one=[0])), (labels(two=[6]), labels(two=[6, 7, 8]))], error=0.1)
    made.samples("A", 0, [labels(one=[0, 1, 2]), labels(one=[0, 1])], error=0.02)
    made.samples("A", 1, [NONE, labels(one=[5])], error=0.02)
    made.samples("B", 3, [labels(two=[6, 7]), labels(one=[0], two=[6])], error=0.1)
    return made


def one(frame, **where):
    found = frame[np.logical_and.reduce([frame[name] == value for name, value in where.items()])]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture
def tables(tmp_path):
    return score(load_results(two_slices(tmp_path).finish()))


def test_scores_are_those_of_volumes_not_of_slices(tables):
    where = {"method": "SGR", "strength": 0.005, "segmenter": "guiding", "label": 1, "scan_id": "A"}
    full = one(tables.volumes, reference="fully_sampled", **where)
    assert full["precision_lower"] == 2 / 3
    assert full["recall_upper"] == 5 / 5
    assert full["uncertain_share"] == (8 - 3) / 8
    assert (full["lower"], full["truth"], full["upper"], full["covered"]) == (3, 5, 8, 1.0)
    assert full["width"] == 5 / 5
    manual = one(tables.volumes, reference="manual", **where)
    assert (manual["precision_lower"], manual["recall_upper"], manual["covered"]) == (2 / 3, 1.0, 1.0)


def test_rr_chooses_samples_for_each_slice_and_class(tables):
    where = {"method": "RR", "segmenter": "guiding", "reference": "fully_sampled"}
    scan_a = one(tables.volumes, scan_id="A", label=1, **where)
    assert (scan_a["lower"], scan_a["upper"]) == (2 + 0, 3 + 1)
    assert (scan_a["precision_lower"], scan_a["recall_upper"]) == (1.0, 4 / 5)
    assert scan_a["covered"] == 0.0  # 5 voxels, at most 4
    scan_b = one(tables.volumes, scan_id="B", label=1, **where)
    assert (scan_b["lower"], scan_b["upper"], scan_b["recall_upper"]) == (0, 1, 1.0)
    assert np.isnan(scan_b["precision_lower"])  # an empty lower bound claims nothing


def test_what_is_nowhere_has_no_score(tables):
    nowhere = one(tables.volumes, method="RR", scan_id="A", label=2, segmenter="guiding", reference="manual")
    assert np.isnan(nowhere[["precision_lower", "recall_upper", "uncertain_share", "covered"]].astype(float)).all()


def test_medians_over_scans_and_classes(tables):
    row = one(tables.scores, group="all", method="SGR", strength=0.005, segmenter="guiding", reference="fully_sampled")
    # A one, B one, B two
    assert row["precision_lower"] == np.median([2 / 3, 1.0, 1.0])
    assert row["uncertain_share"] == np.median([5 / 8, 0.0, 2 / 3])
    assert row["uncertain_share_q25"] == np.percentile([5 / 8, 0.0, 2 / 3], 25)
    assert row["covered"] == 1.0
    assert (row["n_scans"], row["n_slices"]) == (2, 3)
    assert row["precision_lower_ci_low"] <= row["precision_lower"] <= row["precision_lower_ci_high"]


def test_psnr_is_of_the_volume_and_ssim_the_mean_of_its_slices(tables):
    row = one(tables.scores, group="all", method="SGR", strength=0.005, segmenter="guiding", reference="manual")
    # every image of a slice has the same error; mean squared error in units of the peak squared
    assert row["psnr"] == pytest.approx(np.mean([-10 * np.log10(0.02), -10 * np.log10(0.1)]))
    assert row["ssim"] == pytest.approx(np.mean([0.5 + 0.02, 0.5 + 0.1]))


def test_differences_are_paired(tables):
    row = one(tables.differences, baseline="RR", segmenter="guiding", reference="fully_sampled")
    # A one, B two; B one has no precision for RR
    assert row["precision_lower"] == pytest.approx(np.median([2 / 3 - 1.0, 1.0 - 1.0]))
    assert row["recall_upper"] == pytest.approx(np.median([1.0 - 4 / 5, 0.0, 0.0]))
    assert row["psnr"] == pytest.approx(0.0, abs=1e-12)


def test_growth_is_the_ratio_of_medians_over_the_same_scans(tmp_path, tables):
    assert tables.growth.empty  # one acceleration
    made = HandMade(tmp_path / "two", EvaluationPlan((4.0, 16.0), rr_samples=2))
    shares = {"A": (1 / 4, 2 / 4), "B": (2 / 4, 3 / 4), "C": (1 / 4, 4 / 4)}  # of an upper bound of 4 voxels
    for scan, pair in shares.items():
        made.reference(scan, 0, labels(one=[0, 1]))
        for acceleration, share in zip((4.0, 16.0), pair, strict=True):
            lower, upper = labels(one=range(round(4 * (1 - share)))), labels(one=range(4))
            made.guided(scan, 0, [(lower, upper), (NONE, NONE)], acceleration)
            made.samples(scan, 0, [upper, upper], acceleration)
    growth = score(load_results(made.finish())).growth
    row = one(growth, method="SGR", reference="fully_sampled", segmenter="guiding")
    assert (row["growth"], row["n_scans"]) == ((3 / 4) / (1 / 4), 3)
    assert (row["from_acceleration"], row["to_acceleration"]) == (4.0, 16.0)
    # Scans stay together: the smallest ratio of any resample is B's own, the largest C's.
    assert (row["growth_ci_low"], row["growth_ci_high"]) == (1.5, 4.0)
    assert np.isnan(one(growth, method="RR", reference="fully_sampled", segmenter="guiding")["growth"])


def test_strength_zero_is_the_first_unguided_sample(tables):
    zero = one(
        tables.volumes, method="SGR", strength=0.0, scan_id="A", label=1, segmenter="guiding", reference="manual"
    )
    assert (zero["lower"], zero["upper"]) == (3, 3)


def test_equal_budget_counts_what_was_run(tmp_path):
    made = two_slices(tmp_path, rr_curve_slices=1, rr_curve_samples=5)
    # 2 forward passes and 1 backward pass, as 2: 4 samples of 1 forward pass each
    made.guided("B", 3, [(NONE, NONE), (NONE, NONE)], cost=(2, 1))
    made.samples("B", 3, [NONE, labels(two=[1]), labels(two=[6, 7, 8])], first=2)
    tables = score(load_results(made.finish()))
    assert one(tables.budgets, acceleration=4.0)["n_samples"] == np.mean([16, 16, 4])
    row = one(tables.volumes, method="RR_equal_budget", scan_id="B", label=2, segmenter="guiding", reference="manual")
    assert (row["lower"], row["upper"]) == (0, 2)  # the fifth sample is beyond the budget


def test_more_samples_make_a_curve(tmp_path):
    made = two_slices(tmp_path, rr_curve_slices=1, rr_curve_samples=4)
    made.samples("B", 3, [NONE, labels(two=[1, 2, 3, 4])], first=2)
    tables = score(load_results(made.finish()))
    found = tables.curve[(tables.curve["segmenter"] == "guiding") & (tables.curve["reference"] == "manual")]
    assert found[found["method"] == "RR"]["n_samples"].tolist() == [2, 4]
    assert found[found["method"] == "RR"]["n_subsets"].tolist() == [2, 1]
    two = one(found, method="RR", n_samples=2)
    # sets {0, 1}: 1..2 of 2 voxels, holds; {2, 3}: 0..4, holds; class one, truth 0: 0..1, holds; then 0..0, no value
    assert two["covered"] == 1.0
    assert two["recall_upper"] == np.mean([1.0, 0.0])
    assert one(found, method="SGR")["n_samples"] == 0


def test_second_segmenter_measures_what_the_first_has_chosen(tmp_path):
    made = HandMade(tmp_path, EvaluationPlan((4.0,), rr_samples=2))
    made.reference("A", 0, labels(one=[0, 1]), manual=labels(one=[0]), second_fully_sampled=labels(one=[0, 1, 2]))
    bounds = [(labels(one=[0]), labels(one=[0, 1])), (NONE, NONE)]
    other = [(labels(one=[0, 1]), labels(one=[0, 1])), (NONE, NONE)]
    made.guided("A", 0, bounds, second=other)
    samples = [labels(one=[0, 1, 2]), labels(one=[0])]
    made.samples("A", 0, samples, second=[labels(one=[0]), labels(one=[1, 2])])
    tables = score(load_results(made.finish()))
    rr = one(tables.volumes, method="RR", segmenter="second", reference="fully_sampled", label=1)
    assert (rr["lower"], rr["upper"], rr["truth"]) == (2, 1, 3)  # the first model calls the second sample the lower
    sgr = one(tables.volumes, method="SGR", strength=0.005, segmenter="second", reference="fully_sampled", label=1)
    assert (sgr["lower"], sgr["upper"], sgr["uncertain_share"]) == (2, 2, 0.0)


def test_findings_are_admitted_where_the_lower_bound_leaves_them_out(tmp_path):
    made = HandMade(tmp_path, EvaluationPlan((4.0,), rr_samples=2))
    made.finding_slices = {"A": [1]}
    tear = [{"type": "meniscus_tear"}]
    made.reference("A", 0, labels(one=[0]), manual=labels(one=[0]), findings=tear)
    made.reference(
        "A", 1, labels(one=[0]), manual=labels(one=[0]), findings=tear, without_finding=labels(one=[0, 1, 2, 3])
    )
    made.slices = {"A": [0], "B": [0]}
    made.reference("B", 0, labels(one=[0]), manual=labels(one=[0]))
    made.slices = {"A": [0], "B": [0]}
    for scan, index in (("A", 0), ("A", 1), ("B", 0)):
        made.guided(scan, index, [(labels(one=[0, 3]), labels(one=[0, 1, 2, 3])), (NONE, NONE)])
        made.samples(scan, index, [labels(one=[0, 1, 2]), labels(one=[0, 1, 2, 3])])
    tables = score(load_results(made.finish()))
    sgr, rr = (one(tables.findings, method=method) for method in ("SGR", "RR"))
    assert (sgr["n_findings"], sgr["finding_voxels"], sgr["n_slices"]) == (1, 3, 1)
    assert sgr["admitted_share"] == pytest.approx(2 / 3) and sgr["admitted_mostly"] == 1.0
    assert rr["admitted_share"] == pytest.approx(1 / 3) and rr["admitted_mostly"] == 0.0
    assert sgr["true_volume_covered"] == 0.0  # 1 voxel, at least 2
    # a slice that was added for its finding is in no other score; scans with and without are scored apart
    assert set(tables.volumes["n_slices"]) == {1}
    assert set(tables.scores["group"]) == {"all", "finding", "no_finding"}


def test_slices_that_lack_a_method_are_left_out(tmp_path):
    made = two_slices(tmp_path)
    made.reference("C", 0, labels(one=[0]), manual=NONE)
    made.guided("C", 0, [(NONE, NONE), (NONE, NONE)])
    results = load_results(made.finish())
    assert [unit.kind for unit in results.missing] == ["RR"]
    assert set(score(results).volumes["scan_id"]) == {"A", "B"}


def test_nothing_to_score(tmp_path):
    made = HandMade(tmp_path)
    made.reference("A", 0, NONE)
    with pytest.raises(ValueError, match="nothing to report"):
        score(load_results(made.finish()))


def test_table1_has_one_row_for_each_acceleration_method_and_reference(tables):
    rows = table1_rows(tables, 0.005)
    assert [(row["acceleration"], row["method"], row["reference"]) for row in rows] == [
        (4.0, "SGR", "fully_sampled"),
        (4.0, "RR", "fully_sampled"),
        (4.0, "SGR", "manual"),
        (4.0, "RR", "manual"),
    ]
    assert rows[0]["precision_lower"] == 1.0 and rows[0]["n_scans"] == 2


def test_psnr_to_the_image_without_noise_stands_beside_the_other(tables):
    rows = tables.scores.dropna(subset="psnr")
    assert {"SGR", "RR"} <= set(rows["method"])
    np.testing.assert_allclose(rows["psnr_noise_free"] - rows["psnr"], 10 * np.log10(4), atol=1e-6)
