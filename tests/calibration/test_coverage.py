import numpy as np
import pytest
from scipy import stats

from sgr_diffusers.calibration.coverage import clopper_pearson, coverage_spread
from sgr_diffusers.calibration.quantiles import one_sided_quantile


@pytest.mark.parametrize(("n_scans", "mean", "spread"), [(33, 0.91, 0.05), (100, 0.90, 0.03)])
def test_published_spread_of_one_quantile(n_scans, mean, spread):
    coverage = coverage_spread(n_scans, 0.1, n_sides=1)
    assert coverage.mean() == pytest.approx(mean, abs=0.005)
    assert coverage.std() == pytest.approx(spread, abs=0.005)


@pytest.mark.parametrize("n_sides", [1, 2])
def test_spread_over_simulated_calibration_sets(n_sides):
    """Scores of the two sides are in opposite orders: V - V_up and V_low - V of bounds of equal width."""
    rng, n_scans, alpha = np.random.default_rng(0), 60, 0.2
    coverages = []
    for scores in rng.uniform(size=(2000, n_scans)):
        high = one_sided_quantile(scores, alpha / n_sides)
        low = -one_sided_quantile(-scores, alpha / n_sides) if n_sides == 2 else 0.0
        coverages.append(high - low)
    assert stats.kstest(coverages, coverage_spread(n_scans, alpha, n_sides).cdf).pvalue > 0.01


def test_spread_of_an_interval_whose_sides_are_not_in_opposite_orders():
    rng, n_scans, alpha = np.random.default_rng(0), 60, 0.2
    coverages = []
    for below, above in rng.uniform(size=(2000, 2, n_scans)):
        coverages.append(one_sided_quantile(below, alpha / 2) + one_sided_quantile(above, alpha / 2) - 1)
    expected = coverage_spread(n_scans, alpha)
    assert np.mean(coverages) == pytest.approx(expected.mean(), abs=0.005)
    assert np.std(coverages) == pytest.approx(expected.std(), abs=0.005)


def test_spread_of_what_a_test_set_shows():
    spread = coverage_spread(100, 0.1, n_test=100)
    assert spread.mean() / 100 == pytest.approx(coverage_spread(100, 0.1).mean())
    assert spread.std() / 100 > coverage_spread(100, 0.1).std()


def test_spread_of_an_infinite_quantile_is_refused():
    with pytest.raises(ValueError, match=r"`n_scans` 18 is too small for `alpha` 0.1.*At least 19 scans"):
        coverage_spread(18, 0.1)
    assert coverage_spread(19, 0.1).mean() == pytest.approx(0.9)


def test_clopper_pearson_holds_the_true_coverage_often_enough():
    n_test, truth = 23, 0.9
    probability = stats.binom.pmf(np.arange(n_test + 1), n_test, truth)
    intervals = [clopper_pearson(n_covered, n_test) for n_covered in range(n_test + 1)]
    assert sum(p for p, (low, high) in zip(probability, intervals, strict=True) if low <= truth <= high) >= 0.95
    assert intervals[0][0] == 0.0 and intervals[-1][1] == 1.0
