from dataclasses import replace

import numpy as np
import pytest

from sgr_diffusers.data.brain_tumour.simulation import AcquisitionConfig, SimulatedScanner
from sgr_diffusers.data.synthetic.acquisition import ifft2c
from tests.helpers.brain_tumour_files import image_and_tumour

SMALL = AcquisitionConfig(size=20, n_coils=4, accelerations=(2.0, 4.0), calibration_shape=(6, 6))


def blocks(image):
    """The 2 x 2 pixels of each of 20 x 20 larger ones."""
    return image.reshape(20, 2, 20, 2).transpose(0, 2, 1, 3)


def measure(config=SMALL, patient_id="a", number=1, index=0):
    image, tumour = image_and_tumour(number)
    return SimulatedScanner(config, patient_id).measure(image.astype(np.float32), tumour, index)


def test_the_target_is_the_averaged_image_times_a_smooth_phase():
    result = measure(replace(SMALL, snr=1e6))
    image, tumour = image_and_tumour(1)
    averaged, target = blocks(image).mean(axis=(2, 3)), result["target"][..., 0]
    np.testing.assert_allclose(np.abs(target) / np.abs(target).max(), averaged / averaged.max(), atol=1e-4)
    bright = averaged > 0.5 * averaged.max()
    steps = np.angle(target[1:] * target[:-1].conj())[bright[1:] & bright[:-1]]
    assert np.abs(steps).max() < 1.5 and np.std(np.angle(target[bright])) > 0.1
    np.testing.assert_array_equal(result["labels"], blocks(tumour).mean(axis=(2, 3)) >= 0.5)


def test_kspace_maps_and_target_belong_together():
    result = measure()
    kspace, maps = result["kspace"][:, :, 0].transpose(2, 0, 1), result["maps"].transpose(2, 0, 1)
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose((maps.conj() * ifft2c(kspace)).sum(axis=0), result["target"][..., 0], atol=1e-3)


def test_noise_is_as_strong_as_the_snr_says():
    result, scanner = measure(), SimulatedScanner(SMALL, "a")
    noise = result["target"][..., 0][blocks(image_and_tumour(1)[0]).max(axis=(2, 3)) == 0]
    assert np.std(noise.real) == pytest.approx(scanner.unit / SMALL.snr, rel=0.25)
    assert np.quantile(np.abs(result["target"]), 0.99) == pytest.approx(scanner.unit, rel=0.1)


def test_seed_patient_and_slice_decide_on_what_is_drawn():
    first, again = measure(), measure()
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    for other in (measure(patient_id="b"), measure(index=1), measure(replace(SMALL, seed=1))):
        assert np.abs(first["kspace"] - other["kspace"]).max() > 0.01 * np.abs(first["kspace"]).max()


def test_masks_reach_their_accelerations():
    for acceleration, mask in SimulatedScanner(SMALL, "a").masks().items():
        assert mask.shape == (20, 20) and mask.size / mask.sum() == pytest.approx(acceleration, rel=0.06)
        assert mask[7:13, 7:13].all()


@pytest.mark.parametrize("image", [np.zeros((20, 20)), np.ones((20, 30)), np.full((20, 20), np.nan)])
def test_bad_images_are_refused(image):
    with pytest.raises(ValueError, match="`image` must"):
        SimulatedScanner(SMALL, "a").measure(image.astype(np.float32), np.zeros(image.shape, bool), 0)


@pytest.mark.parametrize("wrong", [{"snr": 0.0}, {"size": 4}, {"n_coils": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` (must be|at least)"):
        AcquisitionConfig(**wrong)
