"""Name and settings of a scheduler enter; one for the noise levels of the paper's prior leaves."""

import inspect

import diffusers

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def create(name, prediction_type="epsilon", **settings):
    """A scheduler of that class with the noise levels of the paper's prior, and no clipping."""
    scheduler_class = getattr(diffusers, name)
    known = inspect.signature(scheduler_class.__init__).parameters
    wanted = {**BETAS, "clip_sample": False, "prediction_type": prediction_type, **settings}
    if prediction_type == "flow_prediction":
        wanted["use_flow_sigmas"] = True
    return scheduler_class(**{key: value for key, value in wanted.items() if key in known})
