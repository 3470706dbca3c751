"""Classes, settings and timesteps that would give a wrong image are refused, with the way out."""

import diffusers
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, SchedulerMixin
from schedulers import create

from sgr_diffusers import create_scheduler
from sgr_diffusers.scheduler_checks import check_scheduler, noise_fingerprint
from sgr_diffusers.scheduler_table import FORGETS_NOISE, REFUSED


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_classes_say_why_and_what_to_do(name):
    scheduler = type(name, (SchedulerMixin,), {})()
    with pytest.raises(TypeError, match=f"`scheduler` {name} is not supported: .*DDIMScheduler.from_config"):
        check_scheduler(scheduler)


def test_unknown_classes_are_refused_and_derived_ones_go_by_their_base():
    with pytest.raises(TypeError, match="nothing is known about this class"):
        check_scheduler(type("NewScheduler", (SchedulerMixin,), {})())
    derived = type("MyScheduler", (DDIMScheduler,), {})
    check_scheduler(derived(clip_sample=False))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample=False"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding=False"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type='fixed_small'"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=False"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=False"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type=discrete"),
        ("UniPCMultistepScheduler", {"solver_p": DDIMScheduler()}, "solver_p=None"),
        ("FlowMatchLCMScheduler", {"scale_factors": [0.5]}, "scale_factors=None"),
        ("DDIMScheduler", {"prediction_type": "velocity"}, "prediction_type of"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=False"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=False"),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=False"),
    ],
)
def test_settings_that_give_a_wrong_image_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        check_scheduler(create(name, **settings))


def test_flow_models_need_flow_sigmas():
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="use_flow_sigmas=True"):
        check_scheduler(scheduler)


def test_zero_terminal_snr_works_with_a_model_that_predicts_v():
    check_scheduler(create_scheduler("v_prediction", rescale_betas_zero_snr=True))


def test_a_scheduler_for_another_prior_is_refused():
    trained_with = noise_fingerprint(create_scheduler("v_prediction"))
    check_scheduler(EulerDiscreteScheduler.from_config(create_scheduler("v_prediction").config), trained_with)
    with pytest.raises(ValueError, match="prediction_type='epsilon', but the prior predicts 'v_prediction'"):
        check_scheduler(create("EulerDiscreteScheduler"), trained_with)
    with pytest.raises(ValueError, match="predicts 'v_prediction'"):
        check_scheduler(create("FlowMatchEulerDiscreteScheduler"), trained_with)
    # Heun's own betas, where from_config finds none: the silent trap of the class defaults.
    with pytest.raises(ValueError, match="other noise levels"):
        check_scheduler(HeunDiscreteScheduler(prediction_type="v_prediction"), trained_with)


@pytest.mark.parametrize("name", sorted(FORGETS_NOISE))
def test_a_scheduler_that_forgets_the_push_is_refused_when_guided(name):
    check_scheduler(create(name))
    with pytest.raises(ValueError, match=f"`scheduler` {name} replaces the predicted noise .*guidance has no effect"):
        check_scheduler(create(name), is_guided=True)


@pytest.mark.parametrize("times", [[], [0, 10], [500, 500, 0], [1000, 0], [10, -1]])
def test_timesteps_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="`timesteps` must fall"):
        check_scheduler(create("DDPMScheduler"), timesteps=times)


def test_a_scheduler_that_takes_no_timesteps_is_told_apart():
    with pytest.raises(ValueError, match="`timesteps` cannot be given to DDIMScheduler"):
        check_scheduler(create("DDIMScheduler"), timesteps=[10, 0])
