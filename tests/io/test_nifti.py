import os

import nibabel
import numpy as np
import pytest
import torch

from sgr_diffusers.io.nifti import write_nifti


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.complex64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_comes_back_as_it_went(tmp_path, dtype, ending):
    volume = (100 * np.random.default_rng(0).random((3, 4, 5))).astype(dtype)
    if dtype == np.complex64:
        volume = volume * np.complex64(1 + 2j)
    path = tmp_path / f"volume{ending}"
    write_nifti(path, torch.from_numpy(volume), (2.5, 1.6, 1.5))
    image = nibabel.load(path)
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume)
    np.testing.assert_allclose(image.header.get_zooms(), (2.5, 1.6, 1.5))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("orientation", "codes"),
    [
        (("SI", "AP", "LR"), ("I", "P", "R")),
        (("SI", "AP", "RL"), ("I", "P", "L")),
        (("LR", "PA", "IS"), ("R", "A", "S")),
    ],
)
def test_nifti_axes_run_as_the_orientation_says(tmp_path, orientation, codes):
    write_nifti(tmp_path / "a.nii", np.zeros((3, 5, 7), np.uint8), (3.0, 2.0, 1.0), orientation)
    affine = nibabel.load(tmp_path / "a.nii").affine
    assert nibabel.aff2axcodes(affine) == codes
    np.testing.assert_allclose(affine @ [1, 2, 3, 1], [0, 0, 0, 1], atol=1e-6)  # the middle voxel


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": "a.img"}, ValueError, r"end in .nii or .nii.gz, got a.img"),
        ({"volume": np.zeros((2, 2, 2))}, TypeError, "uint8, float32 or complex64, got float64"),
        ({"voxel_size_mm": (1.0, 1.0, 0.0)}, ValueError, "three positive lengths"),
        ({"orientation": ("SI", "IS", "LR")}, ValueError, "`orientation` must hold"),
        ({"orientation": ("SI", "AP", "XY")}, ValueError, "`orientation` must hold"),
    ],
)
def test_bad_nifti_arguments_leave_nothing_behind(tmp_path, change, error, message):
    arguments = {"path": "a.nii", "volume": np.zeros((2, 2, 2), np.uint8), "voxel_size_mm": (1.0, 1.0, 1.0), **change}
    with pytest.raises(error, match=message):
        write_nifti(tmp_path / arguments.pop("path"), **arguments)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    write_nifti(path, np.ones((2, 2, 2), np.uint8), (1.0, 1.0, 1.0))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_nifti(path, np.zeros((2, 2, 2), np.uint8), (1.0, 1.0, 1.0))
    assert os.listdir(tmp_path) == ["a.nii.gz"]
    assert np.asanyarray(nibabel.load(path).dataobj).all()
