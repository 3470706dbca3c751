# Made from the Python package sgr_diffusers (Apache-2.0) by `sgr publish bundle`.
# To change it, change the package.
"""A diffusers scheduler and what it is to do enter; nothing leaves, or an error if the image would be wrong.

Whether a class can be used at all is in `scheduler_table`; here are its settings, the noise levels that the prior was
trained with, and what the call asks of it.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers import SchedulerMixin

from .sgr_scheduler_table import (
    FORGETS_NOISE,
    NOISE_LEVEL,
    PREDICTION_TYPES,
    prediction_type_of,
    refuse_reason,
    supported_name,
)

__all__ = ["check_scheduler", "noise_fingerprint"]


def noise_fingerprint(scheduler: SchedulerMixin) -> dict[str, Any]:
    """What a prior must have been trained with to be sampled by this scheduler.

    Returns:
        `prediction_type`, and `alphas_cumprod`: abar at the start, the quarters and the end of training time; `None`
        for schedulers without (flow matching).
    """
    abar = getattr(scheduler, "alphas_cumprod", None)
    if abar is not None and prediction_type_of(scheduler) != "flow_prediction":
        last = len(abar) - 1
        abar = [round(float(abar[last * quarter // 4]), 6) for quarter in range(5)]
    else:
        abar = None
    return {"prediction_type": prediction_type_of(scheduler), "alphas_cumprod": abar}


def check_scheduler(
    scheduler: SchedulerMixin,
    trained_with: dict[str, Any] | None = None,
    is_guided: bool = False,
    timesteps: Sequence[int] | None = None,
) -> None:
    """Refuse a scheduler that would give a wrong image.

    Args:
        scheduler: of diffusers.
        trained_with: `noise_fingerprint` of the scheduler that the prior was trained with; `None` checks nothing.
        is_guided: the noise that the prior predicts will be pushed.
        timesteps: that the scheduler is to visit; `None` for its own choice.

    Raises:
        TypeError: the class is not supported; the message says why.
        ValueError: it clips or thresholds x0, has an unknown prediction type, starts from pure noise with a network
            that predicts eps, does not fit what the prior was trained with, would forget a push, or cannot visit
            the timesteps.
    """
    name = type(scheduler).__name__
    if supported_name(scheduler) is None:
        raise TypeError(
            f"`scheduler` {name} is not supported: {refuse_reason(scheduler)} Set for example "
            "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    if is_guided and supported_name(scheduler) in FORGETS_NOISE:
        raise ValueError(
            f"`scheduler` {name} replaces the predicted noise by fresh noise in each step, so that guidance has no "
            "effect. Reconstruct with target='none', or set for example `pipe.scheduler = "
            "DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    if timesteps is not None:
        _check_timesteps(scheduler, timesteps)
    config = scheduler.config
    # setting: (values that work, what to do instead)
    limits = {
        "clip_sample": ((False,), "real and imaginary parts of an image are not limited to [-1, 1]"),
        "thresholding": ((False,), "it would clip the image"),
        "use_dynamic_shifting": ((False,), "the shift depends on an image size that is not that of the prior"),
        "invert_sigmas": ((False,), "it goes from image to noise"),
        "timestep_type": (("discrete",), "the prior is trained on discrete timesteps"),
        "solver_p": ((None,), "another solver's memory is out of reach of data consistency"),
        "scale_factors": ((None,), "the image size must not change between steps"),
    }
    for setting, (good, reason) in limits.items():
        value = config.get(setting, good[0])
        if value not in good and not (setting == "scale_factors" and not value):
            raise ValueError(
                f"`scheduler` must have {setting}={good[0]}, got {value!r}: {reason}. Set "
                f"`pipe.scheduler = {name}.from_config(pipe.scheduler.config, {setting}={good[0]!r})`."
            )
    if str(config.get("variance_type", "")).startswith("learned"):
        raise ValueError(
            f"`scheduler` must have a fixed variance, got variance_type={config.variance_type!r}: a learned sigma of "
            f"the prior is not used. Set `pipe.scheduler = {name}.from_config(pipe.scheduler.config, "
            "variance_type='fixed_small')`."
        )
    prediction_type = prediction_type_of(scheduler)
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`scheduler` must have a prediction_type of {PREDICTION_TYPES}, got {prediction_type!r}. Create it with "
            "the one that the prior was trained for."
        )
    if prediction_type == "flow_prediction":
        if NOISE_LEVEL[supported_name(scheduler)] != "flow" and not config.get("use_flow_sigmas"):
            raise ValueError(
                f"`scheduler` must have use_flow_sigmas=True for prediction_type='flow_prediction'. Set "
                f"`pipe.scheduler = {name}.from_config(pipe.scheduler.config, use_flow_sigmas=True)`."
            )
    elif config.get("use_flow_sigmas"):
        raise ValueError(
            f"`scheduler` must have use_flow_sigmas=False for prediction_type={prediction_type!r}: the prior knows "
            "the noise levels that it was trained with."
        )
    elif prediction_type == "epsilon" and float(scheduler.alphas_cumprod[-1]) < 1e-6:
        raise ValueError(
            "`scheduler` has rescale_betas_zero_snr=True, from whose first step no image can be computed with "
            "prediction_type='epsilon'. Create it with rescale_betas_zero_snr=False."
        )
    _check_trained_with(scheduler, trained_with)


def _check_timesteps(scheduler: SchedulerMixin, timesteps: Sequence[int]) -> None:
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(
            f"`timesteps` cannot be given to {type(scheduler).__name__}, which chooses its own. Leave them out or set "
            "`pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)`."
        )
    n_train, given = scheduler.config.num_train_timesteps, list(timesteps)
    if not given or given != sorted(set(given), reverse=True) or not 0 <= given[-1] <= given[0] < n_train:
        raise ValueError(f"`timesteps` must fall from below {n_train} to 0 or more, without repetition, got {given}.")


def _check_trained_with(scheduler: SchedulerMixin, trained_with: dict[str, Any] | None) -> None:
    if trained_with is None:
        return
    found = noise_fingerprint(scheduler)
    if found["prediction_type"] != trained_with["prediction_type"]:
        raise ValueError(
            f"`scheduler` has prediction_type={found['prediction_type']!r}, but the prior predicts "
            f"{trained_with['prediction_type']!r}. Create it by `from_config(pipe.scheduler.config)` of the scheduler "
            "that came with the prior, or set its prediction_type."
        )
    if found["alphas_cumprod"] is not None and trained_with["alphas_cumprod"] is not None:
        pairs = zip(found["alphas_cumprod"], trained_with["alphas_cumprod"], strict=True)
        if max(abs(a - b) for a, b in pairs) > 1e-3:
            raise ValueError(
                "`scheduler` has other noise levels than the prior was trained with: abar at the quarters of training "
                f"time is {found['alphas_cumprod']}, not {trained_with['alphas_cumprod']}. Give it the prior's "
                "beta_start, beta_end and beta_schedule; class defaults differ between schedulers."
            )
