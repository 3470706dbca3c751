"""Intervals of the methods to compare with."""

import numpy as np
import pytest

from sgr_diffusers.calibration.baselines import (
    SampleVolumes,
    bounds_intervals,
    extremes,
    quantile_intervals,
    retrieval_errors,
)


def draw(n_scans, rng, n_samples=16):
    """Scans whose samples are too narrow, and beside the truth by a bias."""
    truth = rng.uniform(500.0, 1500.0, (n_scans, 2))
    centre = truth + rng.normal(0.0, 60.0, truth.shape)
    samples = centre[:, None] + 20.0 + rng.normal(0.0, 20.0, (n_scans, n_samples, 2))
    names = tuple(f"scan {k}" for k in range(n_scans))
    return SampleVolumes(names, ("one", "two"), samples, truth, np.full(n_scans, 10.0))


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("method", ["quantiles", "extremes"])
def test_coverage_is_the_wanted_one_over_many_draws(method, coverage):
    rng, shares = np.random.default_rng(0), []
    for _ in range(200):
        calibration, test = draw(39, rng), draw(20, rng)
        if method == "quantiles":
            low, high = quantile_intervals(calibration, test, coverage)
        else:
            low, high = bounds_intervals(extremes(calibration), extremes(test), coverage)
        shares.append(((low <= test.reference_mm3) & (test.reference_mm3 <= high)).mean())
    assert coverage - 0.01 <= np.mean(shares) <= coverage + 0.03


def test_extremes_are_those_of_the_samples():
    volumes = draw(3, np.random.default_rng(1))
    bounds = extremes(volumes)
    assert (bounds.lower_mm3 == volumes.samples_mm3.min(axis=1)).all()
    assert (bounds.upper_mm3 == volumes.samples_mm3.max(axis=1)).all()


def test_the_error_of_retrieval_is_that_of_the_nearest_sample():
    samples = np.array([[[90.0], [100.0], [130.0]]])
    volumes = SampleVolumes(("a",), ("one",), samples, np.array([[100.0]]), np.array([10.0]))
    errors = retrieval_errors(volumes, (np.array([[80.0]]), np.array([[130.0]])))
    assert errors.squeeze().tolist() == [pytest.approx(10 / 80), 0.0]
    errors = retrieval_errors(volumes, (np.array([[0.0]]), np.array([[120.0]])))
    assert errors.squeeze().tolist() == [9.0, pytest.approx(10 / 120)]  # of a voxel, where the end is nothing
