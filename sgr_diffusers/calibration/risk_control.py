"""Strength of guidance for a bounded overlap error: conformal risk control, and the Hoeffding-Bentkus test.

A loss lies between 0 and 1 and belongs to one scan, one class and one strength b:

    miss:    share of the reference S that the upper segmentation S_up leaves out, |S minus S_up| / |S|
    excess:  what the lower segmentation S_low holds beyond the reference, |S_low minus S| / |S|, at most 1

Both are made monotone, so that a larger b is never worse: S_up is the union over the strengths up to b, and the excess
is the largest over the strengths from b on.

`controlled_strength` bounds the expected loss of a new scan by alpha (Angelopoulos et al. 2024, "Conformal risk
control"). `confident_strength` bounds the mean loss of all new scans by alpha, with probability 1 - delta over
calibration sets (Angelopoulos et al. 2021, "Learn then test"), and needs no monotone loss.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import special, stats

__all__ = ["confident_strength", "controlled_strength", "excess_losses", "hoeffding_bentkus", "miss_losses"]


def miss_losses(
    upper: Bool[np.ndarray, " strength *voxels"], reference: Bool[np.ndarray, " *voxels"]
) -> Float[np.ndarray, " strength"]:
    """Return the share of the reference that the union of S_up over strengths up to each strength leaves out.

    Args:
        upper: S_up of one scan and class for each strength, in rising order of strength.
        reference: S of the scan and class. An empty one has no loss.
    """
    union = np.logical_or.accumulate(upper, axis=0)
    return _share(reference & ~union, reference)


def excess_losses(
    lower: Bool[np.ndarray, " strength *voxels"], reference: Bool[np.ndarray, " *voxels"]
) -> Float[np.ndarray, " strength"]:
    """Return the largest excess of S_low beyond the reference over strengths from each strength on, at most 1.

    Args:
        lower: S_low of one scan and class for each strength, in rising order of strength.
        reference: S of the scan and class. Beyond an empty one every voxel is a loss of 1.
    """
    excess = np.minimum(_share(lower & ~reference, reference), 1.0)
    return np.maximum.accumulate(excess[::-1])[::-1]


def _share(part: Bool[np.ndarray, " strength *voxels"], whole: Bool[np.ndarray, " *voxels"]) -> np.ndarray:
    n_part = part.reshape(len(part), -1).sum(axis=1)
    return n_part / max(int(whole.sum()), 1)


def controlled_strength(
    losses: Float[np.ndarray, "scan strength"], strengths: Float[np.ndarray, " strength"], alpha: float
) -> float:
    """Find the smallest strength b with n / (n + 1) R(b) + 1 / (n + 1) <= alpha, R being the mean loss of n scans.

    Args:
        losses: monotone loss of each calibration scan at each strength.
        strengths: strengths b in rising order.
        alpha: largest expected loss.

    Returns:
        The strength; infinity where none of them is strong enough. An infinite strength stands for the segmentation
        that has no loss: everything for S_up, nothing for S_low.

    Raises:
        ValueError: losses are not monotone or out of range, or strengths are out of order.
    """
    _check_losses(losses, strengths)
    if (np.diff(losses, axis=1) > 0).any():
        raise ValueError("`losses` must not rise with the strength. Take them from `miss_losses` or `excess_losses`.")
    bound = (losses.sum(axis=0) + 1) / (len(losses) + 1)
    controlled = strengths[bound <= alpha]
    return float(controlled[0]) if len(controlled) else math.inf


def confident_strength(
    losses: Float[np.ndarray, "scan strength"],
    strengths: Float[np.ndarray, " strength"],
    alpha: float,
    delta: float = 0.1,
) -> float:
    """Find the smallest strength that fixed-sequence testing reaches from the largest one downward.

    Args:
        losses: loss of each calibration scan at each strength.
        strengths: strengths b in rising order.
        alpha: largest mean loss.
        delta: largest probability, over calibration sets, that the mean loss exceeds `alpha`.

    Returns:
        The strength; infinity where the test fails at the largest strength (see `controlled_strength`).

    Raises:
        ValueError: losses are out of range, or strengths are out of order.
    """
    _check_losses(losses, strengths)
    reached = math.inf
    for strength, column in zip(strengths[::-1], losses.T[::-1], strict=True):
        if hoeffding_bentkus(column, alpha) > delta:
            break
        reached = float(strength)
    return reached


def hoeffding_bentkus(losses: Float[np.ndarray, " scan"], alpha: float) -> float:
    """Compute the p-value of a mean loss above `alpha`, the smaller of Hoeffding's and Bentkus' bound."""
    n_scans, mean = len(losses), min(float(losses.mean()), alpha)
    divergence = special.rel_entr(mean, alpha) + special.rel_entr(1 - mean, 1 - alpha)
    hoeffding = math.exp(-n_scans * divergence)
    bentkus = math.e * stats.binom.cdf(math.ceil(losses.sum()), n_scans, alpha)
    return float(min(hoeffding, bentkus, 1.0))


def _check_losses(losses: np.ndarray, strengths: np.ndarray) -> None:
    if not ((losses >= 0) & (losses <= 1)).all():
        raise ValueError(f"`losses` must be from 0 to 1, got {losses.min()} to {losses.max()}.")
    if (np.diff(strengths) <= 0).any():
        raise ValueError(f"`strengths` must rise, got {strengths.tolist()}.")
