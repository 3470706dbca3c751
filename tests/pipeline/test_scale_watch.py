"""Images of another scale than the prior's are warned of."""

import warnings

import pytest
import torch

from sgr_diffusers import SGRMRIPipeline, read_raw
from sgr_diffusers.pipeline.scale_watch import ScaleWatch
from sgr_diffusers.pretrained import PRETRAINED
from sgr_diffusers.schedulers.sampler import NoiseLevel


@pytest.fixture(scope="module")
def bundled():
    pipe = SGRMRIPipeline.from_pretrained(PRETRAINED)
    pipe.set_progress_bar_config(disable=True)
    return pipe, read_raw(PRETRAINED / "case.h5", slices=[0], mask=8.0)


def warnings_of(bundled, scale_correction):
    """Texts of the warnings that concern the scale, of a call that ends below the noise levels that tell it."""
    pipe, scan = bundled
    pipe.register_to_config(scale_correction=scale_correction)

    def end_early(pipe, step, timestep, tensors):
        pipe._interrupt = int(timestep) < 390

    generator = torch.Generator().manual_seed(0)
    settings = {"target": "none", "num_inference_steps": 15, "generator": generator, "coil_maps": scan.coil_maps}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe(scan.kspace, scan.mask, callback_on_step_end=end_early, **settings)
    return [str(each.message) for each in caught if "scale_correction" in str(each.message)]


def test_the_scale_of_the_training_is_not_warned_of(bundled):
    assert warnings_of(bundled, 1.0) == []


@pytest.mark.parametrize(
    ("scale_correction", "trained", "way"), [(4.0, "stronger", "smaller"), (0.25, "weaker", "larger")]
)
def test_another_scale_is_warned_of_once_with_the_way_to_go(bundled, scale_correction, trained, way):
    (text,) = warnings_of(bundled, scale_correction)
    assert f"trained with {trained} images" in text and f"a {way} `scale_correction`" in text


def test_a_prior_that_predicts_nothing_is_warned_of():
    watch = ScaleWatch()
    for _ in range(4):
        watch.note(NoiseLevel(0.4, 0.9, "sample"), torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8))
    with pytest.warns(UserWarning, match="inf times as strong as the prior predicts"):
        watch.warn()
