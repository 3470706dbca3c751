"""Checks a diffusers scheduler against what it is to do, and refuses it if the image would be wrong.

Whether a class can be used at all is in `schedulers.support`; here are its settings, the noise levels that the prior
was trained with, and with the arguments of the call.
"""

import inspect
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, NoReturn

from diffusers import SchedulerMixin

from .support import (
    LEAST_STEPS,
    NOISE_LEVEL,
    PREDICTION_TYPES,
    forgets_noise,
    prediction_type_of,
    refuse_reason,
    setting_of,
    supported_name,
)

__all__ = ["check_scheduler", "noise_fingerprint"]

# setting: (values that work, what is wrong with others)
_LIMITS = {
    "clip_sample": ((False,), "real and imaginary parts of an image are not limited to [-1, 1]"),
    "thresholding": ((False,), "it would clip the image"),
    "use_dynamic_shifting": ((False,), "the shift depends on an image size that is not that of the prior"),
    "invert_sigmas": ((False,), "it goes from image to noise"),
    "timestep_type": (("discrete",), "the prior is trained on discrete timesteps"),
    "interpolation_type": (("linear",), "the times at the input of the prior would not be those of the noise levels"),
    "solver_p": ((None,), "another solver's memory is out of reach of data consistency"),
    "scale_factors": ((None, [], ()), "the image size must not change between steps"),
}
# Other ways to choose noise levels.
_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
# Algorithms of the DPM solvers and of SA-Solver that work with eps, into which they cannot convert a flow.
_EPS_ALGORITHMS = ("dpmsolver", "sde-dpmsolver", "noise_prediction")


def noise_fingerprint(scheduler: SchedulerMixin) -> dict[str, Any]:
    """Return the noise that a prior must have been trained with to be sampled by this scheduler.

    Returns:
        `prediction_type`; `alphas_cumprod`: abar at the start, the quarters and the end of training time, `None` for
        schedulers without (flow matching); `num_train_timesteps`, the unit of the times at the input of the network.
    """
    abar = getattr(scheduler, "alphas_cumprod", None)
    if abar is not None and prediction_type_of(scheduler) != "flow_prediction":
        last = len(abar) - 1
        abar = [round(float(abar[last * quarter // 4]), 6) for quarter in range(5)]
    else:
        abar = None
    return {
        "prediction_type": prediction_type_of(scheduler),
        "alphas_cumprod": abar,
        "num_train_timesteps": scheduler.config.get("num_train_timesteps"),
    }


def check_scheduler(
    scheduler: SchedulerMixin,
    trained_with: dict[str, Any] | None = None,
    is_guided: bool = False,
    timesteps: Sequence[int] | None = None,
    num_inference_steps: int | None = None,
) -> None:
    """Refuse a scheduler that would give a wrong image.

    Args:
        scheduler: scheduler of diffusers.
        trained_with: `noise_fingerprint` of the scheduler that the prior was trained with; `None` checks nothing.
        is_guided: flag, true if the noise that the prior predicts will be pushed.
        timesteps: timesteps that the scheduler is to visit; `None` for its own choice.
        num_inference_steps: number of steps of its own choice; `None` checks nothing.

    Raises:
        TypeError: the class is not supported; the message says why.
        ValueError: it clips or thresholds x0, has an unknown prediction type, starts from pure noise with a network
            that predicts eps, has settings that diffusers cannot combine, does not fit what the prior was trained
            with, would forget a push, or cannot visit the timesteps or make so few steps.
    """
    name = type(scheduler).__name__
    supported = supported_name(scheduler)
    if supported is None:
        raise TypeError(
            f"`scheduler` {name} is not supported: {refuse_reason(scheduler)} Set for example "
            "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    if is_guided and forgets_noise(scheduler):
        raise ValueError(
            f"`scheduler` {name} replaces the predicted noise by fresh noise in each step, so that guidance has no "
            f"effect. Reconstruct with target='none', or set for example {_way_out(scheduler)}."
        )
    for setting, (good, reason) in _LIMITS.items():
        if setting_of(scheduler, setting, good[0]) not in good:
            _refuse(scheduler, setting, good[0], reason)
    if str(setting_of(scheduler, "variance_type")).startswith("learned"):
        _refuse(scheduler, "variance_type", "fixed_small", "a learned sigma of the prior is not used")
    _check_solver(scheduler)
    _check_prediction_type(scheduler)
    _check_trained_with(scheduler, trained_with)
    if timesteps is not None:
        _check_timesteps(scheduler, timesteps)
    elif num_inference_steps is not None and not setting_of(scheduler, "skip_prk_steps"):
        least = LEAST_STEPS.get(supported, 0)
        if num_inference_steps < least:
            raise ValueError(f"`num_inference_steps` must be at least {least} for {name}, got {num_inference_steps}.")


def _refuse(scheduler: SchedulerMixin, setting: str, good: Any, reason: str) -> NoReturn:
    raise ValueError(
        f"`scheduler` must have {setting}={good!r}, got {scheduler.config[setting]!r}: {reason}. Set "
        f"`pipe.scheduler = {type(scheduler).__name__}.from_config(pipe.scheduler.config, {setting}={good!r})`."
    )


def _way_out(scheduler: SchedulerMixin) -> str:
    """Return the code that sets a scheduler for the same kind of prior without these limits."""
    if prediction_type_of(scheduler) == "flow_prediction":
        name, setting = "FlowMatchEulerDiscreteScheduler", "stochastic_sampling"
    else:
        name, setting = "DDPMScheduler", "clip_sample"
    return f"`pipe.scheduler = {name}.from_config(pipe.scheduler.config, {setting}=False)`"


def _check_solver(scheduler: SchedulerMixin) -> None:
    """Refuse settings with which the solvers of diffusers fail in the middle of sampling, or diverge."""
    if setting_of(scheduler, "algorithm_type") == "sde-dpmsolver" and setting_of(scheduler, "solver_order") == 3:
        _refuse(scheduler, "solver_order", 2, "diffusers has no third order of algorithm_type='sde-dpmsolver'")
    for setting in ("predictor_order", "corrector_order"):
        if setting_of(scheduler, setting, 1) < 1:
            _refuse(scheduler, setting, 1, "SA-Solver has no steps of order 0")
    if supported_name(scheduler) == "SASolverScheduler" and setting_of(scheduler, "use_beta_sigmas"):
        _refuse(scheduler, "use_beta_sigmas", False, "SA-Solver diverges in the long last steps it makes")


def _check_prediction_type(scheduler: SchedulerMixin) -> None:
    """Check that the prediction type is known and fits the noise levels."""
    prediction_type, name = prediction_type_of(scheduler), supported_name(scheduler) or type(scheduler).__name__
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`scheduler` must have a prediction_type of {PREDICTION_TYPES}, got {prediction_type!r}. Create it with "
            "the one that the prior was trained for."
        )
    if prediction_type != "flow_prediction":
        if setting_of(scheduler, "use_flow_sigmas"):
            reason = f"a prior with prediction_type={prediction_type!r} knows the noise levels it was trained with"
            _refuse(scheduler, "use_flow_sigmas", False, reason)
        if prediction_type == "epsilon" and float(scheduler.alphas_cumprod[-1]) < 1e-6:
            reason = "from its first step no image can be computed with prediction_type='epsilon'"
            _refuse(scheduler, "rescale_betas_zero_snr", False, reason)
    elif NOISE_LEVEL[name] == "preserving":
        if not setting_of(scheduler, "use_flow_sigmas"):
            _refuse(scheduler, "use_flow_sigmas", True, "prediction_type='flow_prediction' needs them")
        for setting in _SPACINGS:
            # UniPC alone turns Karras' levels into those of a flow; all others forget that it is one.
            if setting_of(scheduler, setting) and (name, setting) != ("UniPCMultistepScheduler", "use_karras_sigmas"):
                _refuse(scheduler, setting, False, "it replaces the noise levels of flow matching by others")
        if setting_of(scheduler, "algorithm_type") in _EPS_ALGORITHMS:
            good = "data_prediction" if name == "SASolverScheduler" else "dpmsolver++"
            _refuse(scheduler, "algorithm_type", good, "diffusers has it for predictions of eps, v or the image only")
        if not setting_of(scheduler, "predict_x0", True):
            _refuse(scheduler, "predict_x0", True, "diffusers cannot convert a flow into eps")
    elif NOISE_LEVEL[name] != "flow":
        raise ValueError(
            f"`scheduler` {name} has no noise levels of flow matching, as prediction_type='flow_prediction' needs. "
            f"Set for example {_way_out(scheduler)}."
        )


def _check_timesteps(scheduler: SchedulerMixin, timesteps: Sequence[int]) -> None:
    name = type(scheduler).__name__
    takes_times = "timesteps" in inspect.signature(scheduler.set_timesteps).parameters
    takes_times &= supported_name(scheduler) != "LTXEulerAncestralRFScheduler"  # its `timesteps` are sigmas
    if not takes_times:
        raise ValueError(
            f"`timesteps` cannot be given to {name}, which chooses its own. Leave them out or set "
            f"{_way_out(scheduler)}."
        )
    for setting in _SPACINGS:
        if setting_of(scheduler, setting):
            _refuse(scheduler, setting, False, "it chooses noise levels of its own, other than those of `timesteps`")
    n_train = scheduler.config.num_train_timesteps
    given = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
    given = list(given) if isinstance(given, Iterable) else []
    is_falling = given and all(isinstance(time, Real) for time in given) and given == sorted(set(given), reverse=True)
    if not is_falling or not 0 <= given[-1] <= given[0] < n_train:
        raise ValueError(
            f"`timesteps` must fall from below {n_train} to 0 or more, without repetition, got {timesteps!r}."
        )


def _check_trained_with(scheduler: SchedulerMixin, trained_with: dict[str, Any] | None) -> None:
    if trained_with is None:
        return
    fingerprint = noise_fingerprint(scheduler)
    if fingerprint["prediction_type"] != trained_with["prediction_type"]:
        raise ValueError(
            f"`scheduler` has prediction_type={fingerprint['prediction_type']!r}, but the prior predicts "
            f"{trained_with['prediction_type']!r}. Create it by `from_config(pipe.scheduler.config)` of the scheduler "
            "that came with the prior, or set its prediction_type."
        )
    n_train = trained_with.get("num_train_timesteps")  # not in checkpoints saved by earlier versions
    if n_train not in (None, fingerprint["num_train_timesteps"]):
        raise ValueError(
            f"`scheduler` must have num_train_timesteps={n_train}, the unit of the times that the prior was trained "
            f"with, got {fingerprint['num_train_timesteps']}."
        )
    if fingerprint["alphas_cumprod"] is not None and trained_with["alphas_cumprod"] is not None:
        pairs = zip(fingerprint["alphas_cumprod"], trained_with["alphas_cumprod"], strict=True)
        if max(abs(a - b) for a, b in pairs) > 1e-3:
            raise ValueError(
                "`scheduler` has other noise levels than the prior was trained with: abar at the quarters of training "
                f"time is {fingerprint['alphas_cumprod']}, not {trained_with['alphas_cumprod']}. Give it the prior's "
                "beta_start, beta_end and beta_schedule; class defaults differ between schedulers."
            )
