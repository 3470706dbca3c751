"""Intervals of the methods to compare with."""

from dataclasses import replace

import numpy as np
import pytest

from sgr_diffusers.calibration.baselines import (
    SampleVolumes,
    extremes_intervals,
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
@pytest.mark.parametrize("method", [quantile_intervals, extremes_intervals])
def test_coverage_is_the_wanted_one_over_many_draws(method, coverage):
    rng, shares = np.random.default_rng(0), []
    for _ in range(200):
        calibration, test = draw(39, rng), draw(20, rng)
        low, high = method(calibration, test, coverage)
        shares.append(((low <= test.reference_mm3) & (test.reference_mm3 <= high)).mean())
    assert coverage - 0.01 <= np.mean(shares) <= coverage + 0.03


def test_extremes_of_samples_that_are_right_are_the_interval():
    volumes = draw(19, np.random.default_rng(1))
    inside = replace(volumes, reference_mm3=volumes.samples_mm3[:, 0])
    low, high = extremes_intervals(inside, volumes, 0.9)
    assert (low >= volumes.samples_mm3.min(axis=1)).all() and (high <= volumes.samples_mm3.max(axis=1)).all()
    touched = replace(volumes, reference_mm3=volumes.samples_mm3.min(axis=1))
    low, _ = extremes_intervals(touched, volumes, 0.9)
    np.testing.assert_allclose(low, volumes.samples_mm3.min(axis=1))


def test_the_error_of_retrieval_is_that_of_the_nearest_sample():
    samples = np.array([[[90.0], [100.0], [130.0]]])
    volumes = SampleVolumes(("a",), ("one",), samples, np.array([[100.0]]), np.array([10.0]))
    errors = retrieval_errors(volumes, (np.array([[80.0]]), np.array([[130.0]])))
    assert errors.squeeze().tolist() == [pytest.approx(10 / 80), 0.0]
    errors = retrieval_errors(volumes, (np.array([[0.0]]), np.array([[120.0]])))
    assert errors.squeeze().tolist() == [9.0, pytest.approx(10 / 120)]  # of a voxel, where the end is nothing
