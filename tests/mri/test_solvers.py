import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgr_diffusers.mri.operators import SenseOperator
from sgr_diffusers.mri.solvers import CGStatus, conjugate_gradient

few = settings(derandomize=True, max_examples=10, deadline=None)


def random_complex(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_problem(size=(5, 4), n_coils=3, n_samples=2, seed=0, dtype=torch.complex128):
    """Operator with a different mask for each sample, a right-hand side in its range and a start."""
    mask = torch.rand((n_samples, *size), generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[:, size[0] // 2] = True
    operator = SenseOperator(random_complex(n_samples, n_coils, *size, seed=seed + 1, dtype=dtype), mask)
    rhs = operator.adjoint(random_complex(n_samples, n_coils, *size, seed=seed + 2, dtype=dtype))
    return operator, rhs, random_complex(n_samples, *size, seed=seed + 3, dtype=dtype)


def dense(normal, size):
    """Matrix of a linear map of images, column by column."""
    n = size[0] * size[1]
    basis = torch.eye(n, dtype=torch.complex128).reshape(n, *size)
    return torch.stack([normal(one).flatten() for one in basis], dim=1)


@few
@given(st.tuples(st.integers(2, 5), st.integers(2, 5)), st.integers(0, 50))
def test_converges_to_the_dense_solution(size, seed):
    operator, rhs, start = make_problem(size, n_samples=1, seed=seed)

    def shifted(image):
        return operator.normal(image) + 0.3 * image

    result = conjugate_gradient(shifted, rhs, start, max_iterations=200, tolerance=1e-12)
    expected = torch.linalg.solve(dense(lambda one: shifted(one[None])[0], size), rhs.flatten())
    torch.testing.assert_close(result.solution.flatten(), expected, rtol=1e-8, atol=1e-8)
    assert result.status.tolist() == [CGStatus.CONVERGED]
    assert result.residual_norm.item() <= 1e-12 * torch.linalg.norm(rhs).item()


def test_textbook_iterates_and_residual():
    operator, rhs, start = make_problem(n_samples=1)
    x, r = start, rhs - operator.normal(start)
    p = r
    for _ in range(5):  # the textbook, one sample, complex inner products
        q = operator.normal(p)
        alpha = torch.vdot(r.flatten(), r.flatten()) / torch.vdot(p.flatten(), q.flatten())
        x, r_next = x + alpha * p, r - alpha * q
        p = r_next + torch.vdot(r_next.flatten(), r_next.flatten()) / torch.vdot(r.flatten(), r.flatten()) * p
        r = r_next
    result = conjugate_gradient(operator.normal, rhs, start)
    torch.testing.assert_close(result.solution, x)
    torch.testing.assert_close(result.residual_norm[0], torch.linalg.norm(rhs - operator.normal(x)))
    assert result.iterations.tolist() == [5]
    assert result.status.tolist() == [CGStatus.MAX_ITERATIONS]


def test_batch_of_n_is_n_batches_of_one():
    operator, rhs, start = make_problem((24, 20), n_coils=8, n_samples=4, dtype=torch.complex64)
    start = start * torch.tensor([1e-3, 1.0, 1e3, 0.0]).reshape(4, 1, 1)  # scales that summed scalars would mix up
    together = conjugate_gradient(operator.normal, rhs, start)
    for i in range(4):
        alone = conjugate_gradient(operator[i].normal, rhs[i], start[i])
        torch.testing.assert_close(together.solution[i], alone.solution, rtol=1e-6, atol=0)
        torch.testing.assert_close(together.residual_norm[i], alone.residual_norm, rtol=1e-6, atol=0)


def test_rhs_broadcasts_over_branches():
    operator, rhs, _ = make_problem(n_samples=1)
    start = random_complex(3, 5, 4, seed=9)
    result = conjugate_gradient(operator.normal, rhs, start)
    assert result.solution.shape == (3, 5, 4)
    torch.testing.assert_close(result.solution[2], conjugate_gradient(operator[0].normal, rhs[0], start[2]).solution)


def test_residual_of_zero_keeps_the_start_and_a_finite_gradient():
    start = random_complex(2, 5, 4).requires_grad_()
    rhs = start.detach().clone()
    rhs[1] += 1
    result = conjugate_gradient(lambda image: image.clone(), rhs, start)  # identity: sample 0 starts at the solution
    assert torch.equal(result.solution[0], start[0])
    torch.testing.assert_close(result.solution[1], rhs[1])
    assert result.status.tolist() == [CGStatus.CONVERGED, CGStatus.CONVERGED]
    assert result.iterations.tolist() == [0, 1]
    result.solution.abs().square().sum().backward()
    assert torch.isfinite(torch.view_as_real(start.grad)).all()
    torch.testing.assert_close(start.grad[0], 2 * start.detach()[0])


def test_zero_problem_stays_zero():
    operator, rhs, start = make_problem()
    start = torch.zeros_like(start).requires_grad_()
    result = conjugate_gradient(operator.normal, torch.zeros_like(rhs), start)
    result.solution.real.sum().backward()
    assert not result.solution.any()
    assert torch.isfinite(torch.view_as_real(start.grad)).all()


def test_right_hand_side_outside_the_range_breaks_down_without_nan():
    weight = torch.tensor([[1.0, 0.0]])  # the second pixel is invisible
    rhs = torch.tensor([[[0.0, 1.0]]], dtype=torch.complex128)
    start = torch.zeros(1, 1, 2, dtype=torch.complex128, requires_grad=True)
    result = conjugate_gradient(lambda image: weight * image, rhs, start)
    assert result.status.tolist() == [CGStatus.BREAKDOWN]
    assert result.residual_norm.tolist() == [1.0]
    result.solution.real.sum().backward()
    assert torch.isfinite(torch.view_as_real(start.grad)).all()


def test_tolerance_stops_each_sample_for_itself():
    operator, rhs, start = make_problem(n_samples=3)
    exact = conjugate_gradient(operator.normal, rhs, start, max_iterations=100, tolerance=1e-10).solution
    start = torch.stack([exact[0], start[1], start[2]])
    result = conjugate_gradient(operator.normal, rhs, start, max_iterations=100, tolerance=1e-3)
    assert result.iterations[0] == 0
    assert (result.iterations[1:] > 0).all()
    assert (result.status == CGStatus.CONVERGED).all()
    assert (result.residual_norm <= 1e-3 * torch.linalg.vector_norm(rhs, dim=(-2, -1))).all()
    torch.testing.assert_close(result.solution[0], exact[0], rtol=0, atol=0)


@pytest.mark.parametrize("max_iterations", [0, 1, 3])
def test_gradient_is_that_of_the_iterate(max_iterations):
    operator, rhs, start = make_problem((3, 3), n_coils=2)

    def solve(rhs, start):
        return conjugate_gradient(operator.normal, rhs, start, max_iterations).solution

    assert torch.autograd.gradcheck(solve, (rhs.requires_grad_(), start.requires_grad_()), atol=1e-5)


def test_gradient_with_a_stopped_sample():
    operator, rhs, start = make_problem((3, 3), n_coils=2)
    rhs[0] = operator.normal(start)[0]  # gradient is checked for the other one, which shares the graph
    moving = start[1:].clone().requires_grad_()

    def solve(moving):
        return conjugate_gradient(operator.normal, rhs, torch.cat([start[:1], moving]), 3).solution[1]

    assert torch.autograd.gradcheck(solve, moving, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("max_iterations", -1), ("tolerance", -0.1)])
def test_negative_settings_are_refused(name, value):
    operator, rhs, start = make_problem()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        conjugate_gradient(operator.normal, rhs, start, **{name: value})


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    operator, rhs, start = make_problem()
    with pytest.raises(ValueError, match="must broadcast"):
        conjugate_gradient(operator.normal, rhs, torch.cat([start, start[:1]]))
    with pytest.raises(TypeError, match="one dtype"):
        conjugate_gradient(operator.normal, rhs, start.to(torch.complex64))


def test_rounding_errors_are_not_blown_up_once_a_projection_has_converged():
    """With a single coil one iteration is exact; all that follow must leave the solution alone."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 16, generator=generator) < 0.4
    operator = SenseOperator(torch.ones(1, 20, 16, dtype=torch.complex64), mask)
    start, truth = (torch.view_as_complex(100 * torch.randn(6, 20, 16, 2, generator=generator)) for _ in range(2))
    rhs = operator.normal(truth)
    once, often = (conjugate_gradient(operator.normal, rhs, start, max_iterations=n).solution for n in (1, 50))
    torch.testing.assert_close(often, once, rtol=1e-4, atol=1e-3)
