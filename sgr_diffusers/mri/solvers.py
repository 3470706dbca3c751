"""Solves linear systems with a Hermitian normal operator by conjugate gradients, each sample of a batch by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from ..utils.late_flags import LateFlags

_ROUNDING = 8  # residuals up to this many units in the last place are zero


class CGStatus(IntEnum):
    """Why conjugate gradients stopped for a sample."""

    MAX_ITERATIONS = 0
    """All iterations were spent: the rule, when a few iterations are what one wants."""
    CONVERGED = 1
    """The residual reached zero, or `tolerance` times the norm of the right-hand side."""
    BREAKDOWN = 2
    """The operator gives nothing in the search direction: what is left of the residual is outside its range."""


@dataclass
class CGResult:
    """What `conjugate_gradient` returns; every field but the first carries no gradient.

    Attributes:
        solution: Complex solution `(*batch, y, x)`.
        residual_norm: norm `(*batch)` of rhs - N x as the recursion carries it, in the unit of `rhs`.
        iterations: number `(*batch)`, int, of iterations spent on each sample.
        status: status `(*batch)`, int, a `CGStatus` for each sample.
    """

    solution: Complex[Tensor, "*batch y x"]
    residual_norm: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    status: Int[Tensor, "*batch"]


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Complex[Tensor, "*rhs_batch y x"],
    start: Complex[Tensor, "*start_batch y x"],
    max_iterations: int = 5,
    tolerance: float = 0.0,
) -> CGResult:
    """Solve N x = rhs by conjugate gradients, each sample on its own (paper Sec. 2.2; Hestenes and Stiefel 1952).

    Every scalar is a sum over the last two axes only, so a batch gives what its samples give one by one. The result is
    differentiable with respect to `rhs` and `start`: the gradient of the iterate that was computed, the step lengths'
    dependence on both included, not that of the exact solution. A sample whose residual is zero stops: it keeps
    its value and its gradient is finite.

    Args:
        normal: Hermitian positive semi-definite N on `(*batch, y, x)`, such as `SenseOperator.normal`. It must act on
            every sample by itself.
        rhs: Right-hand side; its batch axes broadcast against those of `start`.
        start: First iterate.
        max_iterations: Most iterations. With few of them the result stays near `start` where N is weak.
        tolerance: Stop a sample at a residual of `tolerance * ||rhs||`. With the default 0 every iteration is run;
            samples whose residual is zero up to rounding stand still. An accelerator makes one iteration more, in
            which all stand still, so that it is not idle while the host learns that they do.

    Raises:
        ValueError: `max_iterations` or `tolerance` is negative, or the shapes do not broadcast.
        TypeError: `rhs` and `start` differ in dtype.
    """
    if max_iterations < 0 or tolerance < 0:
        raise ValueError(
            "`max_iterations` and `tolerance` must not be negative, got "
            f"max_iterations={max_iterations} and tolerance={tolerance}."
        )
    if rhs.dtype != start.dtype:
        raise TypeError(f"`rhs` and `start` must have one dtype, got {rhs.dtype} and {start.dtype}.")
    try:
        rhs, solution = torch.broadcast_tensors(rhs, start)
    except RuntimeError as error:
        raise ValueError(
            f"`rhs` and `start` must broadcast, got shapes {tuple(rhs.shape)} and {tuple(start.shape)}."
        ) from error

    # Samples as real rows (*batch, 1, 1, 2): real arithmetic throughout, since all scalars of the method are real.
    image = normal(solution)
    residual = rhs - image
    direction = residual
    energy = _inner(residual, residual)  # (*batch, 1, 1)
    # What is below rounding error is zero: a step along it would have any length (as for a single coil, where N is a
    # projection and one iteration is exact).
    size = _inner(rhs, rhs).detach()
    rounding = _ROUNDING * torch.finfo(energy.dtype).eps
    floor = torch.maximum(tolerance**2 * size, rounding**2 * torch.maximum(size, _inner(image, image).detach()))
    active = energy.detach() > floor
    broken = torch.zeros_like(active)
    iterations = torch.zeros_like(active, dtype=torch.int64)
    going_on: list[LateFlags] = []
    for step in range(max_iterations):
        if tolerance > 0:
            going_on.append(LateFlags(active.any()))
            known = going_on[:-1] if going_on[-1].are_late else going_on
            if known and not any(known[-1].tolist()):
                break
        image = normal(direction)
        curvature = _inner(direction, image)
        broken = broken | (active & (curvature.detach() <= 0))
        active = active & ~broken
        # `where` on both sides of the division: its gradient would be NaN where 0/0 is merely discarded afterwards.
        length = torch.where(active, energy / torch.where(active, curvature, 1.0), 0.0)
        solution = _add_scaled(solution, length, direction)
        residual = _add_scaled(residual, -length, image)
        iterations += active
        previous, energy = energy, _inner(residual, residual)
        if step + 1 < max_iterations:
            was_active, active = active, active & (energy.detach() > floor)
            ratio = torch.where(active, energy / torch.where(was_active, previous, 1.0), 0.0)
            direction = _add_scaled(residual, ratio, direction)

    energy = energy.detach()
    status = torch.full_like(iterations, CGStatus.MAX_ITERATIONS)
    status.masked_fill_(energy <= floor, CGStatus.CONVERGED).masked_fill_(broken, CGStatus.BREAKDOWN)
    return CGResult(solution, energy.sqrt()[..., 0, 0], iterations[..., 0, 0], status[..., 0, 0])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the real part of <a, b> over the last two axes, which are kept with length 1."""
    return (torch.view_as_real(a) * torch.view_as_real(b)).sum(dim=(-3, -2, -1)).unsqueeze(-1).unsqueeze(-1)


def _add_scaled(a: Tensor, factor: Tensor, b: Tensor) -> Tensor:
    """Sum a + factor b for a real factor per sample, without promoting the factor to complex."""
    total = torch.addcmul(torch.view_as_real(a), factor.unsqueeze(-1), torch.view_as_real(b))
    return torch.view_as_complex(total)


__all__ = ["CGResult", "CGStatus", "conjugate_gradient"]
