"""Draws sampling masks for a matrix size and an acceleration: bool arrays `(y, x)`, true where measured.

Every mask has its k-space centre at `n // 2`, as `fft2c` has. Randomness comes from the `seed` alone: the same
seed gives the same mask, and no global random state is read or moved.
"""

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from jaxtyping import Bool, Shaped

_MAX_STARTS = 10


@dataclass(frozen=True)
class SamplingMask:
    """A sampling mask and what it amounts to.

    Attributes:
        mask: sampling mask `(y, x)`, bool, true where k-space is measured.
        acceleration: Number of k-space positions over number of measured ones, as reached (not as asked for).
    """

    mask: Bool[np.ndarray, "y x"]
    acceleration: float


def poisson_disc_mask(
    shape: tuple[int, int],
    acceleration: int | float,
    calibration_shape: tuple[int, int] = (24, 24),
    seed: int = 0,
    crop_corners: bool = True,
    tolerance: float = 0.05,
    max_attempts: int = 20,
) -> SamplingMask:
    """Draw a variable-density Poisson-disc mask with a fully sampled calibration box, as SKM-TEA's (Bridson 2007).

    The sampler is sigpy's. Its own search for the density has no bound on its attempts and does not end where no
    density comes within its tolerance, so the bisection is done here: besides the densest masks that it starts from,
    at most `max_attempts` are drawn, and the nearest one is returned.

    Args:
        shape: Matrix size (y, x).
        acceleration: Wanted acceleration over the whole matrix, calibration box included.
        calibration_shape: Size (y, x) of the box about the centre that is fully sampled; (0, 0) for none.
        seed: Seed of the mask, a non-negative integer.
        crop_corners: Flag to leave out what is beyond the ellipse that touches the edges of k-space.
        tolerance: Largest deviation from `acceleration` that is accepted, relative.
        max_attempts: Largest number of masks to draw. Each costs some 10 ms for a 512 x 160 matrix.

    Raises:
        ValueError: an argument is out of range, the calibration box alone holds more samples than allowed, or no
            acceleration within `tolerance` was reached; the message says which was.
    """
    from sigpy.mri.samp import _poisson  # the public function is this and the unbounded search

    box = _calibration_box(shape, calibration_shape)
    _check_acceleration(shape, acceleration, calibration_shape)
    if max_attempts < 1 or not 0 < tolerance < 1 or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(
            "`max_attempts` must be 1 or more, `tolerance` between 0 and 1 and `seed` a whole number "
            f"that is not negative, got {max_attempts}, {tolerance} and {seed!r}."
        )
    radius = _radius_beyond(shape, calibration_shape)

    def draw(slope: float) -> SamplingMask:
        spacing_y, spacing_x = (np.maximum((1 + slope * radius) * n / max(shape), 1.0) for n in shape)
        mask = _poisson(shape[1], shape[0], 30, spacing_x, spacing_y, tuple(calibration_shape), sampler_seed) > 0
        if crop_corners:
            mask &= radius < 1
        mask[box] = True
        return SamplingMask(mask, float(mask.size / mask.sum()))

    # sigpy's sampler starts at a random position; inside the calibration box it finds no neighbour and ends at once.
    for attempt in range(_MAX_STARTS):
        sampler_seed = seed if attempt == 0 else int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0])
        best = draw(slope=0.0)  # the densest there is
        if best.mask.sum() > 1.5 * calibration_shape[0] * calibration_shape[1]:
            break
    low, high = 0.0, float("inf")  # of the slope at which spacing grows from the calibration box outwards
    for _ in range(max_attempts):
        if abs(best.acceleration - acceleration) <= 0.01 * acceleration:
            break
        slope = (low + high) / 2 if np.isfinite(high) else max(2 * low, 1.0)
        drawn = draw(slope)
        best = min(best, drawn, key=lambda one: abs(one.acceleration - acceleration))
        low, high = (slope, high) if drawn.acceleration < acceleration else (low, slope)
    if abs(best.acceleration - acceleration) > tolerance * acceleration:
        raise ValueError(
            f"`acceleration` {acceleration} was not reached within {tolerance:.0%} for a {shape} matrix with a "
            f"{tuple(calibration_shape)} calibration box: the nearest of {max_attempts} attempts "
            f"has {best.acceleration:.2f}. Take another `acceleration` or a larger matrix; in Python, also another "
            "`calibration_shape`, `crop_corners` or `tolerance`."
        )
    return best


def pad_mask(mask: Shaped[np.ndarray, "y x"], shape: tuple[int, int]) -> Bool[np.ndarray, "padded_y padded_x"]:
    """Zero-pad a stored mask about the centre to the matrix of the k-space, as SKM-TEA's are to be.

    Before the mask goes the floor of half the difference, after it the rest: (416, 80) to (512, 160) puts 48 rows
    before and after and 40 columns.

    Args:
        mask: Sampling mask, bool or 0/1.
        shape: Matrix size (y, x) to reach.

    Raises:
        ValueError: the mask is larger than `shape`, is not 2-D or holds other values than 0 and 1.
    """
    if mask.ndim != 2 or any(have > want for have, want in zip(mask.shape, shape, strict=True)):
        raise ValueError(
            f"`mask` must be 2-D and at most {tuple(shape)}, the matrix of the k-space, got {mask.shape}."
        )
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("`mask` must hold only 0 and 1 (or false and true), got other values. Pass `mask != 0`.")
    before = [(want - have) // 2 for have, want in zip(mask.shape, shape, strict=True)]
    padded = np.zeros(shape, dtype=bool)
    padded[before[0] : before[0] + mask.shape[0], before[1] : before[1] + mask.shape[1]] = mask
    return padded


def calibration_region(mask: Shaped[np.ndarray, "y x"]) -> tuple[slice, slice]:
    """Find the largest fully sampled rectangle that holds the k-space centre; empty if the centre is not measured.

    Of all such rectangles the one with the longest shorter side, and among these the one with the largest area.

    Returns:
        Rows and columns of the rectangle.
    """
    mask = np.asarray(mask).astype(bool)
    y, x = (n // 2 for n in mask.shape)

    # How many entries of each column are measured from the centre row on, and up to it.
    below = np.cumprod(mask[y:], axis=0).sum(axis=0)
    above = np.cumprod(mask[y::-1], axis=0).sum(axis=0)
    # Element (i, j): of the columns from x - i to x + j.
    below, above = (
        np.minimum.outer(np.minimum.accumulate(n[x::-1]), np.minimum.accumulate(n[x:])) for n in (below, above)
    )
    height = np.maximum(below + above - 1, 0)
    width = np.add.outer(np.arange(x + 1), np.arange(mask.shape[1] - x)) + 1
    is_best = np.minimum(height, width) == np.minimum(height, width).max()
    left, right = np.unravel_index(np.argmax(height * width * is_best), height.shape)
    if height[left, right] == 0:
        return slice(y, y), slice(x, x)
    return slice(int(y + 1 - above[left, right]), int(y + below[left, right])), slice(
        int(x - left), int(x + right + 1)
    )


_LEAST_CENTRE = 4  # narrower ones are there by chance


def mask_family(mask: Shaped[np.ndarray, "y x"]) -> str:
    """Name the kind of a mask: "lines", "points", or "points around a centre of N or N + 1".

    Masks of different kinds leave different parts of an image open at the same acceleration. N is the even width of
    the fully sampled centre, which may be one wider by chance.
    """
    mask = np.asarray(mask).astype(bool)
    measured = mask[np.ix_(mask.any(axis=1), mask.any(axis=0))]  # without lines that were never acquired
    if measured.all():
        return "lines"
    width = min(side.stop - side.start for side in calibration_region(mask)) // 2 * 2
    return f"points around a centre of {width} or {width + 1}" if width >= _LEAST_CENTRE else "points"


def _calibration_box(shape: tuple[int, int], calibration_shape: tuple[int, int]) -> tuple[slice, slice]:
    if len(shape) != 2 or min(shape) < 1 or len(calibration_shape) != 2:
        raise ValueError(
            f"`shape` and calibration shape must be two sizes (y, x), got {shape} and {calibration_shape}."
        )
    if any(not 0 <= box <= n for box, n in zip(calibration_shape, shape, strict=True)):
        raise ValueError(f"the calibration region must be from 0 to the matrix {shape}, got {calibration_shape}.")
    y, x = (slice(n // 2 - box // 2, n // 2 - box // 2 + box) for box, n in zip(calibration_shape, shape, strict=True))
    return y, x


def _check_acceleration(
    shape: tuple[int, int], acceleration: int | float, calibration_shape: tuple[int, int]
) -> float:
    """Number of samples that an acceleration allows."""
    n_positions = shape[0] * shape[1]
    if not isinstance(acceleration, Real) or not 1 < acceleration <= n_positions:
        raise ValueError(
            f"`acceleration` must be above 1 and at most {n_positions} for a {shape} matrix, got {acceleration!r}."
        )
    budget = n_positions / acceleration
    n_calibration = calibration_shape[0] * calibration_shape[1]
    if n_calibration > budget:
        raise ValueError(
            f"`acceleration` {acceleration} allows {budget:.0f} samples of a {shape} matrix, but the "
            f"{tuple(calibration_shape)} calibration box alone has {n_calibration}. Lower one of them."
        )
    return budget


def _radius_beyond(shape: tuple[int, int], calibration_shape: tuple[int, int]) -> np.ndarray:
    """Return the distance from the calibration box `(y, x)`, 1 at the middle of each edge of k-space."""
    squares = []
    for n, box in zip(shape, calibration_shape, strict=True):
        distance = np.maximum(np.abs(np.arange(n) - n / 2) - box / 2, 0)
        squares.append((distance / max(distance.max(), 1e-9)) ** 2)
    return np.sqrt(squares[0][:, None] + squares[1][None, :])


__all__ = ["SamplingMask", "calibration_region", "mask_family", "pad_mask", "poisson_disc_mask"]
