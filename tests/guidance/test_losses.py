import pytest
import torch

from sgr_diffusers import create_scheduler
from sgr_diffusers.guidance.losses import (
    class_log_odds,
    guidance_loss,
    guidance_weight,
    has_pixels_to_push,
    indicator,
    lower_loss,
    upper_loss,
)
from sgr_diffusers.guidance.strength import default_strength, deterministic_factor, strength_for_size

CLASSES = torch.tensor([1, 3])


def draw_logits(scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 4, 6, 5, dtype=torch.float64, generator=generator)


def with_gradient(function, logits, *args):
    logits = logits.clone().requires_grad_()
    loss = function(logits, *args)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def test_indicator_is_true_in_the_most_probable_pixels():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2, 0, 1] = logits[0, 1, 1, 1] = 1.0
    found = indicator(logits, torch.tensor([2]))
    assert found.tolist() == [[[False, True], [False, False]]]  # no class wins where all are equal


def test_losses_are_the_masked_cross_entropies():
    logits = draw_logits()
    p = logits.softmax(dim=1)
    for sample, c in enumerate(CLASSES):
        p_c, is_class = p[sample, c], p[sample].argmax(dim=0) == c
        assert is_class.any() and not is_class.all()
        up = -(~is_class * torch.log(1 - p_c)).sum()
        low = -(is_class * torch.log(p_c)).sum()
        torch.testing.assert_close(upper_loss(logits, CLASSES)[sample], up)
        torch.testing.assert_close(lower_loss(logits, CLASSES)[sample], low)


def test_each_sample_has_its_own_direction():
    logits = draw_logits()
    for is_upper in ([True, False], [False, True]):
        loss = guidance_loss(logits, CLASSES, torch.tensor(is_upper))
        for sample, up in enumerate(is_upper):
            single = (upper_loss if up else lower_loss)(logits[sample : sample + 1], CLASSES[sample : sample + 1])
            torch.testing.assert_close(loss[sample], single[0])


def test_ascent_makes_the_class_grow_and_shrink():
    logits = draw_logits()
    for function, sign in ((upper_loss, 1), (lower_loss, -1)):
        _, gradient = with_gradient(function, logits, CLASSES)
        before = indicator(logits, CLASSES).sum(dim=(1, 2))
        after = indicator(logits + 3 * gradient, CLASSES).sum(dim=(1, 2))
        assert (sign * (after - before) > 0).all()


@pytest.mark.parametrize("function", [upper_loss, lower_loss])
def test_gradient_is_right_in_float32_where_probabilities_are_tiny(function):
    logits = draw_logits(scale=15.0)
    _, expected = with_gradient(function, logits, CLASSES)
    _, gradient = with_gradient(function, logits.float(), CLASSES)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [upper_loss, lower_loss])
def test_extreme_logits_stay_finite(function, dtype):
    logits = torch.full((1, 3, 1, 4), -3e4, dtype=dtype)
    logits[0, 1, 0, 0] = logits[0, 2, 0, 1] = 3e4
    logits[0, 1, 0, 2] = -60.0
    loss, gradient = with_gradient(function, logits, torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert class_log_odds(logits, torch.tensor([1])).dtype == torch.float32


def test_nothing_to_push_is_exactly_zero():
    nowhere = torch.zeros(1, 3, 4, 4)
    nowhere[:, 0] = 5.0
    everywhere = torch.zeros(1, 3, 4, 4)
    everywhere[:, 1] = 5.0
    one = torch.tensor([1])
    for function, logits, is_upper in ((lower_loss, nowhere, False), (upper_loss, everywhere, True)):
        loss, gradient = with_gradient(function, logits, one)
        assert loss.item() == 0.0 and torch.count_nonzero(gradient) == 0
        assert not has_pixels_to_push(logits, one, torch.tensor([is_upper])).item()
        assert has_pixels_to_push(logits, one, torch.tensor([not is_upper])).item()


def test_weight_limits_the_push_per_sample():
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(4, 2, 8, 8, generator=generator)
    gradient = torch.randn(4, 2, 8, 8, generator=generator)
    gradient *= torch.tensor([10.0, 1e-4, 0.0, 1e-30])[:, None, None, None]
    gamma = guidance_weight(eps, gradient, 0.005)
    pushed = torch.linalg.vector_norm((gamma[:, None, None, None] * gradient).flatten(1), dim=1)
    limit = 0.005 * torch.linalg.vector_norm(eps.flatten(1), dim=1)
    torch.testing.assert_close(pushed[0], limit[0])
    assert gamma[1:].tolist() == [1.0, 1.0, 1.0]
    singles = [guidance_weight(eps[k : k + 1], gradient[k : k + 1], 0.005) for k in range(4)]
    assert torch.equal(gamma, torch.cat(singles))


def test_strength_zero_pushes_nothing():
    eps, gradient = torch.ones(2, 2, 3, 3), torch.ones(2, 2, 3, 3)
    gradient[1] = 0.0
    gamma = guidance_weight(eps, gradient, 0.0)
    assert torch.count_nonzero(gamma[:, None, None, None] * gradient) == 0


def test_default_strength_is_the_papers_and_goes_with_the_length_of_a_step():
    assert default_strength(1 / 100) == pytest.approx(0.005)  # the paper
    assert default_strength(1 / 25, exponent=1.0) * 25 == pytest.approx(default_strength(1 / 400, exponent=1.0) * 400)
    assert 0.005 < default_strength(1 / 25) < 0.005 * 4
    assert default_strength(0.0) == 0


def test_the_strength_of_a_checkpoint_takes_the_place_of_the_papers():
    assert default_strength(1 / 25, 0.5, 1.0, strength=0.02) == pytest.approx(4 * default_strength(1 / 25, 0.5, 1.0))


def test_a_push_stands_out_from_the_noise_alike_in_images_of_any_size():
    """The largest push of Eq. 14, beside the noise along its own direction: white, of standard deviation 1."""
    assert strength_for_size((512, 160)) == pytest.approx(0.005)
    pushes = []
    for size in ((512, 160), (96, 80)):
        eps = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(3))
        direction = torch.zeros_like(eps)
        direction[..., 10:20, 10:20] = 1  # of an object, however many pixels it has
        push = direction * guidance_weight(eps, 1e6 * direction, strength_for_size(size)) * 1e6
        pushes.append(torch.linalg.vector_norm(push).item())
    assert pushes[0] == pytest.approx(0.005 * (2 * 512 * 160) ** 0.5, rel=0.01) == pushes[1]


def test_default_strength_is_smaller_where_no_fresh_noise_hides_a_push():
    deterministic, half, ancestral = (default_strength(0.01, eta) for eta in (0.0, 0.5, 1.0))
    assert deterministic < half < ancestral == default_strength(0.01)


def gaussian_ratio(power, guidance_from):
    """How far a push in every timestep moves a Gaussian image with fresh noise, over how far without.

    By Eq. 13, with the exact denoiser of an image of that variance.
    """
    abar, moved = create_scheduler().alphas_cumprod.double(), {}
    for eta in (0.0, 1.0):
        shift = torch.zeros((), dtype=torch.float64)  # of the noisy image, by all pushes so far
        for t in range(999, 0, -1):
            now, then = abar[t], abar[t - 1]
            fresh = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
            x0 = now.sqrt() * power / (now * power + 1 - now) * shift
            eps = (shift - now.sqrt() * x0) / (1 - now).sqrt() + (t < 1000 * guidance_from)
            shift = then.sqrt() * x0 + (1 - then - fresh).sqrt() * eps
        moved[eta] = shift
    return float(moved[1.0] / moved[0.0])


def test_deterministic_factor_is_near_the_ratio_of_the_responses_of_a_gaussian():
    assert deterministic_factor() == pytest.approx(0.12)
    assert gaussian_ratio(0.02, 1.0) < deterministic_factor() < gaussian_ratio(0.1, 1.0)
    late = [deterministic_factor(share) / gaussian_ratio(0.02, share) for share in (0.5, 0.2)]
    assert late == pytest.approx([1, 1], abs=0.35) and deterministic_factor(0.2) > deterministic_factor(0.5) > 0.12


def test_strength_of_a_late_window():
    """The total push counts there, whatever the number of steps; with fresh noise in all steps less does."""
    late, whole = (default_strength(1 / 25, guidance_from=share) / 0.005 for share in (0.01, 1.0))
    assert whole == pytest.approx(4**0.7) and late == pytest.approx(4, rel=0.01)
    assert default_strength(0.01, 0.0) == pytest.approx(0.12 * 0.005, rel=0.01)
    assert default_strength(0.01, 0.0, guidance_from=0.2) == pytest.approx(0.30 * 0.005, rel=0.01)
