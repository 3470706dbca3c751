import math

import numpy as np
import pytest
from crepes import ConformalPredictiveSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from sgr_diffusers.calibration.quantiles import Group, calibrate, one_sided_quantile, scans_needed
from sgr_diffusers.calibration.scores import ScanVolumes

few = settings(derandomize=True, max_examples=50, deadline=None)

POISSON_8 = Group(8.0, "poisson", (7.9, 8.2))
POISSON_16 = Group(16.0, "poisson", (15.8, 16.3))
LINES_8 = Group(8.0, "lines", (7.9, 8.2))
CLASSES = ("cartilage", "meniscus")


def scans_of(rng, n_scans, bias=0.0, n_classes=2):
    """Scans whose bounds are of different widths, and whose point estimates are off by `bias` of the width."""
    reference = rng.gamma(4.0, 50.0, (n_scans, n_classes)).round()
    width = rng.gamma(2.0, 10.0, (n_scans, n_classes)).round()
    centre = reference + width * (bias + rng.normal(0, 0.6, (n_scans, n_classes)))
    return ScanVolumes(
        tuple(f"scan{number}" for number in range(n_scans)),
        CLASSES[:n_classes],
        np.maximum(centre, 0.0).round(),
        np.maximum(centre - width / 2, 0.0).round(),
        np.maximum(centre + width / 2, 1.0).round(),  # some of each class is seen in every scan
        reference,
        np.ones(n_scans),
    )


def rows(scans, chosen):
    return ScanVolumes(
        tuple(np.array(scans.scan_ids)[chosen]),
        scans.classes,
        scans.point_mm3[chosen],
        scans.lower_mm3[chosen],
        scans.upper_mm3[chosen],
        scans.reference_mm3[chosen],
        scans.voxel_mm3[chosen],
    )


@few
@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=25), alpha=st.floats(0.01, 0.99))
def test_coverage_of_any_exchangeable_scores_with_ties_and_few_scans(scores, alpha):
    """Each of the n + 1 scores is the new one with the same probability: the mean over them is the coverage."""
    scores = np.array(scores, np.float64)
    covered = [scores[new] <= one_sided_quantile(np.delete(scores, new), alpha) for new in range(len(scores))]
    assert np.mean(covered) >= 1 - alpha - 1e-9


@few
@given(n_scans=st.integers(1, 40), alpha=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_without_ties_the_coverage_is_as_asked_for_to_one_place(n_scans, alpha, seed):
    scores = np.random.default_rng(seed).permutation(n_scans + 1).astype(np.float64)
    covered = [scores[new] <= one_sided_quantile(np.delete(scores, new), alpha) for new in range(n_scans + 1)]
    assert 1 - alpha - 1e-9 <= np.mean(covered) <= 1 - alpha + 1 / (n_scans + 1) + 1e-9


@few
@given(seed=st.integers(0, 10_000), n_scans=st.integers(9, 30), bias=st.floats(-2, 2))
def test_intervals_cover_each_class_and_all_classes_at_once(seed, n_scans, bias):
    scans, coverage = scans_of(np.random.default_rng(seed), n_scans + 1, bias), 0.8
    single, at_once = np.zeros(2), 0
    for new in range(n_scans + 1):
        (quantiles,) = calibrate({POISSON_8: rows(scans, np.arange(n_scans + 1) != new)}, [coverage])
        bounds = scans.point_mm3[new], scans.lower_mm3[new], scans.upper_mm3[new], 1.0
        low, high = quantiles.interval(*bounds)
        single += (low <= scans.reference_mm3[new]) & (scans.reference_mm3[new] <= high)
        low, high = quantiles.interval(*bounds, all_at_once=True)
        at_once += ((low <= scans.reference_mm3[new]) & (scans.reference_mm3[new] <= high)).all()
    assert (single >= coverage * (n_scans + 1) - 1e-9).all()
    assert at_once >= coverage * (n_scans + 1) - 1e-9


def flat(groups, class_number):
    """Point estimates, units, references and names of the group of all scans of all groups, for one class."""
    scans = list(groups.values())
    point, lower, upper, reference = (
        np.concatenate([getattr(part, name)[:, class_number] for part in scans])
        for name in ("point_mm3", "lower_mm3", "upper_mm3", "reference_mm3")
    )
    names = np.repeat([str(group) for group in groups], [len(part.scan_ids) for part in scans])
    return point, np.maximum(upper - lower, 0) + 8, reference, names


@pytest.mark.parametrize("class_number", [0, 1])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_intervals_are_those_of_crepes_in_every_group(coverage, class_number):
    rng = np.random.default_rng(1)
    groups = {POISSON_8: scans_of(rng, 39, 0.4), POISSON_16: scans_of(rng, 59, -0.8), LINES_8: scans_of(rng, 23)}
    new = {group: scans_of(rng, 5) for group in groups}
    point, units, reference, bins = flat(groups, class_number)
    new_point, new_units, _, new_bins = flat(new, class_number)
    percentile = 100 * (1 + coverage) / 2
    oracle = ConformalPredictiveSystem()
    oracle.fit(reference - point, sigmas=units, bins=bins)
    expected_high = oracle.predict_percentiles(new_point, new_units, new_bins, higher_percentiles=percentile)
    oracle.fit(point - reference, sigmas=units, bins=bins)
    expected_low = -oracle.predict_percentiles(-new_point, new_units, new_bins, higher_percentiles=percentile)

    for quantiles in calibrate(groups, [coverage]):
        scans = new[quantiles.group]
        bounds = scans.point_mm3, scans.lower_mm3, scans.upper_mm3
        low, high = quantiles.interval(*bounds, scans.voxel_mm3[:, None])
        own = new_bins == str(quantiles.group)
        np.testing.assert_allclose(low[:, class_number], np.maximum(expected_low[own], 0), atol=1e-5)
        np.testing.assert_allclose(high[:, class_number], np.maximum(expected_high[own], 0), atol=1e-5)


def test_too_few_scans_give_an_infinite_quantile_here_and_in_crepes():
    scores = np.arange(18.0)
    assert one_sided_quantile(scores, 0.05) == math.inf
    assert one_sided_quantile(np.arange(19.0), 0.05) == 18.0
    oracle = ConformalPredictiveSystem()
    oracle.fit(scores)
    with pytest.warns(UserWarning, match="too small|insufficient"):
        assert oracle.predict_percentiles(np.zeros(1), higher_percentiles=95) == [math.inf]


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 19), (0.8, 9), (0.95, 39), (0.5, 3), (1 - 1 / 3, 5)])
def test_number_of_scans_needed(coverage, needed):
    assert scans_needed(coverage) == needed
    assert math.isfinite(one_sided_quantile(np.zeros(needed), (1 - coverage) / 2))
    assert math.isinf(one_sided_quantile(np.zeros(needed - 1), (1 - coverage) / 2))


def test_too_few_scans_are_refused_with_the_number_needed():
    scans = scans_of(np.random.default_rng(0), 18)
    with pytest.raises(ValueError, match=r"0\.9 needs at least 19 calibration scans.*got 18 at 8x poisson"):
        calibrate({POISSON_8: scans}, [0.8, 0.9])


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0])
def test_coverage_out_of_range_is_refused(coverage):
    with pytest.raises(ValueError, match="`coverage` must be between 0 and 1"):
        scans_needed(coverage)


def test_scans_without_any_of_a_class_do_not_make_its_intervals_narrow():
    scans = scans_of(np.random.default_rng(0), 40, n_classes=1)
    absent = np.zeros((60, 1))
    names = tuple(f"other{number}" for number in range(60))
    mixed = ScanVolumes(
        (*scans.scan_ids, *names),
        scans.classes,
        *(np.concatenate([getattr(scans, name), absent]) for name in ("point_mm3", "lower_mm3", "upper_mm3")),
        np.concatenate([scans.reference_mm3, absent]),
        np.ones(100),
    )
    (alone,), (together,) = (calibrate({POISSON_8: each}, [0.9]) for each in (scans, mixed))
    assert (together.lower, together.upper) == (alone.lower, alone.upper) and min(alone.lower + alone.upper) > 0
    assert together.unseen_upper == (0.0,) and together.n_seen == alone.n_seen == (40,)
    nothing, something = np.zeros(1), np.full(1, 50.0)
    assert together.interval(nothing, nothing, nothing, 1.0)[1] < 1e-6
    assert together.interval(something, something, something, 1.0)[1] > 50
    few = rows(mixed, np.arange(100) >= 38)  # two scans with the class, too few for a quantile of their own
    below, above = few.scores()
    (quantiles,) = calibrate({POISSON_8: few}, [0.9])
    assert (quantiles.lower, quantiles.upper) == ((max(0.0, below[:2].max()),), (max(0.0, above[:2].max()),))


def test_interval_of_some_classes_in_their_order():
    scans = scans_of(np.random.default_rng(0), 20)
    (quantiles,) = calibrate({POISSON_8: scans}, [0.8])
    bounds = np.array([[110.0, 50.0], [100.0, 40.0], [120.0, 70.0]])
    low, high = quantiles.interval(*bounds, 1.0)
    low_2, high_2 = quantiles.interval(*bounds[:, 1:], 1.0, classes=["meniscus"])
    assert (low_2[0], high_2[0]) == (low[1], high[1])
    with pytest.raises(ValueError, match=r"`classes` bone have no calibration. Calibrated are cartilage, meniscus"):
        quantiles.interval(*bounds, 1.0, classes=["meniscus", "bone"])


def test_a_group_holds_masks_of_its_family_near_its_acceleration():
    assert POISSON_8.holds(8.5, "poisson") and not POISSON_8.holds(8.5, "lines")
    assert not POISSON_8.holds(4.0, "poisson") and not POISSON_8.holds(16.0, "poisson")
