import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from sgr_diffusers import create_scheduler
from sgr_diffusers.schedules import PREDICTION_TYPES, check_scheduler, schedule_step


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_authors_hundred_steps():
    scheduler = create_scheduler()
    scheduler.set_timesteps(100)
    assert scheduler.timesteps.tolist() == list(range(990, -1, -10))
    last = schedule_step(scheduler, scheduler.timesteps[-1], eta=1.0)
    assert (last.alpha_next, last.direction) == (1.0, 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_constants_are_those_of_the_paper(eta):
    scheduler = create_scheduler()
    scheduler.set_timesteps(20)
    abar, abar_next = (float(scheduler.alphas_cumprod[t]) for t in (500, 450))
    sigma = eta * math.sqrt((1 - abar_next) / (1 - abar)) * math.sqrt(1 - abar / abar_next)
    step = schedule_step(scheduler, torch.tensor(500), eta)
    expected = (math.sqrt(abar), math.sqrt(1 - abar), math.sqrt(abar_next), math.sqrt(1 - abar_next - sigma**2))
    assert (step.alpha, step.sigma, step.alpha_next, step.direction) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_model_output_and_back(prediction_type):
    scheduler = create_scheduler(prediction_type)
    scheduler.set_timesteps(10)
    x0, eps = draw(2, 2, 4, 4), draw(2, 2, 4, 4, seed=1)
    for t in scheduler.timesteps[1:-1]:
        step = schedule_step(scheduler, t, 1.0)
        noisy = step.alpha * x0 + step.sigma * eps
        output = step.to_model_output(x0, noisy)
        found_x0, found_eps = step.denoise(output, noisy)
        torch.testing.assert_close(found_x0, x0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found_eps, eps, rtol=1e-4, atol=1e-4)
        if prediction_type == "v_prediction":
            torch.testing.assert_close(output, scheduler.get_velocity(x0, eps, t[None]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_scheduler_step_and_shift_equal_eq_13(prediction_type, eta):
    scheduler = create_scheduler(prediction_type)
    scheduler.set_timesteps(20)
    clean, eps, change, push, z = (draw(1, 2, 6, 6, seed=seed) for seed in range(5))
    for t in scheduler.timesteps[:-1]:
        step = schedule_step(scheduler, t, eta)
        noisy = step.alpha * clean + step.sigma * eps
        output = step.to_model_output(clean, noisy)
        x0, eps_hat = step.denoise(output, noisy)
        consistent = x0 + change
        result = scheduler.step(output, t, noisy, eta=eta, variance_noise=z).prev_sample
        result = result + step.shift(x0, consistent, push)

        abar, abar_next = (float(scheduler.alphas_cumprod[k]) for k in (int(t), int(t) - 50))
        sigma = eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
        direction = math.sqrt(1 - abar_next - sigma**2)
        expected = math.sqrt(abar_next) * consistent.double() + direction * (eps_hat + push).double()
        torch.testing.assert_close(result.double(), expected + sigma * z.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_are_refused_by_name(scheduler_class):
    with pytest.raises(TypeError, match=f"`scheduler` must be a DDIMScheduler, got {scheduler_class.__name__}"):
        check_scheduler(scheduler_class())


@pytest.mark.parametrize("setting", [{"clip_sample": True}, {"clip_sample": False, "thresholding": True}])
def test_clipping_is_refused_with_the_way_out(setting):
    with pytest.raises(ValueError, match=r"clip_sample=False, thresholding=False"):
        check_scheduler(DDIMScheduler(**setting))


def test_pure_noise_without_image_is_refused():
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        check_scheduler(create_scheduler("epsilon", rescale_betas_zero_snr=True))
    check_scheduler(create_scheduler("v_prediction", rescale_betas_zero_snr=True))
