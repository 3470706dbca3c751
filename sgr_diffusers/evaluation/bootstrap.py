"""Estimate a statistic over the values of scans, with its bootstrap confidence interval, which the seed fixes."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

__all__ = ["Estimate", "estimate", "mean", "median"]

N_RESAMPLES = 2000
CONFIDENCE = 0.95

Values = Float[np.ndarray, "scan item"]


@dataclass(frozen=True)
class Estimate:
    """A statistic and how sure it is.

    Attributes:
        value: value of the statistic for the scans as they are; NaN without any value.
        low: lower end of the confidence interval, for another draw of as many scans.
        high: upper end of the confidence interval.
    """

    value: float
    low: float
    high: float


def median(values: Float[np.ndarray, "*batch item"]) -> Float[np.ndarray, "*batch"]:
    """Return the median over the last axis, without NaN."""
    return _without_nan(np.nanmedian, values)


def mean(values: Float[np.ndarray, "*batch item"]) -> Float[np.ndarray, "*batch"]:
    """Return the mean over the last axis, without NaN."""
    return _without_nan(np.nanmean, values)


def _without_nan(statistic: Callable, values: np.ndarray) -> np.ndarray:
    """Compute a statistic; NaN where there is no value at all, without the warning that numpy has for it."""
    result = np.full(values.shape[:-1], np.nan)
    has_value = ~np.isnan(values).all(axis=-1)
    if has_value.any():
        result[has_value] = statistic(values[has_value], axis=-1)
    return result


def estimate(
    values: Values, statistic: Callable[[np.ndarray], np.ndarray] = median, seed: int = 0, n: int = N_RESAMPLES
) -> Estimate:
    """Bootstrap over scans, with percentiles: whole scans are drawn with replacement, their classes stay together.

    Args:
        values: `(scan, item)`, an item being a class or an image; NaN where there is no value.
        statistic: function that computes the statistic over the last axis of `(resample, scan * item)`.
        seed: seed of the draws.
        n: number of resamples.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = float(statistic(values.reshape(1, -1))[0])
    if len(values) == 1:  # scipy asks for two
        return Estimate(value, value, value)

    def of_scans(scans: Integer[np.ndarray, "*resample scan"], axis: int) -> Float[np.ndarray, "*resample"]:
        return statistic(values[scans].reshape(*scans.shape[:-1], -1))

    from scipy import stats

    rng, scans = np.random.default_rng(seed), np.arange(len(values))
    with warnings.catch_warnings():  # of resamples without any value, which are left out below
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap((scans,), of_scans, n_resamples=n, method="percentile", random_state=rng)
    known = result.bootstrap_distribution[~np.isnan(result.bootstrap_distribution)]
    if not len(known):
        return Estimate(value, float("nan"), float("nan"))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(known, (tail, 100 - tail))
    return Estimate(value, float(low), float(high))
