"""Every setting of every supported scheduler: refused, or a sampler of the prior that tells it the right times.

The prior is Gaussian, N(0.5, 0.3) in each pixel, and knows its noise levels by the times that it is told, as a network
does: a scheduler that steps other levels than those of the times it tells ends in another distribution.
"""

import inspect
import warnings

import diffusers
import numpy as np
import pytest
import torch

from sgr_diffusers.schedulers.checks import check_scheduler, noise_fingerprint
from sgr_diffusers.schedulers.sampler import NoiseLevel, ScheduledSampler
from sgr_diffusers.schedulers.support import FORGETS_NOISE, FRESH_NOISE, LEAST_STEPS, NOISE_LEVEL
from sgr_diffusers.schedulers.timesteps import fast_timesteps
from tests.helpers.schedulers import create

MEAN, VARIANCE = 0.5, 0.3
DISTILLED = {"LCMScheduler", "FlowMatchLCMScheduler", "TCDScheduler"}
# Right at every level, but nearly all of them are above those at which an image is decided: 40 steps are too few.
COARSE = {"use_beta_sigmas"}
SETTINGS = [
    {},
    *({name: True} for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")),
    *({name: True} for name in ("rescale_betas_zero_snr", "euler_at_final", "skip_prk_steps", "stochastic_sampling")),
    *({"timestep_spacing": value} for value in ("leading", "trailing", "linspace")),
    *({"algorithm_type": value} for value in ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++", "noise_prediction")),
    *({"solver_type": value} for value in ("heun", "bh1")),
    *({"solver_order": value} for value in (1, 3)),
    {"predictor_order": 1, "corrector_order": 1},
    {"interpolation_type": "log_linear"},
    {"predict_x0": False},
    {"lower_order_final": False},
    {"set_alpha_to_one": False},
    {"steps_offset": 1},
    {"variance_type": "fixed_large"},
    {"sigma_min": 0.1, "sigma_max": 50.0},
    {"shift": 3.0},
    {"flow_shift": 3.0},
    {"shift_terminal": 0.1},
    {"eta": 0.0},
    {"num_train_timesteps": 500},
    {"beta_schedule": "scaled_linear"},
    {"trained_betas": [1e-3] * 1000},
]


def created(name, prediction_type, settings):
    """The scheduler, or `None` where the class has no such setting or refuses it itself."""
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    if not set(settings) <= set(known):
        return None
    if settings.get("algorithm_type", "").endswith("dpmsolver"):
        settings = {"final_sigmas_type": "sigma_min", **settings}
    try:
        return create(name, prediction_type, **settings)
    except (NotImplementedError, ValueError):
        return None


def cases():
    for name, kind in NOISE_LEVEL.items():
        for prediction_type in {"flow": ["flow_prediction"], "preserving": ["v_prediction", "flow_prediction"]}.get(
            kind, ["v_prediction"]
        ):
            yield name, prediction_type


def prior(noisy, t, prediction_type, abars):
    """Output of the exact denoiser, which knows the time alone."""
    if prediction_type == "flow_prediction":
        alpha, sigma = 1 - t / 1000, t / 1000
    else:
        log_snr = np.interp(t, np.arange(len(abars)), np.log(abars / (1 - abars)))
        alpha, sigma = (float(1 / np.sqrt(1 + np.exp(sign * log_snr))) for sign in (-1, 1))
    x0 = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (noisy - alpha * MEAN)
    eps = (noisy - alpha * x0) / max(sigma, 1e-6)
    return NoiseLevel(alpha, sigma, prediction_type).to_model_output(x0, eps)


def samples(scheduler, prediction_type, abars, n_steps=40, timesteps=None, push=0.0):
    generators = [torch.Generator().manual_seed(3)]
    sampler = ScheduledSampler(scheduler, n_steps, 0.0, generators, torch.device("cpu"), timesteps)
    latents = torch.randn(1, 2, 32, 32, generator=generators[0]) * sampler.init_noise_sigma
    for k, t in enumerate(sampler.timesteps):
        noisy, level = sampler.model_input(latents, t), sampler.level(t)
        x0, eps = level.denoise(prior(noisy, float(t), prediction_type, abars), noisy)
        if k < len(sampler.timesteps) - 1:
            latents = sampler.step(level, t, x0, eps + push / sampler.pushes_per_step)
    return x0


def abars_of(settings):
    scheduler = create("DDIMScheduler", **settings)
    return scheduler.alphas_cumprod.double().clamp(min=1e-9).numpy()


@pytest.mark.filterwarnings("ignore:.algorithm_types.dpmsolver:FutureWarning")  # still there
@pytest.mark.parametrize(("name", "prediction_type"), list(cases()))
def test_settings_are_refused_or_sample_the_prior(name, prediction_type):
    trained_with = noise_fingerprint(create(name, prediction_type, **shift_of(name)))
    n_sampled = 0
    for settings in SETTINGS:
        scheduler = created(name, prediction_type, {**settings, **shift_of(name)})
        if scheduler is None:
            continue
        of_prior = {key: value for key, value in settings.items() if key == "rescale_betas_zero_snr"}
        try:
            check_scheduler(scheduler, noise_fingerprint(scheduler) if of_prior else trained_with)
        except ValueError as error:
            assert "`scheduler`" in str(error)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SciPy's and LCM's own
            x0 = samples(scheduler, prediction_type, abars_of(of_prior))
        n_sampled += 1
        assert x0.isfinite().all(), settings
        assert float(x0.mean()) == pytest.approx(MEAN, abs=0.05), settings
        if not (name in DISTILLED or COARSE & set(settings) or settings.get("stochastic_sampling")):
            assert float(x0.var()) / VARIANCE == pytest.approx(1, abs=0.3), settings
    assert n_sampled > 1


def shift_of(name):
    """CogVideoX has other noise levels by default."""
    return {"snr_shift_scale": 1.0} if name == "CogVideoXDDIMScheduler" else {}


@pytest.mark.parametrize("name", NOISE_LEVEL)
@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
def test_few_steps_are_refused_or_finite(name, n_steps):
    prediction_type = "flow_prediction" if NOISE_LEVEL[name] == "flow" else "v_prediction"
    scheduler = create(name, prediction_type, **shift_of(name))
    if n_steps < LEAST_STEPS.get(name, 1):
        return
    try:
        x0 = samples(scheduler, prediction_type, abars_of({}), n_steps)
    except ValueError as error:
        assert n_steps == 1 and "starts at timestep 0" in str(error)
        return
    assert x0.isfinite().all()
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.1)


@pytest.mark.parametrize("name", NOISE_LEVEL)
def test_given_timesteps_are_refused_or_visited(name):
    prediction_type = "flow_prediction" if NOISE_LEVEL[name] == "flow" else "v_prediction"
    scheduler, times = create(name, prediction_type, **shift_of(name)), fast_timesteps(25, start=990)
    try:
        check_scheduler(scheduler, timesteps=times)
    except ValueError as error:
        assert "`timesteps` cannot be given" in str(error)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LCM's own
        x0 = samples(scheduler, prediction_type, abars_of({}), 25, times)
    visited = dict.fromkeys(int(t) for t in scheduler.timesteps)
    assert list(visited) == times
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.05)


@pytest.mark.parametrize("name", sorted(NOISE_LEVEL.keys() - FORGETS_NOISE))
def test_a_push_moves_the_result_in_its_own_direction_by_as_much(name):
    """The same push in each of 20 steps, over all of a step's evaluations: as far with each class of a kind.

    A deterministic one keeps it, from 6.9 to 9.2 times the push; fresh noise takes most away, 1.1 to 2.5 are left.
    """
    prediction_type = "flow_prediction" if NOISE_LEVEL[name] == "flow" else "v_prediction"
    means = []
    for push in (0.0, 0.02):
        scheduler = create(name, prediction_type, **shift_of(name))
        means.append(float(samples(scheduler, prediction_type, abars_of({}), 20, push=push).mean()))
    gain = (means[1] - means[0]) / 0.02
    low, high = (0.8, 3.0) if name in FRESH_NOISE else (6.0, 10.0)
    assert low < gain < high
