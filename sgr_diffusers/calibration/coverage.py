"""Spread of the coverage over calibration sets, and the interval of the coverage that a test set shows."""

import numpy as np
from scipy import stats

from .quantiles import quantile_rank

__all__ = ["clopper_pearson", "coverage_spread"]


def coverage_spread(
    n_scans: int, alpha: float, n_sides: int = 2, n_test: int | None = None
) -> stats.distributions.rv_frozen:
    """Return the distribution (of scipy, frozen) of the coverage that calibration sets of `n_scans` scans give.

    With continuous scores, the coverage of one quantile of rank k is Beta(k, n + 1 - k). An interval has two quantiles
    at `alpha / 2`, each of which leaves out m = n + 1 - k of n + 1 equally probable places for a new score. The
    interval's coverage is Beta(n + 1 - 2 m, 2 m) where the two scores put the scans in opposite orders, as for bounds
    of equal width, and close to that otherwise. Ties raise the coverage.

    Args:
        n_scans: number of calibration scans.
        alpha: probability of a miss that was asked for, of all sides together.
        n_sides: 1 for a quantile alone, 2 for an interval.
        n_test: number of test scans; the distribution is then that of the number of covered ones (beta-binomial).

    Raises:
        ValueError: too few scans for a finite quantile, which covers always.
    """
    n_beyond = n_sides * (n_scans + 1 - quantile_rank(n_scans, alpha / n_sides))
    if n_beyond == 0:
        raise ValueError(
            f"`n_scans` {n_scans} is too small for `alpha` {alpha:g}: the quantile is infinite and covers always. "
            f"At least {int(np.ceil(n_sides / alpha - 1))} scans are needed."
        )
    parameters = n_scans + 1 - n_beyond, n_beyond
    return stats.beta(*parameters) if n_test is None else stats.betabinom(n_test, *parameters)


def clopper_pearson(n_covered: int, n_test: int, level: float = 0.95) -> tuple[float, float]:
    """Compute the exact confidence interval of the coverage from the number of test scans that were covered."""
    interval = stats.binomtest(n_covered, n_test).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)
