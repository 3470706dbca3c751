"""What the page offers for each model."""

import pytest

from sgr_diffusers.app.limits import AppLimits
from sgr_diffusers.app.visits import Visits
from sgr_diffusers.reconstruction.volume import load_pipeline

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")


@pytest.fixture
def make_events(model, tmp_path):
    from sgr_diffusers.app.events import PageEvents

    return lambda is_default: PageEvents(load_pipeline(model, "cpu"), AppLimits(), Visits(tmp_path), is_default)


def test_a_file_of_a_brain_gets_the_model_for_tumours(make_events):
    from sgr_diffusers.app.events import BUNDLED, OWN

    events = make_events(is_default=True)
    model, tissues, interval, _ = events.choose_source(OWN)
    assert model["visible"] and model["value"] == "general"
    assert len(tissues["value"]) == 4 and not interval["visible"]
    tissues, interval, *_ = events.choose_model("brain_tumour")
    assert tissues["value"] == ["tumour"] and interval["visible"] and not interval["value"]
    model, _, interval, _ = events.choose_source(BUNDLED)
    assert model["value"] == "synthetic_knee" and not model["visible"] and interval["value"]


def test_a_model_of_ones_own_is_the_only_one(make_events):
    from sgr_diffusers.app.events import OWN

    assert not make_events(is_default=False).choose_source(OWN)[0]["visible"]
