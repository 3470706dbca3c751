"""Tests of the comparison on real scans, on generated files of tiny size."""

import json

import baselines
import benchmark_real
import h5py
import numpy as np
import pandas as pd
import pytest
import real_cases
import torch

from sgr_diffusers.data.synthetic.knee import SyntheticKneeConfig, write_synthetic_dataset
from tests.helpers.tiny_pipeline import save_tiny_pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the three files of real data, here of discs, and with test scans in the SKM-TEA layout."""
    root = tmp_path_factory.mktemp("real")
    y, x = np.mgrid[-1:1:48j, -1:1:32j]
    discs = (x**2 + y**2 < 0.6) * 0.5 + ((x - 0.2) ** 2 + y**2 < 0.1) * 0.4 + 0.01
    np.savez(root / "knee_fse_axial14.npz", images=np.stack([discs, discs[::-1]]).astype(np.float16), ids=["P1", "P2"])
    scan = real_cases.simulate("brain16", "discs", torch.from_numpy(discs).to(torch.complex64), [0], snr=40)
    with h5py.File(root / "brain16_gre96.h5", "w") as file:
        file["kspace"], file["maps_bart"] = scan.kspace.numpy(), scan.coil_maps[None].numpy()
        file["noise_std_per_component"] = np.float32(scan.sigma)
    with h5py.File(root / "brain_t1c.h5", "w") as file:
        file["image"] = np.uint8(200 * np.stack([discs[:32]] * 5))
        file["patient"], file["fold"] = np.int16([4, 7, 7, 7, 9]), np.int8([1, 3, 3, 3, 3])
    config = SyntheticKneeConfig(matrix_shape=(6, 32, 32), accelerations=(3.0,), calibration_shape=(6, 6), n_echoes=1)
    write_synthetic_dataset(root / "scans", (0, 0, 1), config, n_workers=1, progress=False)
    return root


@pytest.fixture
def few_iterations(monkeypatch):
    """Baselines that take little time."""
    quick = {"sigpy_iterations": 5, "bart_iterations": 5, "cg_most_iterations": 5, "lambda_factors": [10]}
    for name, value in quick.items():
        monkeypatch.setitem(baselines.SETTINGS, name, value)


def scans(files, kind):
    return list(real_cases.READERS[kind](real_cases.Source(files, files / "scans")))


@pytest.mark.parametrize("kind", ["fse", "fse-low", "brain16", "fold3", "folder"])
def test_every_kind_of_case_fits_its_references_up_to_the_noise(files, kind):
    case = real_cases.undersample(scans(files, kind)[0], 3, seed=0)
    for reference in case.references.values():
        misfit = (case.operator.forward(reference) - case.kspace)[:, case.mask]
        assert misfit.real.std() < 1.5 * case.scan.sigma
    if case.scan.noise_free is not None:
        assert misfit.real.std() > 0.85 * case.scan.sigma


def test_one_slice_of_each_patient_of_fold_3_is_read(files):
    assert [scan.name for scan in scans(files, "fold3")] == ["patient7", "patient9"]


def test_a_resampled_knee_keeps_its_intensities_and_field_of_view(files):
    fine, coarse = scans(files, "fse")[0].noise_free.abs(), scans(files, "fse-low")[0].noise_free.abs()
    assert coarse.shape == (16, 12)
    assert coarse[8, 3] == pytest.approx(float(fine[24, 8]), rel=0.2)
    assert coarse.mean() == pytest.approx(float(fine.mean()), rel=0.1)


def test_the_lambda_of_least_error_is_found():
    reference = torch.ones(4, 4)
    known = {}
    found = baselines.tune(lambda value: reference * (1 + np.log10(value / 0.2)), reference, known)
    assert 0.2 / 1.4 < found < 0.2 * 1.4
    assert len(known) < 12


def test_results_name_every_method_and_baselines_are_computed_once(
    files, few_iterations, tmp_path, capsys, monkeypatch
):
    model = save_tiny_pipeline(tmp_path / "model")
    arguments = ["--real-dir", str(files), "--data-dir", str(files / "scans"), "--cache", str(tmp_path / "cache")]
    arguments += ["--accelerations", "3", "--samples", "2", "--steps", "2", "--limit", "1", "--num-threads", "1"]
    arguments += ["--setting", "cg_iterations=1", "--model", str(model)]
    first = ["--cases", "brain16", "folder", "--output", str(tmp_path / "first")]
    benchmark_real.main([*arguments, str(model / "unet"), *first])
    screen = capsys.readouterr().out
    assert "Reference: fully sampled" in screen and "Reference: noise free" in screen

    table = pd.read_csv(tmp_path / "first" / "results.csv")
    assert set(table["method"]) >= {"zero_filled", "cg_sense", "l1_wavelet", "sample", "mean"}
    assert (table.loc[table["method"] == "l1_wavelet", "ratio"] == 1).all()
    assert np.isfinite(table[["nrmse", "nrmse_magnitude", "psnr", "ssim", "ratio"]]).all(axis=None)
    assert (table.loc[table["method"] == "mean", "dispersion"] > 0).all()
    best = table[table["method"] == "cg_sense"]["nrmse"].to_numpy()
    assert (best <= table[table["method"] == "zero_filled"]["nrmse"].to_numpy()).all()
    assert len(list((tmp_path / "first").glob("*_3x.png"))) == 2
    record = json.loads((tmp_path / "first" / "results.json").read_text())
    assert len(record["rows"]) == len(table) and len(record["weights"]) == 2

    monkeypatch.setattr(baselines, "compute", lambda case: pytest.fail("computed again"))
    benchmark_real.main([*arguments, "--cases", "brain16", "--output", str(tmp_path / "second")])
    again = pd.read_csv(tmp_path / "second" / "results.csv")
    same = table[(table["kind"] == "brain16") & (table["model"] != "model/unet")].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), same.drop(columns="seconds"))
