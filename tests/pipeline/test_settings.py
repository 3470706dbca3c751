"""Settings are declared once; the call, the commands and the records follow."""

import inspect
from dataclasses import asdict, fields

import pytest

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.evaluation.settings import EvaluationSettings
from sgr_diffusers.pipeline.settings import CallSettings
from sgr_diffusers.reconstruction.settings import SamplingSettings


def test_the_call_has_every_setting_with_its_default():
    parameters = inspect.signature(SGRMRIPipeline.__call__).parameters
    defaults = {entry.name: entry.default for entry in fields(CallSettings)}
    assert {name: parameters[name].default for name in defaults} == defaults
    assert set(SamplingSettings().call_arguments()) <= set(parameters)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"calibration_width": 0}, r"`calibration_width` must be a whole number of at least 1, got 0"),
        ({"noise_std": -1.0}, r"`noise_std` must be positive and finite, got -1.0. Leave it out"),
        ({"eta": float("nan")}, r"`eta` must be from 0 .*got nan"),
        ({"fast": True, "timesteps": (5, 0)}, r"`timesteps` must not be given with `fast`"),
        ({"timesteps": (5, -1)}, r"`timesteps` must be a whole number of at least 0, got -1"),
        ({"seed": -1}, r"`seed` must be a whole number of at least 0"),
    ],
)
def test_settings_check_themselves(given, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**given)


@pytest.mark.parametrize(
    ("given", "n_steps", "n_visited"),
    [
        ({}, 100, None),
        ({"fast": True}, 25, 25),
        ({"fast": True, "num_inference_steps": 3}, 3, 3),
        ({"timesteps": (9, 4, 0)}, 3, 3),
    ],
)
def test_the_number_of_steps_follows_from_the_way_they_are_chosen(given, n_steps, n_visited):
    settings = SamplingSettings(**given)
    visited = settings.visited_timesteps
    assert (settings.num_inference_steps, None if visited is None else len(visited)) == (n_steps, n_visited)
    assert asdict(settings)["num_inference_steps"] == n_steps


def test_fast_steps_of_the_mean_of_samples_start_at_less_noise():
    one, several = (SamplingSettings(target="none", fast=True, num_samples=n).visited_timesteps for n in (1, 2))
    assert len(one) == len(several) == 25
    assert (one[0], several[0]) == (500, 250)


def test_an_evaluation_records_the_timesteps_that_it_visits():
    identity = EvaluationSettings(fast=True, num_inference_steps=4).identity()
    assert len(identity["timesteps"]) == identity["num_inference_steps"] == 4 and identity["echo"] == 1
