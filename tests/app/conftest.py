"""A tiny scan in the SKM-TEA layout and an untrained pipeline with a calibration, shared by the tests of the app."""

import h5py
import pytest

from sgr_diffusers.calibration.quantiles import Group, GroupQuantiles
from sgr_diffusers.calibration.record import Calibration
from sgr_diffusers.pipeline.calibrated import calibration_settings, measured_group
from sgr_diffusers.reconstruction.demo import CASE, COVERAGE
from sgr_diffusers.reconstruction.settings import SamplingSettings
from sgr_diffusers.reconstruction.source import read_scan
from sgr_diffusers.reconstruction.volume import load_pipeline, with_fast_scheduler
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import save_tiny_pipeline


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Calibrated for two fast steps and the mask of the bundled case at 8x."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("model"))
    pipe = with_fast_scheduler(load_pipeline(folder, "cpu"))
    steps = SamplingSettings(num_inference_steps=2, fast=True)
    settings = calibration_settings(pipe, steps, steps.visited_timesteps)
    acceleration, family = measured_group(read_scan(CASE, mask="poisson_8.0x").mask)
    group, names = Group(8.0, family, (acceleration, acceleration)), tuple(pipe.class_names)
    quantiles = GroupQuantiles(group, COVERAGE, 20, names, (0.2,) * 4, (0.1,) * 4, 0.2, 0.1)
    splits = {"train": (), "tune": (), "calibration": tuple(map(str, range(20)))}
    Calibration((quantiles,), settings, splits, "fully_sampled", "all slices", (2, 2), 0, {}).save(folder)
    return folder


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    """Six slices of 24 x 16 pixels that state their voxel size, as an upload does: without annotations beside it."""
    root = write_tiny_skm_tea(tmp_path_factory.mktemp("data"), n_scans=(("train", 1),))
    path = tmp_path_factory.mktemp("upload") / "MTR_001.h5"
    (root / "files_recon_calib-24/MTR_001.h5").rename(path)
    with h5py.File(path, "a") as file:
        file.attrs["voxel_size_mm"] = (2.5, 1.6, 1.5)
    return path
