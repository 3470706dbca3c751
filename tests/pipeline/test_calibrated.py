"""Calls with `coverage`: the interval is that of the checkpoint's calibration, and the images lie at its ends."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sgr_diffusers import SegmentationGuidance, SGRMRIPipeline, read_raw
from sgr_diffusers.calibration.quantiles import Group, GroupQuantiles
from sgr_diffusers.calibration.record import FILE_NAME, Calibration, CalibrationMismatch
from sgr_diffusers.calibration.scores import N_SAMPLES
from sgr_diffusers.pipeline.calibrated import calibration_settings, load_calibration, measured_group
from sgr_diffusers.pipeline.settings import CallSettings
from sgr_diffusers.pretrained import BRAIN_TUMOUR, PRETRAINED
from sgr_diffusers.reconstruction.volume import load_pipeline, with_fast_scheduler
from sgr_diffusers.schedulers.timesteps import fast_timesteps
from sgr_diffusers.utils.weights import weights_hash
from tests.helpers.pipeline_parts import build, call, draw_problem

CALL = {"num_inference_steps": 6, "guidance_strength": 0.2}
CLASSES = ("one", "two")


def calibration_of(pipe, quantiles=(0.02, 0.1)):
    acceleration, family = measured_group(draw_problem()["mask"].numpy())
    group = Group(8.0, family, (acceleration, acceleration))
    lower, upper = ((quantile,) * 2 for quantile in quantiles)
    splits = {"train": (), "tune": (), "calibration": tuple(map(str, range(20)))}
    entry = GroupQuantiles(group, 0.9, 20, CLASSES, lower, upper, *quantiles, upper, (20,) * len(CLASSES))
    settings = calibration_settings(pipe, CallSettings(**CALL), None)
    return Calibration((entry,), settings, splits, "fully_sampled", "all slices", (2, 2), 0, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipe = build("unet")
    pipe.save_pretrained(folder)
    calibration_of(pipe).save(folder)
    return folder


@pytest.fixture
def pipe(folder):
    pipe = SGRMRIPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_interval_lies_around_the_mean_of_samples_and_the_images_at_its_ends(pipe):
    size = (1.0, 2.0, 3.0)
    out = call(pipe, coverage=0.9, voxel_size_mm=size, **CALL)
    bounds = call(pipe, voxel_size_mm=size, **CALL)
    lower, upper = bounds.volumes_mm3.sum(dim=0).double().numpy().T
    generator = torch.Generator().manual_seed(0)
    plain = call(pipe, target="none", voxel_size_mm=size, generator=generator, **CALL)
    others = call(pipe, target="none", voxel_size_mm=size, generator=generator, num_samples=N_SAMPLES - 1, **CALL)
    samples = torch.cat([plain.segmentations, others.segmentations], dim=2)
    point = [6.0 * float((samples == label).sum()) / N_SAMPLES for label in (1, 2)]
    assert len({float((samples[:, :, k] == 1).sum()) for k in range(N_SAMPLES)}) > 1  # samples differ
    assert out.point_estimates_mm3.tolist() == pytest.approx(point)
    (entry,) = calibration_of(pipe).quantiles
    expected = np.stack(entry.interval(np.array(point), lower, upper, 6.0), axis=1)
    np.testing.assert_allclose(out.target_volumes_mm3, expected, rtol=1e-5)
    volumes = out.volumes_mm3.sum(dim=0)
    is_near = (volumes - out.target_volumes_mm3).abs() <= (0.05 * out.target_volumes_mm3).clamp_min(6.0)
    assert torch.equal(out.attained, is_near) and out.attained.any()
    # the images fit the measurement as the unguided ones do
    torch.testing.assert_close(out.data_residual, plain.data_residual.expand_as(out.data_residual), rtol=1e-3, atol=0)
    for k in range(2):
        assert torch.equal(out.volumes_mm3[:, k], 6.0 * (out.segmentations[:, k] == k + 1).sum(dim=(-2, -1)))


def test_numpy_tuples_and_classes(pipe):
    out = call(pipe, coverage=0.9, classes="two", output_type="np", **CALL)
    assert out.classes == ("two",) and out.attained.shape == (1, 2)
    assert isinstance(out.attained, np.ndarray) and isinstance(out.images, np.ndarray)
    values = call(pipe, coverage=0.9, classes="two", return_dict=False, **CALL)
    np.testing.assert_array_equal(values[0], out.images)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"coverage": 0.8}, "`coverage` 0.8 has no calibration at 8x .* Use 0.9"),
        (
            {"num_inference_steps": 5},
            "`coverage` was calibrated with other settings: num_inference_steps: 6 there, 5 now",
        ),
        ({"guidance_scale": 2.0}, "guidance_strength: 0.2 there, 0.4 now"),
        ({"target": "upper"}, "`coverage` needs target='both'"),
        ({"guidance": SegmentationGuidance()}, "`coverage` needs target='both' and no `guidance`"),
    ],
)
def test_a_call_that_was_not_calibrated_is_refused(pipe, changed, message):
    with pytest.raises(ValueError, match=message):
        call(pipe, **{"coverage": 0.9, **CALL, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"is_equivariant": True}, "is_equivariant: false there, true now"),
        ({"denoising_variance": {"noise_to_signal": [0.1, 1.0], "error": [0.01, 0.1]}}, "denoising_variance: null"),
    ],
)
def test_a_pipeline_with_another_configuration_is_refused(pipe, changed, message):
    pipe.register_to_config(**changed)
    with pytest.raises(CalibrationMismatch, match=message):
        call(pipe, coverage=0.9, **CALL)


def test_other_masks_slices_networks_and_checkpoints_are_refused(pipe):
    with pytest.raises(CalibrationMismatch, match=r"`mask` of kind .* has no calibration"):
        call(pipe, draw_problem(share=0.2), coverage=0.9, **CALL)
    with pytest.raises(CalibrationMismatch, match=r"the volume in 2 slices of a scan together, .* got 1"):
        call(pipe, draw_problem(n_slices=1), coverage=0.9, **CALL)
    pipe.unet.conv_in.weight.data += 1
    with pytest.raises(CalibrationMismatch, match=r"networks\.unet"):
        call(pipe, coverage=0.9, **CALL)
    with pytest.raises(CalibrationMismatch, match=f"`coverage` needs a pipeline .* with {FILE_NAME}"):
        call(build("unet"), coverage=0.9, **CALL)


def test_a_saved_pipeline_keeps_its_calibration(pipe, folder, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert Calibration.load(tmp_path) == Calibration.load(folder)


@pytest.mark.parametrize("name", ["synthetic_knee", "brain_tumour"])
def test_bundled_checkpoints_are_calibrated_for_their_fast_setting(name):
    pipe = with_fast_scheduler(load_pipeline(name))
    calibration = load_calibration(pipe.name_or_path)
    settings = CallSettings(num_inference_steps=calibration.settings.num_inference_steps)
    timesteps = fast_timesteps(settings.num_inference_steps)
    calibration.check_settings(calibration_settings(pipe, settings, timesteps))


def test_the_prior_of_the_brain_tumour_checkpoint_is_that_of_the_general_one_and_is_saved_with_it(tmp_path):
    pipe = load_pipeline("brain_tumour")
    assert pipe.class_names == ("tumour",) and not list((BRAIN_TUMOUR / "unet").glob("*.safetensors"))
    assert weights_hash(pipe.unet) == weights_hash(load_pipeline("general").unet)
    pipe.save_pretrained(tmp_path)
    saved = SGRMRIPipeline.from_pretrained(tmp_path)
    assert weights_hash(saved.unet) == weights_hash(pipe.unet)
    assert load_calibration(saved.name_or_path) == load_calibration(pipe.name_or_path)


def test_a_call_that_chooses_no_steps_takes_those_of_the_calibration(tmp_path):
    pipe = with_fast_scheduler(build("unet"))
    pipe.save_pretrained(tmp_path)
    timesteps = [300, 150, 50, 0]
    settings = calibration_settings(pipe, CallSettings(guidance_strength=0.2), timesteps)
    replace(calibration_of(pipe), settings=settings).save(tmp_path)
    given = {"coverage": 0.9, "guidance_strength": 0.2}
    pipe = SGRMRIPipeline.from_pretrained(tmp_path)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    out = call(pipe, **given, num_inference_steps=100)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    expected = call(with_fast_scheduler(pipe), **given, timesteps=timesteps, num_inference_steps=4)
    assert torch.equal(out.images, expected.images)


def test_the_bundled_case_belongs_to_the_calibration_of_the_bundled_checkpoint():
    calibration = Calibration.load(PRETRAINED)
    for acceleration in (4.0, 8.0, 12.0, 16.0):
        mask = read_raw(PRETRAINED / "case.h5", slices=[0], mask=acceleration).mask
        assert calibration.quantiles_for(0.9, *measured_group(mask)).group.acceleration == acceleration
