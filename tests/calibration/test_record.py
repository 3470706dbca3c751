import json
from dataclasses import replace

import numpy as np
import pytest

from sgr_diffusers.calibration.quantiles import Group, calibrate
from sgr_diffusers.calibration.record import FILE_NAME, Calibration, CalibrationMismatch, CalibrationSettings
from sgr_diffusers.calibration.scores import ScanVolumes

SETTINGS = CalibrationSettings(
    networks={"unet": "a1", "segmentation_model": "b2"},
    scheduler={"class": "DDIMScheduler", "num_train_timesteps": 1000},
    num_inference_steps=25,
    timesteps=(901, 401, 1),
    eta=1.0,
    guidance_strength=0.02,
    guidance_from=0.2,
    is_equivariant=True,
    denoising_variance={"noise_to_signal": [0.1, 1.0], "error": [0.01, 0.1]},
    consistency="cg",
    cg_iterations=3,
    final_consistency="replace",
)


def scan_ids(start, stop):
    return tuple(f"scan{number:02d}" for number in range(start, stop))


@pytest.fixture
def calibration():
    rng, n_scans = np.random.default_rng(0), 20
    lower, width, point, reference = (rng.gamma(4.0, 10.0, (n_scans, 2)) for _ in range(4))
    classes = "cartilage", "meniscus"
    volumes = ScanVolumes(scan_ids(20, 40), classes, point, lower, lower + width, reference, np.ones(n_scans))
    groups = {Group(8.0, "poisson", (7.9, 8.2)): volumes, Group(4.0, "poisson", (4.0, 4.1)): volumes}
    splits = {"train": scan_ids(0, 10), "tune": scan_ids(10, 20), "calibration": scan_ids(20, 40)}
    return Calibration(
        calibrate(groups, [0.8, 0.9]), SETTINGS, splits, "fully_sampled", "all slices", (2, 3), 0, {"torch": "2.13.0"}
    )


def test_the_file_gives_the_same_calibration_back(calibration, tmp_path):
    path = calibration.save(tmp_path)
    assert path.name == FILE_NAME
    assert Calibration.load(tmp_path) == calibration


def test_quantiles_are_found_by_coverage_and_mask(calibration):
    entry = calibration.quantiles_for(0.9, 8.1, "poisson")
    assert (entry.group.acceleration, entry.coverage, entry.n_scans) == (8.0, 0.9, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((0.95, 8.1, "poisson"), "`coverage` 0.95 has no calibration at 8x poisson. Use 0.8, 0.9"),
        ((0.9, 12.0, "poisson"), r"acceleration 12 has no calibration. Calibrated are 8x poisson \(7.9 to 8.2 measu"),
        ((0.9, 8.1, "lines"), "`mask` of kind lines"),
    ],
)
def test_what_was_not_calibrated_is_refused_by_name(calibration, call, message):
    with pytest.raises(CalibrationMismatch, match=message):
        calibration.quantiles_for(*call)


def test_other_settings_are_refused_with_the_differences(calibration):
    calibration.check_settings(SETTINGS)
    now = replace(SETTINGS, guidance_strength=0.05, networks={"unet": "a1", "segmentation_model": "c3"})
    with pytest.raises(CalibrationMismatch) as caught:
        calibration.check_settings(now)
    assert "guidance_strength: 0.02 there, 0.05 now" in str(caught.value)
    assert "networks.segmentation_model: b2 there, c3 now" in str(caught.value)
    assert "unet" not in str(caught.value)


def test_another_number_of_slices_than_that_of_the_scans_is_refused(calibration):
    calibration.check_slices(2)
    calibration.check_slices(3)
    for n_slices in (1, 4):
        with pytest.raises(CalibrationMismatch, match=f"got {n_slices}. Give 2 to 3 slices chosen likewise"):
            calibration.check_slices(n_slices)


def test_a_loaded_calibration_accepts_its_own_settings(calibration, tmp_path):
    calibration.save(tmp_path)
    Calibration.load(tmp_path).check_settings(SETTINGS)


def test_coverage_is_not_measured_on_scans_that_were_used(calibration):
    calibration.check_unseen(scan_ids(40, 60))
    with pytest.raises(CalibrationMismatch, match="scan15, scan16, scan17 and 2 more belong to the split tune"):
        calibration.check_unseen(scan_ids(15, 20))


def test_splits_must_be_complete_and_disjoint(calibration):
    with pytest.raises(ValueError, match="`splits` must name the scans of train, tune, calibration, got none of tune"):
        replace(calibration, splits={"train": (), "calibration": scan_ids(20, 40)})
    with pytest.raises(ValueError, match="must not share scans, got scan20 in train and calibration"):
        replace(calibration, splits=calibration.splits | {"train": scan_ids(20, 21)})


def test_infinite_repeated_and_impossible_quantiles_are_refused(calibration):
    entry = calibration.quantiles[0]
    with pytest.raises(ValueError, match="`quantiles` must be finite"):
        replace(calibration, quantiles=(replace(entry, all_upper=float("inf")),))
    with pytest.raises(ValueError, match="one entry for each group and coverage"):
        replace(calibration, quantiles=(entry, entry))
    with pytest.raises(ValueError, match="are of 21 scans, but `splits` names 20"):
        replace(calibration, quantiles=(replace(entry, n_scans=21),))


def test_a_checkpoint_without_calibration_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no calibration\.json: this checkpoint is not calibrated"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.pop("splits"), "an entry is missing .*splits.*sgr calibrate"),
        (lambda content: content.update(splits=5), "an entry is missing or of a wrong type"),
        (lambda content: content["splits"].update(tune="scan"), r"`splits\.tune` must be of type .*, got 'scan'"),
        (lambda content: content.update(seed="0"), "`seed` must be of type int, got '0'"),
        (lambda content: content.update(versions=["torch"]), "`versions` must be of type"),
        (lambda content: content["settings"].update(timesteps=[1.5]), "`timesteps` must be of type"),
        (lambda content: content["settings"].update(eta=True), "`eta` must be of type float, got 'True'"),
        (lambda content: content["settings"].update(scheduler="DDIM"), "`scheduler` must be of type"),
        (lambda content: content["quantiles"][0].update(lower=["a", "b"]), "`lower` must be of type"),
        (lambda content: content["quantiles"][0]["group"].update(measured=[4.0]), "`measured` must be of type"),
        (lambda content: content["quantiles"][0]["upper"].pop(), "for each of 2 classes, got 2 and 1"),
        (lambda content: content["settings"].pop("eta"), r"CalibrationSettings lacks \['eta'\]"),
        (lambda content: content.pop("n_slices"), r"Calibration lacks \['n_slices'\]"),
        (lambda content: content.update(format_version=2), "`format_version` is 2"),
        (lambda content: content["quantiles"][0].update(more=1), r"does not know \['more'\]"),
    ],
)
def test_a_damaged_file_is_refused_by_name(calibration, tmp_path, damage, message):
    path = calibration.save(tmp_path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{FILE_NAME}.*{message}"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be used .*sgr calibrate"),
        ("null", "must hold a JSON object, not NoneType.*sgr calibrate"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep.*sgr calibrate"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=f"{FILE_NAME} .*{message}"):
        Calibration.load(tmp_path)
