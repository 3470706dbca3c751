import pytest
import torch

from sgr_diffusers.mri.consistency import (
    CONSISTENCY,
    StepConsistency,
    data_residual,
    nearest_consistent,
    regularized_solution,
    replace_measured,
)
from sgr_diffusers.mri.operators import SenseOperator, fft2c, ifft2c
from sgr_diffusers.mri.solvers import CGStatus

SIZE = (6, 5)


def random_complex(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_problem(n_coils=3, scale=1.0, seed=0, n_samples=2):
    maps = random_complex(n_samples, n_coils, *SIZE, seed=seed)
    maps = scale * maps / maps.abs().square().sum(dim=-3, keepdim=True).sqrt()
    mask = torch.rand((n_samples, *SIZE), generator=torch.Generator().manual_seed(seed + 1)) < 0.4
    operator = SenseOperator(maps, mask)
    kspace = operator.forward(random_complex(n_samples, *SIZE, seed=seed + 2))
    return operator, random_complex(n_samples, *SIZE, seed=seed + 3), kspace


def dense(operator):
    """Matrix of an operator without batch axes."""
    n = SIZE[0] * SIZE[1]
    basis = torch.eye(n, dtype=torch.complex128).reshape(n, *SIZE)
    return torch.stack([operator.forward(one).flatten() for one in basis], dim=1)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_replace_measured_is_the_formula(scale):
    operator, image, kspace = make_problem(scale=scale)
    mask = operator.mask[:, None]
    filled = torch.where(mask, kspace, fft2c(operator.coil_maps * image[:, None]))
    expected = (operator.coil_maps.conj() * ifft2c(filled)).sum(dim=1) / scale**2
    torch.testing.assert_close(replace_measured(operator, image, kspace), expected)


def test_replace_measured_is_exact_for_one_coil_whatever_its_map():
    operator, image, kspace = make_problem(n_coils=1, scale=2.0)
    result = replace_measured(operator, image, kspace)
    torch.testing.assert_close(operator.forward(result), kspace)


def test_replace_measured_does_not_move_a_consistent_image_and_is_zero_outside_the_maps():
    operator, image, _ = make_problem(scale=0.7)
    torch.testing.assert_close(replace_measured(operator, image, operator.forward(image)), image)
    maps = operator.coil_maps.clone()
    maps[..., 0] = 0
    result = replace_measured(SenseOperator(maps, operator.mask), image, operator.forward(image))
    assert not result[..., 0].any()
    assert torch.isfinite(torch.view_as_real(result)).all()


def test_replace_measured_can_be_differentiated():
    operator, image, kspace = make_problem()
    assert torch.autograd.gradcheck(
        lambda x: replace_measured(operator, x, kspace), image.requires_grad_(), fast_mode=True
    )


def test_regularized_solution_is_the_dense_one():
    operator, image, kspace = make_problem()
    result = regularized_solution(operator, image, kspace, weight=0.2, max_iterations=200, tolerance=1e-12)
    for i in range(2):
        matrix = dense(operator[i])
        left = matrix.mH @ matrix + 0.2 * torch.eye(matrix.shape[1])
        expected = torch.linalg.solve(left, matrix.mH @ kspace[i].flatten() + 0.2 * image[i].flatten())
        torch.testing.assert_close(result.solution[i].flatten(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_regularized_solution_refuses_a_weight_that_is_not_positive(weight):
    with pytest.raises(ValueError, match="`weight` must be positive"):
        regularized_solution(*make_problem(), weight=weight)


def test_nearest_consistent_is_the_pseudoinverse_step():
    operator, image, kspace = make_problem(n_coils=2)
    kspace = kspace + 0.1 * random_complex(*kspace.shape, seed=8) * operator.mask[:, None]  # no exact solution
    result = nearest_consistent(operator, image, kspace, max_iterations=500, tolerance=1e-12)
    assert (result.status == CGStatus.CONVERGED).all()
    for i in range(2):
        matrix = dense(operator[i])
        step = torch.linalg.pinv(matrix, rtol=1e-9) @ (kspace[i] - operator[i].forward(image[i])).flatten()
        torch.testing.assert_close(result.solution[i].flatten(), image[i].flatten() + step, rtol=1e-6, atol=1e-6)


def test_data_residual_is_relative_and_per_sample():
    operator, image, kspace = make_problem()
    expected = torch.stack(
        [torch.linalg.norm(operator[i].forward(image[i]) - kspace[i]) / torch.linalg.norm(kspace[i]) for i in range(2)]
    )
    torch.testing.assert_close(data_residual(operator, image, kspace), expected)
    junk = kspace + ~operator.mask[:, None]  # what is not measured does not count
    torch.testing.assert_close(data_residual(operator, image, junk), expected)
    torch.testing.assert_close(data_residual(operator, 1e6 * image, 1e6 * kspace), expected)


def noise_aware_case():
    operator, image, kspace = make_problem()
    return operator, image, kspace, torch.tensor([[0.1, 0.2, 0.4], [0.3, 0.3, 0.3]], dtype=torch.float64)


def test_noise_aware_consistency_minimises_its_weighted_sum():
    operator, image, kspace, noise_std = noise_aware_case()
    consistent = StepConsistency(operator, kspace, noise_std, "noise_aware")
    result = consistent(image, slice(None), open_variance=0.5, max_iterations=200)
    for k in range(2):
        matrix, weights = dense(operator[k]), noise_std[k].repeat_interleave(SIZE[0] * SIZE[1]) ** -2
        normal = matrix.mH @ (weights[:, None] * matrix) + torch.eye(matrix.shape[1]) / 0.5
        rhs = matrix.mH @ (weights * kspace[k].flatten()) + image[k].flatten() / 0.5
        expected = torch.linalg.solve(normal, rhs).reshape(SIZE)
        torch.testing.assert_close(result[k], expected, rtol=1e-2, atol=1e-2)


def test_noise_aware_consistency_follows_the_data_without_noise_and_the_prior_without_an_open_question():
    operator, image, kspace, noise_std = noise_aware_case()
    fits = StepConsistency(operator, kspace, 1e-4 * noise_std, "noise_aware")(image, slice(None), 1.0, 200)
    assert data_residual(operator, fits, kspace).max() < 0.05
    stays = StepConsistency(operator, kspace, noise_std, "noise_aware")(image, slice(None), 1e-8, 10)
    torch.testing.assert_close(stays, image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", CONSISTENCY)
def test_step_consistency_treats_each_image_by_itself_and_can_be_differentiated(method):
    operator, image, kspace, noise_std = noise_aware_case()
    consistent = StepConsistency(operator, kspace, noise_std, method)
    together = consistent(image, torch.tensor([0, 1]), 0.5, 3)
    for k in range(2):
        torch.testing.assert_close(consistent(image[k : k + 1], slice(k, k + 1), 0.5, 3)[0], together[k])
    assert torch.autograd.gradcheck(
        lambda x: consistent(x, slice(None), 0.5, 3), image.clone().requires_grad_(), fast_mode=True
    )
