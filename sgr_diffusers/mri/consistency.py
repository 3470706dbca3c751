"""Data consistency: changes an image so that it agrees with the measured k-space, and measures how far it does.

Images are complex `(*batch, y, x)`, k-space complex `(*batch, coil, y, x)`; they broadcast as in `SenseOperator`.
"""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from .methods import CONSISTENCY, FINAL_CONSISTENCY, NOISE_AWARE_ITERATIONS
from .operators import SenseOperator
from .solvers import CGResult, conjugate_gradient


def replace_measured(
    operator: SenseOperator, image: Complex[Tensor, "*image y x"], kspace: Complex[Tensor, "*data coil y x"]
) -> Complex[Tensor, "*out y x"]:
    """Replace the measured coil k-space entries of an image by the measurement and combine the coils.

    x = S^H F^H (M y + (1 - M) F S x0), divided by the sum of squares of the maps where that is positive (paper Sec. 3,
    last step). One step, not iterated: it leaves a residual for several coils, but does not fit the noise. Zero
    where all coil maps are zero.
    """
    mask = operator.mask.unsqueeze(-3)
    combined = operator.combine(torch.where(mask, kspace, operator.coil_kspace(image)))
    weight = operator.sum_of_squares
    return combined / torch.where(weight > 0, weight, 1.0)


def regularized_solution(
    operator: SenseOperator,
    image: Complex[Tensor, "*image y x"],
    kspace: Complex[Tensor, "*data coil y x"],
    weight: float = 0.05,
    max_iterations: int = 30,
    tolerance: float = 1e-5,
) -> CGResult:
    """Minimise ||A x - y||^2 + weight ||x - x0||^2, by (A^H A + weight I) x = A^H y + weight x0.

    Args:
        operator: Forward model A.
        image: image x0, also the start of the iterations.
        kspace: measured k-space y.
        weight: Weight of staying near x0; dimensionless where the squared maps sum to 1. Larger fits less noise.
        max_iterations: Cap on the conjugate gradients.
        tolerance: Relative residual at which a sample stops.

    Raises:
        ValueError: `weight` is not positive.
    """
    if not weight > 0:
        raise ValueError(f"`weight` must be positive, got {weight}; weight 0 in the limit is `nearest_consistent`.")
    rhs = operator.adjoint(kspace) + weight * image
    return conjugate_gradient(
        lambda x: operator.normal(x) + weight * x, rhs, image, max_iterations=max_iterations, tolerance=tolerance
    )


def nearest_consistent(
    operator: SenseOperator,
    image: Complex[Tensor, "*image y x"],
    kspace: Complex[Tensor, "*data coil y x"],
    max_iterations: int = 100,
    tolerance: float = 1e-5,
) -> CGResult:
    """Find the point nearest to x0 among the least-squares solutions of A x = y.

    Conjugate gradients on A^H A x = A^H y from x0 move only in the range of A^H, so what the measurement says nothing
    about stays as in x0. With noisy data and several coils this fits the noise: prefer `replace_measured` or
    `regularized_solution` unless the data is (nearly) free of noise.

    Args:
        operator: Forward model A.
        image: image x0.
        kspace: measured k-space y.
        max_iterations: Cap on the conjugate gradients; `CGResult.status` says whether it was met.
        tolerance: Relative residual at which a sample stops.
    """
    rhs = operator.adjoint(kspace)
    return conjugate_gradient(operator.normal, rhs, image, max_iterations=max_iterations, tolerance=tolerance)


_NOISE_AWARE_TOLERANCE = 1e-5


class StepConsistency:
    """Pulls the clean images that the prior predicts in one step to the measurement (paper Eq. 5).

    "cg" makes a fixed number of conjugate gradient iterations on A^H A x = A^H y, from the predicted image: the fewer,
    the less noise is fitted. "noise_aware" weighs both by what is known of their errors, and needs no such choice:

        x0' = argmin ||A x - y||^2 / sigma_y^2 + ||x - x0||^2 / r_t^2

    with the noise sigma_y of each coil and the variance r_t^2 of the image that the noise level leaves open.
    """

    def __init__(
        self,
        operator: SenseOperator,
        kspace: Complex[Tensor, "slice coil y x"],
        noise_std: Float[Tensor, "slice coil"],
        method: str = "cg",
    ) -> None:
        """Prepare the normal equations of all slices.

        Args:
            operator: forward model A of the slices.
            kspace: measured k-space y.
            noise_std: sigma_y, standard deviation of the real part of the noise, in the unit of `kspace`; for
                "noise_aware".
            method: one of `CONSISTENCY`.
        """
        self.method = method
        if method == "noise_aware":
            whitening = 1 / noise_std[:, :, None, None]
            operator, kspace = SenseOperator(operator.coil_maps * whitening, operator.mask), kspace * whitening
        self._operator, self._rhs = operator, operator.adjoint(kspace)

    def __call__(
        self,
        image: Complex[Tensor, "image y x"],
        slices: slice | Int[Tensor, " image"],
        open_variance: float,
        max_iterations: int,
    ) -> Complex[Tensor, "image y x"]:
        """Return the images made consistent; differentiable with respect to them.

        Args:
            image: predicted clean images x0.
            slices: index of the slice of each image; a single one may serve all.
            open_variance: variance r_t^2 that the noise level leaves open, for "noise_aware".
            max_iterations: most conjugate gradient iterations; "noise_aware" stops before where it has converged.
        """
        normal, rhs = self._operator[slices].normal, self._rhs[slices]
        if self.method == "cg":
            return conjugate_gradient(normal, rhs, image, max_iterations).solution
        weight = 1 / open_variance
        return conjugate_gradient(
            lambda x: normal(x) + weight * x, rhs + weight * image, image, max_iterations, _NOISE_AWARE_TOLERANCE
        ).solution


def fully_consistent(
    operator: SenseOperator,
    image: Complex[Tensor, "*image y x"],
    kspace: Complex[Tensor, "*data coil y x"],
    method: str = "replace",
) -> Complex[Tensor, "*out y x"]:
    """Make an image agree with the measurement by one of `FINAL_CONSISTENCY`: the last step of a reconstruction."""
    if method == "replace":
        return replace_measured(operator, image, kspace)
    solve = regularized_solution if method == "regularized" else nearest_consistent
    return solve(operator, image, kspace).solution


def data_residual(
    operator: SenseOperator, image: Complex[Tensor, "*image y x"], kspace: Complex[Tensor, "*data coil y x"]
) -> Float[Tensor, "*out"]:
    """Compute ||A x - y|| / ||y|| of each sample, over measured entries; without unit, 0 is an exact fit.

    Infinite (or NaN, for an image of zeros) where the measurement is all zero.
    """
    measured = kspace * operator.mask.unsqueeze(-3)
    return _norm(operator.forward(image) - measured) / _norm(measured)


def _norm(kspace: Tensor) -> Tensor:
    return torch.linalg.vector_norm(kspace, dim=(-3, -2, -1))


__all__ = [
    "CONSISTENCY",
    "FINAL_CONSISTENCY",
    "NOISE_AWARE_ITERATIONS",
    "StepConsistency",
    "data_residual",
    "fully_consistent",
    "nearest_consistent",
    "regularized_solution",
    "replace_measured",
]
