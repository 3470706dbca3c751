import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgr_diffusers.calibration.risk_control import (
    confident_strength,
    controlled_strength,
    excess_losses,
    hoeffding_bentkus,
    miss_losses,
)

few = settings(derandomize=True, max_examples=50, deadline=None)

STRENGTHS = np.array([0.01, 0.02, 0.03, 0.04])


def masks(*rows):
    return np.array(rows, dtype=bool)


def test_miss_of_the_union_over_smaller_strengths():
    reference = masks([1, 1, 1, 1, 0])[0]
    upper = masks([1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [1, 1, 1, 0, 0])
    assert miss_losses(upper, reference).tolist() == [0.75, 0.5, 0.25]
    assert miss_losses(upper, np.zeros(5, bool)).tolist() == [0.0, 0.0, 0.0]


def test_excess_over_larger_strengths():
    reference = masks([1, 1, 0, 0, 0])[0]
    lower = masks([1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0])
    assert excess_losses(lower, reference).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert excess_losses(lower, np.zeros(5, bool)).tolist() == [1.0, 1.0, 1.0, 0.0]


@few
@given(seed=st.integers(0, 10_000))
def test_losses_are_monotone_for_any_segmentations(seed):
    rng = np.random.default_rng(seed)
    segmentations, reference = rng.random((5, 3, 4, 4)) < rng.random(), rng.random((3, 4, 4)) < rng.random()
    for losses in (miss_losses(segmentations, reference), excess_losses(segmentations, reference)):
        assert (np.diff(losses) <= 0).all() and losses.min() >= 0 and losses.max() <= 1


@few
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=2, max_size=20),
    alpha=st.floats(0.05, 0.6),
)
def test_expected_loss_of_any_exchangeable_scans_is_controlled(rows, alpha):
    """Each of the n + 1 scans is the new one with the same probability; an infinite strength has no loss."""
    losses = np.sort(np.array(rows) / 4.0, axis=1)[:, ::-1].copy()
    risk = 0.0
    for new in range(len(losses)):
        strength = controlled_strength(np.delete(losses, new, axis=0), STRENGTHS, alpha)
        risk += 0.0 if math.isinf(strength) else losses[new, STRENGTHS == strength][0]
    assert risk / len(losses) <= alpha + 1e-9


def test_the_smallest_controlled_strength_is_taken():
    losses = np.tile([1.0, 0.3, 0.1, 0.0], (19, 1))
    assert controlled_strength(losses, STRENGTHS, 0.335) == 0.02
    assert controlled_strength(losses, STRENGTHS, 0.2) == 0.03
    assert controlled_strength(losses, STRENGTHS, 0.04) == math.inf


def test_high_probability_control_over_simulated_calibration_sets():
    """Only the two largest strengths have a mean loss of at most 0.15; the third one just misses it."""
    rng, means, delta, n_sets = np.random.default_rng(0), np.array([0.5, 0.16, 0.1, 0.02]), 0.2, 1000
    chosen = []
    for _ in range(n_sets):
        losses = (rng.random((60, 1)) < means).astype(np.float64)
        chosen.append(confident_strength(losses, STRENGTHS, 0.15, delta))
    too_weak = np.mean(np.array(chosen) < 0.03)
    assert too_weak <= delta
    assert np.mean(np.isfinite(chosen)) > 0.9  # not by refusing everything


def test_p_value_is_below_both_bounds_and_falls_with_the_loss():
    few, many = np.repeat([0.0, 1.0], [58, 2]), np.repeat([0.0, 1.0], [50, 10])
    assert hoeffding_bentkus(few, 0.2) < hoeffding_bentkus(many, 0.2) < 1
    assert hoeffding_bentkus(np.ones(60), 0.2) == 1.0
    # no loss at all: Hoeffding's bound is (1 - alpha)^n
    assert hoeffding_bentkus(np.zeros(60), 0.2) == pytest.approx(0.8**60)


def test_testing_stops_at_the_first_strength_that_fails():
    losses = np.tile([0.0, 0.6, 0.0, 0.0], (80, 1))
    assert confident_strength(losses, STRENGTHS, 0.1) == 0.03


@pytest.mark.parametrize("choose", [controlled_strength, confident_strength])
def test_bad_losses_and_strengths_are_refused(choose):
    with pytest.raises(ValueError, match="`losses` must be from 0 to 1"):
        choose(np.full((5, 4), 1.5), STRENGTHS, 0.1)
    with pytest.raises(ValueError, match="`strengths` must rise"):
        choose(np.zeros((5, 4)), STRENGTHS[::-1].copy(), 0.1)


def test_rising_losses_are_refused():
    with pytest.raises(ValueError, match=r"must not rise with the strength. Take them from `miss_losses`"):
        controlled_strength(np.tile([0.1, 0.2, 0.1, 0.0], (5, 1)), STRENGTHS, 0.3)
