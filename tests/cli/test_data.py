"""`sgr synthesize`, `sgr data`, and `sgr reconstruct` on raw files of other kinds, down to places in the patient."""

import csv
import json
import warnings

import h5py
import nibabel
import numpy as np
import pytest

from sgr_diffusers import cli
from sgr_diffusers.data import mini_set
from sgr_diffusers.data.scan_files import close_files
from sgr_diffusers.io.skm_tea_file import read_skm_tea
from sgr_diffusers.reconstruction.source import read_scan
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.raw_files import acquisition, fft, header_xml, ismrmrd, random_complex, write_fastmri, write_ismrmrd
from tests.helpers.tiny_pipeline import save_tiny_pipeline

N = 32


@pytest.fixture
def root(tmp_path):
    yield write_tiny_skm_tea(tmp_path / "data")
    close_files()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("model") / "pipeline")


def test_synthesize_passes_every_option_on(tmp_path, capsys):
    out = tmp_path / "knees"
    options = "--scans 0 1 0 --calibration-scans 1 --matrix 2 56 64 --voxel-size 3 2 2 --coils 2 --echoes 1 "
    options += "--snr 20 --seed 5"
    assert cli.main(["synthesize", str(out), *options.split(), "--finding-probability", "0.5"]) == 0
    raw = read_skm_tea(out / "files_recon_calib-24" / "SYN_val_000.h5", mask=4.0)
    assert tuple(raw.kspace.shape) == (2, 2, 56, 64) and raw.voxel_size_mm == (3.0, 2.0, 2.0)
    with h5py.File(out / "files_recon_calib-24" / "SYN_val_000.h5") as file:
        config = file.attrs["config"]
        assert file["kspace"].shape[3] == 1
    assert (out / "annotations" / "v1.0.0" / "calibration.json").exists()
    assert (out / "files_recon_calib-24" / "SYN_calibration_000.h5").exists()
    assert '"snr": 20.0' in config and '"seed": 5' in config and '"finding_probability": 0.5' in config
    assert cli.main(["synthesize", str(out), "--matrix", "2", "4", "4"]) == 2
    assert "matrix_shape" in capsys.readouterr().err


def test_preview_says_where_the_picture_is(root, tmp_path, capsys):
    picture = tmp_path / "preview.png"
    command = ["data", "preview", str(root), "--n-slices", "2", "--output", str(picture)]
    assert cli.main([*command, "--split", "test"]) == 0
    assert capsys.readouterr().out == f"Written to {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main([*command, "--scan", "9"]) == 2
    assert "--scan 9: the split train has scans 0 to 1" in capsys.readouterr().err


def test_check_of_a_good_and_of_a_damaged_folder(root, capsys):
    assert cli.main(["data", "check", str(root), "--read"]) == 0
    printed = capsys.readouterr().out
    assert "MTR_004" in printed and "4 can be used, 0 cannot" in printed
    (root / "files_recon_calib-24/MTR_003.h5").write_bytes(b"")
    assert cli.main(["data", "check", str(root)]) == 2
    captured = capsys.readouterr()
    assert "MTR_003.h5: cannot be opened as HDF5: it is empty" in captured.out
    assert f"1 of 4 scans of {root} cannot be used" in captured.err
    assert cli.main(["data", "check", str(root / "annotations")]) == 2
    assert "train.json is missing" in capsys.readouterr().err


def test_preview(root, tmp_path, capsys):
    picture = tmp_path / "preview.png"
    command = ["data", "preview", str(root), "--output", str(picture)]
    assert cli.main([*command, "--split", "test", "--n-slices", "3"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main([*command, "--scan", "7"]) == 2
    assert "has scans 0 to 1" in capsys.readouterr().err


def test_fetch_mini_passes_its_options_on(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(mini_set, "fetch_mini", lambda *args, **kwargs: calls.append((args, kwargs)) or "there")
    assert cli.main(["data", "fetch-mini"]) == 0
    assert cli.main(f"data fetch-mini --output {tmp_path} --repo a/b --revision v2 --keep-tarballs".split()) == 0
    assert calls == [
        ((None, "arjundd/skm-tea-mini"), {"revision": None, "keep_tarballs": False}),
        ((tmp_path, "a/b"), {"revision": "v2", "keep_tarballs": True}),
    ]
    assert capsys.readouterr().out == "there\nthere\n"


@pytest.mark.parametrize("command", ["fetch-mini", "check", "preview"])
def test_help_ends_in_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", command, "--help"])
    example = " ".join(capsys.readouterr().out.split("example: sgr ")[1].split())
    assert cli.create_parser().parse_args(example.split()).data_command == command


def coil_images():
    """(coil, y, x) of a disc with structure."""
    y, x = np.mgrid[:N, :N] / N - 0.5
    image = ((y / 0.4) ** 2 + (x / 0.35) ** 2 < 1) * (1 + 0.5 * np.cos(12 * y) * np.cos(9 * x))
    centres = ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))
    return image * np.stack([np.exp(-3 * ((y - a) ** 2 + (x - b) ** 2)) for a, b in centres])


def lines():
    return np.isin(np.arange(N), [0, 3, 6, *range(8, 24), 25, 28, 31])


def scan_file(kind, folder):
    """A prospectively undersampled slice in a file of another kind; arguments, and how voxels and axes must lie."""
    kspace = np.where(lines()[:, None], fft(coil_images(), (-2, -1)), 0).astype(np.complex64)
    if kind == "numpy":
        np.savez(folder / "scan.npz", kspace=kspace, mask=np.broadcast_to(lines()[:, None], (N, N)))
        return folder / "scan.npz", ["--voxel-size", "3", "2", "1"], (3.0, 2.0, 1.0), None
    if kind == "fastmri":
        turned = np.ascontiguousarray(kspace.swapaxes(-1, -2))[None]
        xml = header_xml((N, N, 1), (N, N, 1), fov=(2.0 * N, 1.0 * N, 3.0))
        return write_fastmri(folder / "scan.h5", turned, xml, mask=lines()), [], (3.0, 2.0, 1.0), None
    acquisitions = [acquisition(kspace[:, row], int(row), position=(10, 20, 30)) for row in np.flatnonzero(lines())]
    xml = header_xml((N, N, 1), (N, N, 1), coils=4, fov=(1.0 * N, 2.0 * N, 3.0))
    return write_ismrmrd(folder / "scan.h5", xml, acquisitions), [], (3.0, 2.0, 1.0), ("S", "P", "L")


@pytest.mark.parametrize("kind", ["numpy", "fastmri", "ismrmrd"])
def test_prospective_data_end_to_end(model, tmp_path, monkeypatch, kind):
    file, arguments, spacing, axes = scan_file(kind, tmp_path)
    monkeypatch.chdir(tmp_path)
    command = [
        "reconstruct",
        str(file),
        "--model",
        str(model),
        "--steps",
        "2",
        "--output",
        "out",
        "--coils",
        "3",
        "--ismrmrd",
    ]
    assert cli.main([*command, "--target", "none", "--final-consistency", "least_squares", *arguments]) == 0
    image = nibabel.load(tmp_path / "out/unguided_image.nii.gz")
    assert image.header.get_zooms() == pytest.approx(spacing)
    assert image.header["sform_code"] == image.header["qform_code"] == (axes is not None)
    if axes is not None:  # left 10, posterior 20, superior 30
        assert nibabel.aff2axcodes(image.affine) == axes
        np.testing.assert_allclose(image.affine @ [0, N // 2, N // 2, 1], [-10, -20, 30, 1], atol=1e-4)
    with ismrmrd.Dataset("out/images.h5", mode="r") as dataset:
        copy, labels = (dataset.read_image(f"unguided_{name}", 0) for name in ("image", "segmentation"))
        np.testing.assert_array_equal(copy.data[0, 0], np.asarray(image.dataobj)[0])
        assert labels.data.shape == copy.data.shape and labels.data.dtype == np.uint16
        np.testing.assert_allclose(tuple(copy.position), (0, 0, 0) if axes is None else (10, 20, 30), atol=1e-4)
    scan = read_scan(file, voxel_size_mm=spacing)
    measured = lines()[:, None] if kind != "fastmri" else lines()[None]
    assert np.array_equal(scan.mask, np.broadcast_to(measured, (N, N)))
    assert scan.coil_maps is None and scan.fully_sampled is None
    expected = np.linalg.norm(coil_images(), axis=0)
    magnitude = np.asarray(image.dataobj)[0]
    magnitude = magnitude.T if kind == "fastmri" else magnitude
    inside = expected > 0.3
    assert np.corrcoef(magnitude[inside], expected[inside])[0, 1] > 0.5


def test_a_mask_of_a_file_without_masks(tmp_path, capsys):
    file, arguments, *_ = scan_file("numpy", tmp_path)
    assert (
        cli.main(["reconstruct", str(file), "--acceleration", "8", "--output", str(tmp_path / "o"), *arguments]) == 2
    )
    assert "scan is undersampled already" in capsys.readouterr().err


def test_what_is_not_known_is_not_claimed(model, tmp_path, capsys):
    """Without a voxel size, a plain reconstruction has no volumes; without directions, NIfTI has no coordinates."""
    kspace = fft(coil_images(), (-2, -1)) + 0.1 * random_complex(4, N, N)  # without noise, any misfit is suspect
    np.save(tmp_path / "scan.npy", kspace)
    command = ["reconstruct", str(tmp_path / "scan.npy"), "--model", str(model), "--steps", "2", "--acceleration", "2"]
    assert cli.main([*command, "--output", str(tmp_path / "bounds")]) == 2
    assert "`voxel-size` is needed" in capsys.readouterr().err
    plain = ["--output", str(tmp_path / "plain"), "--target", "none", "--final-consistency", "least_squares"]
    assert cli.main([*command, *plain]) == 0
    printed = capsys.readouterr().out
    assert "unknown, neither directions nor positions" in printed and "mm³" not in printed
    with open(tmp_path / "plain" / "volumes.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["unguided_mm3"] for row in rows} == {""} and {row["sampling"] for row in rows} == {"2x"}
    image = nibabel.load(tmp_path / "plain" / "unguided_image.nii.gz")
    assert image.header["sform_code"] == image.header["qform_code"] == 0
    assert image.header.get_xyzt_units()[0] == "unknown"
    record = json.loads((tmp_path / "plain" / "settings.json").read_text())
    assert record["geometry"].startswith("unknown") and record["mask"] == 2


def test_what_contradicts_the_data_is_said_in_a_line(tmp_path, capsys):
    kspace = np.where(np.arange(N) % 2, random_complex(2, N, N), 0)
    np.savez(tmp_path / "scan.npz", kspace=kspace, mask=np.ones((N, N)))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["reconstruct", str(tmp_path / "scan.npz"), "--output", str(tmp_path / "out")]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("sgr: warning: `mask` for ") and "zero in all coils" in warning
    assert error.startswith("sgr: error: `voxel-size` is needed")
