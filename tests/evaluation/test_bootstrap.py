"""Confidence intervals: the same for the same seed, whole scans drawn together."""

import numpy as np
import pytest

from sgr_diffusers.evaluation.bootstrap import estimate, mean, median


def test_the_seed_decides():
    values = np.random.default_rng(1).random((12, 4))
    assert estimate(values, seed=3) == estimate(values, seed=3)
    assert estimate(values, mean, seed=3) != estimate(values, mean, seed=4)
    assert estimate(values, seed=3).value == np.median(values)


def test_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=(400, 1))
    found = estimate(values, mean)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_classes_of_a_scan_stay_together():
    together = np.repeat(np.random.default_rng(0).normal(size=(30, 1)), 50, axis=1)
    apart = estimate(together[:, :1], mean)
    assert (estimate(together, mean).low, apart.value) == pytest.approx((apart.low, together.mean()))


def test_values_that_are_missing_are_left_out():
    values = np.array([[1.0, np.nan], [3.0, np.nan], [2.0, np.nan]])
    assert estimate(values).value == 2.0
    assert estimate(values).low >= 1.0
    for empty in (np.full((3, 2), np.nan), np.empty((0, 2))):
        found = estimate(empty, mean)
        assert np.isnan([found.value, found.low, found.high]).all()


def test_one_scan_has_no_width():
    found = estimate(np.array([[0.25, 0.75]]), mean)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_median_of_a_batch():
    assert median(np.array([[1.0, 2.0, np.nan], [np.nan] * 3])).tolist()[0] == 1.5
