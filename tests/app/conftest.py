"""A tiny scan in the SKM-TEA layout and an untrained pipeline with a calibration, shared by the tests of the app."""

import h5py
import pytest

from sgr_diffusers.reconstruction.demo import CASE
from sgr_diffusers.reconstruction.source import read_scan
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import calibrate_tiny_pipeline, save_tiny_pipeline


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Calibrated for two fast steps and the mask of the bundled case at 8x."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("model"))
    return calibrate_tiny_pipeline(folder, read_scan(CASE, mask="poisson_8.0x").mask, 8.0)


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    """Six slices of 24 x 16 pixels that state their voxel size, as an upload does: without annotations beside it."""
    root = write_tiny_skm_tea(tmp_path_factory.mktemp("data"), n_scans=(("train", 1),))
    path = tmp_path_factory.mktemp("upload") / "MTR_001.h5"
    (root / "files_recon_calib-24/MTR_001.h5").rename(path)
    with h5py.File(path, "a") as file:
        file.attrs["voxel_size_mm"] = (2.5, 1.6, 1.5)
    return path
