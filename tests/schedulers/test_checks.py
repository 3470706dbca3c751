"""Classes, settings and timesteps that would give a wrong image are refused, with the way out."""

import types

import diffusers
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, SchedulerMixin

from sgr_diffusers import create_scheduler
from sgr_diffusers.schedulers.checks import check_scheduler, noise_fingerprint
from sgr_diffusers.schedulers.support import FORGETS_NOISE, LEAST_STEPS, REFUSED
from tests.helpers.schedulers import BETAS, create

DEPRECATED = "ignore:.algorithm_types.dpmsolver:FutureWarning"  # still there


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
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='discrete'"),
        ("UniPCMultistepScheduler", {"solver_p": DDIMScheduler()}, "solver_p=None"),
        ("FlowMatchLCMScheduler", {"scale_factors": [0.5]}, "scale_factors=None"),
        ("DDIMScheduler", {"prediction_type": "velocity"}, "prediction_type of"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=False"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=False"),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=False"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type='linear'"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
            "solver_order=2",
        ),
        ("SASolverScheduler", {"corrector_order": 0}, "corrector_order=1"),
        ("SASolverScheduler", {"predictor_order": 0}, "predictor_order=1"),
        ("SASolverScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas=False"),
    ],
)
@pytest.mark.filterwarnings(DEPRECATED)
def test_settings_that_give_a_wrong_image_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        check_scheduler(create(name, **settings))


def test_flow_models_need_the_noise_levels_of_flow_matching():
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="use_flow_sigmas=True"):
        check_scheduler(scheduler)
    # what a class without them carries along from another's config has no effect
    flow = create("UniPCMultistepScheduler", "flow_prediction")
    for name in ("EulerDiscreteScheduler", "DDIMScheduler"):
        scheduler = getattr(diffusers, name).from_config(flow.config, clip_sample=False)
        assert scheduler.config.use_flow_sigmas
        with pytest.raises(ValueError, match=f"{name} has no noise levels of flow .*FlowMatchEulerDiscreteScheduler"):
            check_scheduler(scheduler, noise_fingerprint(flow))


@pytest.mark.parametrize(
    ("name", "settings", "good"),
    [
        ("DEISMultistepScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas=False"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas=False"),
        ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}, "use_exponential_sigmas=False"),
        (
            "DPMSolverSinglestepScheduler",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            "algorithm_type='dpmsolver.+'",
        ),
        ("SASolverScheduler", {"algorithm_type": "noise_prediction"}, "algorithm_type='data_prediction'"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0=True"),
    ],
)
@pytest.mark.filterwarnings(DEPRECATED)
def test_settings_that_do_not_go_with_flow_sigmas(name, settings, good):
    check_scheduler(create(name, **settings))
    with pytest.raises(ValueError, match=f"`scheduler` must have {good}"):
        check_scheduler(create(name, "flow_prediction", **settings))


def test_settings_of_another_class_do_not_count():
    clips = DDIMScheduler(clip_sample=True, thresholding=True, **BETAS)
    learned = diffusers.DDPMScheduler(variance_type="learned_range", **BETAS)
    for config in (clips.config, learned.config):
        check_scheduler(EulerDiscreteScheduler.from_config(config))


def test_the_way_out_that_is_named_leads_out():
    for name, settings in (
        ("DDIMScheduler", {"clip_sample": True}),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("LCMScheduler", {}),
        ("FlowMatchLCMScheduler", {}),
    ):
        pipe = types.SimpleNamespace(scheduler=create(name, **settings))
        with pytest.raises(ValueError) as caught:
            check_scheduler(pipe.scheduler, is_guided=True)
        exec(str(caught.value).split("`")[-2], vars(diffusers), {"pipe": pipe})
        check_scheduler(pipe.scheduler, is_guided=True)


def test_zero_terminal_snr_works_with_a_model_that_predicts_v():
    check_scheduler(create_scheduler("v_prediction", rescale_betas_zero_snr=True))


def test_a_scheduler_for_another_prior_is_refused():
    trained_with = noise_fingerprint(create_scheduler("v_prediction"))
    check_scheduler(EulerDiscreteScheduler.from_config(create_scheduler("v_prediction").config), trained_with)
    with pytest.raises(ValueError, match="prediction_type='epsilon', but the prior predicts 'v_prediction'"):
        check_scheduler(create("EulerDiscreteScheduler"), trained_with)
    with pytest.raises(ValueError, match="predicts 'v_prediction'"):
        check_scheduler(create("FlowMatchEulerDiscreteScheduler"), trained_with)
    with pytest.raises(ValueError, match=r"must have num_train_timesteps=1000.* got 500"):
        check_scheduler(create_scheduler("v_prediction", num_train_timesteps=500, beta_end=0.04), trained_with)
    flow = noise_fingerprint(create("FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(ValueError, match=r"must have num_train_timesteps=1000.* got 500"):
        check_scheduler(create("FlowMatchEulerDiscreteScheduler", num_train_timesteps=500), flow)
    of_an_earlier_version = {key: value for key, value in flow.items() if key != "num_train_timesteps"}
    check_scheduler(create("FlowMatchEulerDiscreteScheduler"), of_an_earlier_version)
    # Heun's own betas, where from_config finds none: the silent trap of the class defaults.
    with pytest.raises(ValueError, match="other noise levels"):
        check_scheduler(HeunDiscreteScheduler(prediction_type="v_prediction"), trained_with)


@pytest.mark.parametrize("name", sorted(FORGETS_NOISE))
def test_a_scheduler_that_forgets_the_push_is_refused_when_guided(name):
    check_scheduler(create(name))
    with pytest.raises(ValueError, match=f"`scheduler` {name} replaces the predicted noise .*guidance has no effect"):
        check_scheduler(create(name), is_guided=True)


def test_a_flow_whose_steps_add_fresh_noise_forgets_the_push_too():
    scheduler = create("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True)
    check_scheduler(scheduler)
    with pytest.raises(ValueError, match=r"guidance has no effect.*stochastic_sampling=False"):
        check_scheduler(scheduler, is_guided=True)


@pytest.mark.parametrize("times", [[], [0, 10], [500, 500, 0], [1000, 0], [10, -1]])
def test_timesteps_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="`timesteps` must fall"):
        check_scheduler(create("DDPMScheduler"), timesteps=times)


@pytest.mark.parametrize("name", ["DDIMScheduler", "LTXEulerAncestralRFScheduler"])
def test_a_scheduler_that_takes_no_timesteps_is_told_apart(name):
    with pytest.raises(ValueError, match=f"`timesteps` cannot be given to {name}"):
        check_scheduler(create(name), timesteps=[10, 0])


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_timesteps_do_not_go_with_noise_levels_chosen_otherwise(name):
    scheduler = create(name, use_karras_sigmas=True)
    check_scheduler(scheduler)
    with pytest.raises(ValueError, match=r"use_karras_sigmas=False.*other than those of `timesteps`"):
        check_scheduler(scheduler, timesteps=[10, 0])


@pytest.mark.parametrize("name", sorted(LEAST_STEPS))
def test_too_few_steps_are_refused(name):
    least = LEAST_STEPS[name]
    check_scheduler(create(name), num_inference_steps=least)
    with pytest.raises(ValueError, match=f"`num_inference_steps` must be at least {least} for {name}, got 2"):
        check_scheduler(create(name), num_inference_steps=2)
    check_scheduler(create("PNDMScheduler", skip_prk_steps=True), num_inference_steps=2)
