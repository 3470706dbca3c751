"""Every supported scheduler class is stepped in the right sense, DDIM exactly by Eq. 13."""

import itertools
import math

import diffusers
import pytest
import torch

from sgr_diffusers import create_scheduler
from sgr_diffusers.schedulers.checks import check_scheduler
from sgr_diffusers.schedulers.sampler import NoiseLevel, ScheduledSampler
from sgr_diffusers.schedulers.support import FORGETS_NOISE, FRESH_NOISE, NOISE_LEVEL, PREDICTION_TYPES
from sgr_diffusers.schedulers.timesteps import fast_timesteps
from tests.helpers.schedulers import create

CPU = torch.device("cpu")
VP_TYPES = ("epsilon", "v_prediction", "sample")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(n, seed=0):
    return [torch.Generator().manual_seed(seed + k) for k in range(n)]


def cases():
    """Every supported class with every prediction type that makes sense for it."""
    for name, kind in NOISE_LEVEL.items():
        types = VP_TYPES if kind != "flow" else ("flow_prediction",)
        if kind == "preserving":
            types = PREDICTION_TYPES
        for prediction_type in types:
            yield name, prediction_type


def n_steps_of(name, wanted):
    return min(wanted, 50) if name in ("LCMScheduler", "TCDScheduler") else wanted


# --- conversions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("sigma", [0.01, 0.4, 0.999])
def test_model_output_and_back(prediction_type, sigma):
    alpha = 1 - sigma if prediction_type == "flow_prediction" else math.sqrt(1 - sigma**2)
    level = NoiseLevel(alpha, sigma, prediction_type)
    x0, eps = draw(2, 2, 4, 4).double(), draw(2, 2, 4, 4, seed=1).double()
    output = level.to_model_output(x0, eps)
    found = level.denoise(output, level.noisy_image(x0, eps))
    for value, expected in zip(found, (x0, eps), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def test_v_is_what_diffusers_trains():
    scheduler = create_scheduler("v_prediction")
    x0, eps, t = draw(1, 2, 4, 4), draw(1, 2, 4, 4, seed=1), torch.tensor([500])
    abar = float(scheduler.alphas_cumprod[500])
    output = NoiseLevel(math.sqrt(abar), math.sqrt(1 - abar), "v_prediction").to_model_output(x0, eps)
    torch.testing.assert_close(output, scheduler.get_velocity(x0, eps, t))


# --- steps ----------------------------------------------------------------------------------------------------------


def test_the_authors_hundred_steps():
    sampler = ScheduledSampler(create_scheduler(), 100, 1.0, seeded(1), CPU)
    assert sampler.timesteps.tolist() == list(range(990, -1, -10))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction_type", VP_TYPES)
def test_ddim_equals_eq_13(prediction_type, eta):
    sampler = ScheduledSampler(create_scheduler(prediction_type), 20, eta, seeded(1, 9), CPU)
    streams = seeded(1, 9)
    abars = create_scheduler().alphas_cumprod.double()
    for k, t in enumerate(sampler.timesteps[:-1]):
        x0, eps = draw(1, 2, 6, 6, seed=k), draw(1, 2, 6, 6, seed=100 + k)
        sampler.model_input(x0, t)
        level = sampler.level(t)
        abar, abar_next = float(abars[int(t)]), float(abars[int(t) - 50])
        assert (level.alpha, level.sigma) == pytest.approx((math.sqrt(abar), math.sqrt(1 - abar)), rel=1e-6)
        result = sampler.step(level, t, x0, eps)
        sigma = eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
        expected = math.sqrt(abar_next) * x0.double() + math.sqrt(1 - abar_next - sigma**2) * eps.double()
        if eta > 0:
            expected = expected + sigma * torch.randn(1, 2, 6, 6, generator=streams[0]).double()
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "prediction_type"), list(cases()))
def test_a_clean_image_and_noise_that_stay_the_same_come_out_unchanged(name, prediction_type):
    """Fed the true pair at every level, each scheduler stays on alpha x0 + sigma eps, whatever its order and memory.

    True of deterministic ones to rounding; stochastic ones replace the noise, so the clean part alone is compared.
    """
    scheduler = create(name, prediction_type)
    check_scheduler(scheduler)
    n = n_steps_of(name, 20)
    sampler = ScheduledSampler(scheduler, n, 0.0, seeded(1), CPU)
    x0, eps = draw(1, 2, 32, 32), draw(1, 2, 32, 32, seed=1)
    latents, errors = None, []
    for t in sampler.timesteps[:-1]:
        if latents is not None:
            noisy = sampler.model_input(latents, t)
            level = sampler.level(t)
            change = noisy - level.noisy_image(x0, eps)
            errors.append(float(change.norm() / noisy.norm()))
            eps = (noisy - level.alpha * x0) / level.sigma  # what the network would see
        else:
            sampler.model_input(x0, t)
            level = sampler.level(t)
        latents = sampler.step(level, t, x0, eps)
        # the noise stays noise of unit variance: nothing is scaled wrongly
        assert 0.8 < float(eps.std()) < 1.2, (name, float(t))
    correlation = torch.corrcoef(torch.stack([(noisy - level.sigma * eps).flatten(), x0.flatten()]))[0, 1]
    assert correlation > 0.999
    if name not in FRESH_NOISE.keys() | FORGETS_NOISE:
        assert max(errors) < 1e-3, (name, errors)


DETERMINISTIC = ["DDIM", "EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "UniPCMultistep"]
DETERMINISTIC += ["DPMSolverMultistep", "DPMSolverSinglestep", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"]
SDE = {"algorithm_type": "sde-dpmsolver++"}


@pytest.mark.parametrize("evaluation", [4, 5, 6])  # first and second ones of steps and blocks
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in DETERMINISTIC] + [("DPMSolverMultistep", SDE), ("DPMSolverSinglestep", SDE)],
)
def test_a_push_to_the_noise_of_one_evaluation_is_carried_on_exactly(name, settings, evaluation):
    """With the clean image kept, what changes at the next level is sigma times the push, as in Eq. 13.

    Of an SDE it is less by what the fresh noise replaces, the ratio of sigma / alpha of both levels.
    """
    name, push = f"{name}Scheduler", draw(1, 2, 8, 8, seed=2)
    prediction_type = "flow_prediction" if NOISE_LEVEL[name] == "flow" else "v_prediction"
    x0, seen, levels = draw(1, 2, 8, 8), [], []
    for size in (0.0, 1.0):
        sampler = ScheduledSampler(create(name, prediction_type, **settings), 20, 0.0, seeded(1), CPU)
        latents, eps = x0, draw(1, 2, 8, 8, seed=1)
        for k, t in enumerate(sampler.timesteps[: evaluation + 2]):
            noisy, level = sampler.model_input(latents, t), sampler.level(t)
            if k:
                eps = (noisy - level.alpha * x0) / level.sigma
            if k >= evaluation:
                levels.append(level)
            latents = sampler.step(level, t, x0, eps + size * push if k == evaluation else eps)
        seen.append(noisy)
    here, following = levels[:2]
    kept = (following.sigma / following.alpha) / (here.sigma / here.alpha) if settings else 1.0
    torch.testing.assert_close(seen[1] - seen[0], following.sigma * kept * push, rtol=1e-3, atol=1e-3)


# --- strength and timesteps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISE_LEVEL)
@pytest.mark.parametrize("n", [10, 50])
def test_steps_together_cover_the_training_time_from_the_first(name, n):
    sampler = ScheduledSampler(create(name), n_steps_of(name, n), 0.0, seeded(1), CPU)
    shares, order = sampler.shares(), getattr(diffusers, name).order
    assert len(shares) == len(sampler.timesteps) and min(shares) >= 0
    first = float(sampler.timesteps[0]) / 1000
    once = dict(zip(sampler.timesteps[::order].tolist(), shares[::order], strict=True))  # PNDM visits one time twice
    assert sum(once.values()) == pytest.approx(first)
    for k in range(order, len(shares), order):
        assert shares[k - 1] == shares[k - order]  # both evaluations of a step are pushed alike


def test_shares_of_the_paper():
    shares = ScheduledSampler(create_scheduler(), 100, 1.0, seeded(1), CPU).shares()
    assert shares == pytest.approx([0.01] * 99 + [0.0])


def test_own_timesteps_share_the_whole_push():
    scheduler = diffusers.DDPMScheduler.from_config(create_scheduler().config, clip_sample=False)
    late = ScheduledSampler(scheduler, 25, 1.0, seeded(1), CPU, fast_timesteps(25)).shares()
    assert sum(late) == pytest.approx(1) and late[0] > late[-2] > 0 == late[-1]
    from_the_top = ScheduledSampler(scheduler, 25, 1.0, seeded(1), CPU, fast_timesteps(25, start=999)).shares()
    assert late == pytest.approx(from_the_top, abs=3e-3)  # both ends of a step are rounded: 1 / 500 + 1 / 999


def test_steps_below_the_start_of_guidance_are_pushed_as_hard_whatever_comes_before():
    """A step's push is that of its share of the training time, if the caller's timesteps cover what is guided."""
    scheduler = diffusers.DDPMScheduler.from_config(create_scheduler().config, clip_sample=False)
    for start in (999, 500, 200):
        own = ScheduledSampler(scheduler, 25, 1.0, seeded(1), CPU, fast_timesteps(25, start=start))
        guided = own.is_guided_from(0.2)
        shares = [share for share, is_guided in zip(own.shares(0.2), guided, strict=True) if is_guided]
        first = next(t for t, is_guided in zip(own.times, guided, strict=True) if is_guided)
        assert sum(shares) == pytest.approx(first) and first < 0.2
    late = ScheduledSampler(scheduler, 25, 1.0, seeded(1), CPU, fast_timesteps(25, start=100))
    assert sum(late.shares(0.2)) == pytest.approx(0.2)  # as if it had been guided from there


@pytest.mark.parametrize(
    ("name", "settings", "eta", "expected"),
    [
        ("DDIMScheduler", {}, 0.3, 0.3),
        ("DDPMScheduler", {}, 0.0, 1.0),
        ("EulerDiscreteScheduler", {}, 1.0, 0.0),
        ("DPMSolverMultistepScheduler", {}, 1.0, 0.0),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 0.0, 0.95),
    ],
)
def test_fresh_noise_is_eta_of_ddim_and_the_nature_of_all_others(name, settings, eta, expected):
    assert ScheduledSampler(create(name, **settings), 10, eta, seeded(1), CPU).fresh_noise == expected


@pytest.mark.parametrize("name", sorted(FORGETS_NOISE))
def test_and_it_does_forget(name):
    results = []
    for push in (0.0, 1.0):
        sampler = ScheduledSampler(create(name), 10, 0.0, seeded(1), CPU)
        t = sampler.timesteps[0]
        x0, eps = draw(1, 2, 6, 6), draw(1, 2, 6, 6, seed=1)
        sampler.model_input(x0, t)
        results.append(sampler.step(sampler.level(t), t, x0, eps + push))
    assert float((results[1] - results[0]).norm() / results[0].norm()) < 0.05


@pytest.mark.parametrize(("name", "prediction_type"), list(cases()))
def test_noise_of_opposite_sign_gives_the_opposite_image(name, prediction_type):
    """The denoiser is odd, and both signs draw the same noise, whatever the memory of the scheduler."""
    alike, signs = [*seeded(1), *seeded(1)], torch.tensor([1.0, -1.0])
    scheduler, n = create(name, prediction_type), n_steps_of(name, 10)
    sampler = ScheduledSampler(scheduler, n, 1.0, alike, CPU, noise_factors=signs)
    latents = torch.cat([draw(1, 2, 6, 6), -draw(1, 2, 6, 6)]) * sampler.init_noise_sigma
    for t in sampler.timesteps[:-1]:
        noisy, level = sampler.model_input(latents, t), sampler.level(t)
        x0 = 0.5 * torch.tanh(noisy)
        latents = sampler.step(level, t, x0, (noisy - level.alpha * x0) / level.sigma)
        torch.testing.assert_close(latents[1], -latents[0])


def test_fast_timesteps():
    times = fast_timesteps(25)
    assert len(times) == 25 and times[0] == 500 and times[-1] == 0
    steps = [a - b for a, b in itertools.pairwise(times)]
    assert steps[0] > 3 * steps[-1] > 0
    assert [fast_timesteps(n)[0] for n in (2, 10, 30, 50, 100)] == [500, 500, 600, 990, 990]
    assert fast_timesteps(100) == list(range(990, -1, -10))
    assert fast_timesteps(3, start=100, power=1.0) == [100, 50, 0]
    with pytest.raises(ValueError, match="`n_steps` must be at least 2"):
        fast_timesteps(1)


def test_ddpm_at_the_timesteps_of_ddim_is_ddim_with_eta_1():
    n, results = 20, []
    ddim = ScheduledSampler(create_scheduler(), n, 1.0, seeded(1, 9), CPU)
    times = ddim.timesteps.tolist()
    ddpm = ScheduledSampler(create("DDPMScheduler"), 3, 0.0, seeded(1, 9), CPU, timesteps=times)
    assert ddpm.timesteps.tolist() == times
    for sampler in (ddim, ddpm):
        latents = []
        for k, t in enumerate(sampler.timesteps[:-1]):
            x0, eps = draw(1, 2, 6, 6, seed=k), draw(1, 2, 6, 6, seed=100 + k)
            latents.append(sampler.step(sampler.level(t), t, x0, eps))
        results.append(torch.cat(latents))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_the_variance_that_a_noise_level_leaves_open():
    level = NoiseLevel(alpha=0.8, sigma=0.4, prediction_type="epsilon")  # s^2 = 0.25
    assert level.open_variance() == pytest.approx(0.2)
    measured = {"noise_to_signal": [0.01, 1.0], "error": [0.001, 0.01]}
    assert level.open_variance(measured) == pytest.approx(0.01 * 0.25**0.5)  # a line in the logarithms
    nearly_clean = NoiseLevel(alpha=1.0, sigma=0.01, prediction_type="epsilon")  # s^2 = 0.0001
    assert nearly_clean.open_variance(measured) == pytest.approx(1e-5)
    noise_alone = NoiseLevel(alpha=0.0, sigma=1.0, prediction_type="flow_prediction")
    assert noise_alone.open_variance(measured) == pytest.approx(0.01) and noise_alone.open_variance() == 1
