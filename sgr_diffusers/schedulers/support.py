"""Says whether the guided loop can drive a scheduler, and if not, why. One line for each class.

A class is supported if it can sample an unconditional model that predicts eps, v, the image or the flow, with
`set_timesteps(n)` and `step(output, timestep, sample)` alone. A new class of diffusers belongs into one of the tables;
a test fails until it is.
"""

import inspect
from typing import Any

from diffusers import SchedulerMixin

__all__ = [
    "FORGETS_NOISE",
    "FRESH_NOISE",
    "LEAST_STEPS",
    "NATIVE_TYPES",
    "NOISE_LEVEL",
    "PREDICTION_TYPES",
    "PUSH_EXPONENT",
    "REFUSED",
    "forgets_noise",
    "prediction_type_of",
    "refuse_reason",
    "setting_of",
    "supported_name",
]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")

# Where alpha and sigma of a step are found.
NOISE_LEVEL = {
    # sqrt(abar_t) and sqrt(1 - abar_t)
    "CogVideoXDDIMScheduler": "alphas_cumprod",
    "DDIMParallelScheduler": "alphas_cumprod",
    "DDIMScheduler": "alphas_cumprod",
    "DDPMParallelScheduler": "alphas_cumprod",
    "DDPMScheduler": "alphas_cumprod",
    "LCMScheduler": "alphas_cumprod",
    "PNDMScheduler": "alphas_cumprod",
    "TCDScheduler": "alphas_cumprod",
    # sigma / alpha in `sigmas`, latents in the model's space
    "DEISMultistepScheduler": "preserving",
    "DPMSolverMultistepScheduler": "preserving",
    "DPMSolverSinglestepScheduler": "preserving",
    "SASolverScheduler": "preserving",
    "UniPCMultistepScheduler": "preserving",
    # sigma / alpha in `sigmas`, latents divided by alpha
    "DPMSolverSDEScheduler": "exploding",
    "EulerAncestralDiscreteScheduler": "exploding",
    "EulerDiscreteScheduler": "exploding",
    "HeunDiscreteScheduler": "exploding",
    "KDPM2AncestralDiscreteScheduler": "exploding",
    "KDPM2DiscreteScheduler": "exploding",
    "LMSDiscreteScheduler": "exploding",
    # sigma in `sigmas`, alpha = 1 - sigma
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "FlowMatchLCMScheduler": "flow",
    "LTXEulerAncestralRFScheduler": "flow",
}

_EPS_SAMPLE_V = ("epsilon", "sample", "v_prediction")

# Prediction types that the class's own `step` takes. A prior of another type drives it through eps.
NATIVE_TYPES = {
    **{name: _EPS_SAMPLE_V for name, kind in NOISE_LEVEL.items() if kind == "alphas_cumprod"},
    # It averages outputs of several timesteps, which is right for eps only.
    "PNDMScheduler": ("epsilon",),
    **{name: (*_EPS_SAMPLE_V, "flow_prediction") for name, kind in NOISE_LEVEL.items() if kind == "preserving"},
    **{name: ("epsilon", "v_prediction") for name, kind in NOISE_LEVEL.items() if kind == "exploding"},
    **{name: ("flow_prediction",) for name, kind in NOISE_LEVEL.items() if kind == "flow"},
}

# Eta of DDIM whose bounds are as wide as with the class: 1 where each step draws all of its noise afresh, measured on
# validation slices where it draws a part. All other classes but DDIM follow the predicted noise.
FRESH_NOISE = {
    "DDPMParallelScheduler": 1.0,
    "DDPMScheduler": 1.0,
    "DPMSolverSDEScheduler": 1.0,
    "EulerAncestralDiscreteScheduler": 1.0,
    "KDPM2AncestralDiscreteScheduler": 0.975,
    "LTXEulerAncestralRFScheduler": 1.0,
    "SASolverScheduler": 0.3,
    "TCDScheduler": 0.93,
    "sde-dpmsolver": 1.0,  # algorithms of the DPM solvers
    "sde-dpmsolver++": 0.95,
}

# How the push of an evaluation has to go with the training time that it covers, so that the bounds are as wide with 25
# steps as with 100 (V_unc / V_up on validation slices of the synthetic knee). All classes that are not named: 1, the
# same push in total. Less for samplers with fresh noise, since with fewer steps data consistency takes back less of a
# push; more for deterministic ones of first order, whose long steps carry less of it on, and of two evaluations.
PUSH_EXPONENT = {
    "DDPMParallelScheduler": 0.7,
    "DDPMScheduler": 0.7,
    "EulerAncestralDiscreteScheduler": 0.7,
    "LTXEulerAncestralRFScheduler": 0.7,
    "KDPM2AncestralDiscreteScheduler": 0.85,
    "TCDScheduler": 0.4,
    "sde-dpmsolver": 0.7,  # algorithms of the DPM solvers
    "sde-dpmsolver++": 0.4,
    "DDIMScheduler": 1.15,  # with eta = 0; with eta = 1 as DDPM
    "CogVideoXDDIMScheduler": 1.15,
    "DDIMParallelScheduler": 1.15,
    "EulerDiscreteScheduler": 1.15,
    "FlowMatchEulerDiscreteScheduler": 1.15,
    "FlowMatchHeunDiscreteScheduler": 1.35,
    "HeunDiscreteScheduler": 1.35,
    "KDPM2DiscreteScheduler": 1.35,
    "LMSDiscreteScheduler": 1.28,
    "PNDMScheduler": 1.28,
}

# Classes whose step replaces the predicted noise by fresh noise altogether: a push to it has no effect.
FORGETS_NOISE = {"FlowMatchLCMScheduler", "LCMScheduler"}

# Fewest steps of classes that cannot make a single one: Runge-Kutta steps come first, or a middle without noise.
LEAST_STEPS = {"PNDMScheduler": 4, "KDPM2AncestralDiscreteScheduler": 3}

_DISCRETE = "it samples tokens, not images with Gaussian noise."
_OTHER_MODEL = "it steps a model of another kind (trained for {}), whose output has no exact x0 and eps here."
_INVERSE = "it goes from an image to noise."

REFUSED = {
    "AmusedScheduler": _DISCRETE,
    "BlockRefinementScheduler": _DISCRETE,
    "DiscreteDDIMScheduler": _DISCRETE,
    "EntropyBoundScheduler": _DISCRETE,
    "VQDiffusionScheduler": _DISCRETE,
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "CMStochasticIterativeScheduler": _OTHER_MODEL.format("consistency, with its own preconditioning"),
    "ConsistencyDecoderScheduler": _OTHER_MODEL.format("decoding a latent"),
    "CosineDPMSolverMultistepScheduler": _OTHER_MODEL.format("EDM preconditioning"),
    "EDMDPMSolverMultistepScheduler": _OTHER_MODEL.format("EDM preconditioning"),
    "EDMEulerScheduler": _OTHER_MODEL.format("EDM preconditioning"),
    "FlowMapEulerDiscreteScheduler": _OTHER_MODEL.format("a distilled flow map between two times"),
    "HeliosDMDScheduler": _OTHER_MODEL.format("a distilled video pyramid"),
    "HeliosScheduler": _OTHER_MODEL.format("a video pyramid, whose stages change the image size"),
    "IPNDMScheduler": _OTHER_MODEL.format("a continuous time that is not in its config"),
    "MiniMaxH3Scheduler": _OTHER_MODEL.format("one video model, with a time that is not in its config"),
    "PiflowScheduler": _OTHER_MODEL.format("a policy rather than a velocity"),
    "RFD4ProteinaScheduler": _OTHER_MODEL.format("protein coordinates"),
    "SCMScheduler": _OTHER_MODEL.format("continuous-time consistency"),
    "DDPMWuerstchenScheduler": _OTHER_MODEL.format("a continuous time from 0 to 1"),
    "CogVideoXDPMScheduler": "its `step` asks for the clean image of the step before, replaced by consistency.",
    "KarrasVeScheduler": "its `step` asks for two noise levels, and diffusers has deprecated it.",
    "RePaintScheduler": "its `step` asks for an image and a mask in place of a measurement.",
    "UnCLIPScheduler": "its `step` goes back a single training step unless the next timestep is given.",
    "ScoreSdeVeScheduler": "it alternates predictor and corrector steps of its own.",
    "ScoreSdeVpScheduler": "it has no noise levels in discrete time, and diffusers has deprecated it.",
}


def supported_name(scheduler: SchedulerMixin) -> str | None:
    """Return the name of the supported class that a scheduler is of or derived from; `None` if there is none."""
    for base in type(scheduler).__mro__:
        if base.__name__ in NOISE_LEVEL:
            return base.__name__
        if base.__name__ in REFUSED:
            return None
    return None


def refuse_reason(scheduler: SchedulerMixin) -> str:
    """Say in a sentence why a scheduler is not supported."""
    for base in type(scheduler).__mro__:
        if base.__name__ in REFUSED:
            return REFUSED[base.__name__]
    return "nothing is known about this class."


def prediction_type_of(scheduler: SchedulerMixin) -> str:
    """Return what the model of a scheduler predicts: one of `PREDICTION_TYPES`, or what else the config says."""
    if NOISE_LEVEL.get(supported_name(scheduler) or "") == "flow":
        return "flow_prediction"
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    return "sample" if prediction_type == "original_sample" else prediction_type


def forgets_noise(scheduler: SchedulerMixin) -> bool:
    """Return whether each step replaces the predicted noise by fresh noise, and with it any push."""
    return supported_name(scheduler) in FORGETS_NOISE or bool(setting_of(scheduler, "stochastic_sampling"))


def setting_of(scheduler: SchedulerMixin, name: str, default: Any = None) -> Any:
    """Return a setting of the scheduler's class; others that `from_config` carries along have no effect."""
    classes = type(scheduler).__mro__
    constructors = [base.__init__ for base in classes if base is not object]  # type: ignore[misc]
    is_own = any(name in inspect.signature(constructor).parameters for constructor in constructors)
    return scheduler.config.get(name, default) if is_own else default
