"""The `sgr` command, from arguments to files, on a tiny scan and an untrained pipeline."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from sgr_diffusers import SGRMRIPipeline, cli
from sgr_diffusers.io.skm_tea_file import read_skm_tea
from sgr_diffusers.mri.operators import fft2c
from sgr_diffusers.reconstruction import volume
from sgr_diffusers.reconstruction.demo import run_demo
from sgr_diffusers.reconstruction.source import read_scan
from tests.helpers.layout_fixture import TINY_SHAPE, write_tiny_skm_tea
from tests.helpers.tiny_pipeline import save_tiny_pipeline

CLASSES = ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus")


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """A folder with a data set in the SKM-TEA layout and a saved pipeline."""
    root = tmp_path_factory.mktemp("assets")
    write_tiny_skm_tea(root, n_scans=(("train", 1),))
    with h5py.File(root / "files_recon_calib-24" / "MTR_001.h5", "r+") as file:  # two coils that see different halves
        angle = np.linspace(0.2, 1.4, file["maps"].shape[1])
        maps = np.stack([np.cos(angle), 1j * np.sin(angle)], axis=-1)[None, :, None, :, None]
        file["maps"][...] = np.broadcast_to(maps, file["maps"].shape)
        coil_images = torch.from_numpy(file["target"][...] * maps[..., 0][:, :, :, None]).movedim((1, 2), (-2, -1))
        file["kspace"][...] = fft2c(coil_images).movedim((-2, -1), (1, 2)).numpy()
    save_tiny_pipeline(root / "pipeline")
    return root


@pytest.fixture(scope="module")
def scan(assets):
    return assets / "files_recon_calib-24" / "MTR_001.h5"


@pytest.fixture
def sgr(assets, scan, tmp_path, monkeypatch):
    """Call `sgr reconstruct` on the tiny scan, to the folder `out` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, file=scan, model=assets / "pipeline", steps=2, output="out"):
        return cli.main(
            ["reconstruct", str(file), "--model", str(model), "--steps", str(steps), "--output", output, *arguments]
        )

    return call


def rows_of(folder):
    with open(Path(folder) / "volumes.csv") as file:
        return list(csv.DictReader(file))


def volume_of(folder, name):
    image = nibabel.load(Path(folder) / name)
    return image, np.asarray(image.dataobj)


def test_reconstruct_writes_images_volumes_and_a_figure(sgr, capsys):
    assert sgr("--slices", "1:4", "--acceleration", "4") == 0
    expected = {"volumes.csv", "figure.png", "settings.json", "dataset_description.json", "dseg.tsv"} | {
        f"{name}_{target}_{kind}.{ending}"
        for name in CLASSES
        for target in ("lower", "upper")
        for kind in ("image", "segmentation")
        for ending in ("nii.gz", "json")
    }
    assert set(os.listdir("out")) == expected
    assert os.listdir() == ["out"]

    rows = rows_of("out")
    assert [row["class"] for row in rows] == list(CLASSES)
    for label, row in enumerate(rows, start=1):
        assert row["sampling"] == "4x"
        for target in ("lower", "upper"):
            header, labels = volume_of("out", f"{row['class']}_{target}_segmentation.nii.gz")
            assert labels.shape == (3, *TINY_SHAPE[1:]) and labels.dtype == np.uint8
            assert header.header.get_zooms() == pytest.approx((2.5, 1.6, 1.5))
            # volumes are those of the segmentation that was written, over all slices, in mm^3
            assert float(row[f"{target}_mm3"]) == pytest.approx((labels == label).sum() * 2.5 * 1.6 * 1.5)
            _, image = volume_of("out", f"{row['class']}_{target}_image.nii.gz")
            assert image.dtype == np.float32 and (image >= 0).all() and image.max() > 0
        assert float(row["fully_sampled_mm3"]) >= 0 and 0 <= float(row["residual"]) < 0.5
    assert sum(float(row["fully_sampled_mm3"]) for row in rows) > 0

    printed = capsys.readouterr().out
    assert "lower mm³" in printed and all(name.replace("_", " ") in printed for name in CLASSES)
    assert "Left open: " in printed and "Misfit: " in printed


@pytest.fixture
def without_maps(scan, tmp_path):
    path = tmp_path / "without_maps.h5"
    shutil.copy(scan, path)
    with h5py.File(path, "r+") as file:
        del file["maps"]
    return path


def test_coil_maps_and_noise_can_be_set(sgr, without_maps):
    options = {"consistency": "noise_aware", "cg_iterations": 2, "noise_std": 5.0}
    options |= {"calibration_width": 12, "kernel_width": 3, "crop": 0.0}
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert sgr("--slices", "1", "--target", "none", *arguments, file=without_maps) == 0
    settings = json.loads(Path("out/settings.json").read_text())
    assert {name: settings[name] for name in options} == options
    assert 0 < float(rows_of("out")[0]["noise_residual"])


@pytest.mark.parametrize("source", ["scan", "without_maps"])
def test_settings_of_coil_maps_that_cannot_be_met_are_refused(sgr, source, request, capsys):
    """Also where maps are stored, which are not used then."""
    file = request.getfixturevalue(source)
    assert sgr("--slices", "1", "--target", "none", "--kernel-width", "30", file=file) == 2
    assert "`kernel_width` must be a whole number from 2 to" in capsys.readouterr().err


def test_reconstruct_meets_the_measured_data(sgr, scan):
    """The images written, taken back to k-space, agree with the file where it was sampled."""
    assert (
        sgr("--slices", "2", "--mask", "poisson_4.0x", "--classes", "4", "--final-consistency", "least_squares") == 0
    )
    assert float(rows_of("out")[0]["residual"]) < 1e-3
    raw = read_skm_tea(scan, slice(2, 3), mask=4.0)
    _, image = volume_of("out", "meniscus_upper_image.nii.gz")
    # magnitudes in the unit of the file: near its fully sampled image in size
    assert 0.2 < np.median(image) / raw.fully_sampled.abs().median() < 5


def test_a_slice_does_not_depend_on_the_others(sgr):
    assert sgr("--slices", "1:4", "--acceleration", "4", "--classes", "meniscus") == 0
    assert sgr("--slices", "3", "--acceleration", "4", "--classes", "meniscus", "--batch-size", "1", output="one") == 0
    (_, several), (_, one) = (volume_of(folder, "meniscus_upper_image.nii.gz") for folder in ("out", "one"))
    np.testing.assert_allclose(several[2], one[0], rtol=1e-4, atol=1e-4 * one.max())
    other = sgr("--slices", "3", "--acceleration", "4", "--classes", "meniscus", "--seed", "1", output="other")
    assert other == 0
    assert not np.allclose(volume_of("other", "meniscus_upper_image.nii.gz")[1], one, rtol=1e-3)


def test_plain_reconstruction_of_every_second_slice_as_stored(sgr, capsys):
    assert sgr("--slices", "0:6:2", "--target", "none") == 0
    printed = capsys.readouterr().out
    assert "Misfit: " in printed and "Left open" not in printed  # a column of bounds
    assert set(os.listdir("out")) == {
        "unguided_image.nii.gz",
        "unguided_image.json",
        "unguided_segmentation.nii.gz",
        "unguided_segmentation.json",
        "volumes.csv",
        "figure.png",
        "settings.json",
        "dataset_description.json",
        "dseg.tsv",
    }
    header, labels = volume_of("out", "unguided_segmentation.nii.gz")
    assert labels.shape[0] == 3
    assert header.header.get_zooms() == pytest.approx((5.0, 1.6, 1.5))  # slices lie two apart
    for label, row in enumerate(rows_of("out"), start=1):
        assert row["sampling"].startswith("as stored") and "lower_mm3" not in row
        # a voxel left out counts nothing: those that are there keep their own volume
        assert float(row["unguided_mm3"]) == pytest.approx((labels == label).sum() * 2.5 * 1.6 * 1.5)


def test_reconstruction_without_a_segmentation_model(sgr, assets, tmp_path, capsys):
    prior_alone = SGRMRIPipeline.from_pretrained(assets / "pipeline", segmentation_model=None)
    prior_alone.save_pretrained(tmp_path / "prior")
    assert sgr("--slices", "0:2", "--target", "none", model=tmp_path / "prior") == 0
    images = {"unguided_image.nii.gz", "unguided_image.json"}
    described = {"volumes.csv", "figure.png", "settings.json", "dataset_description.json"}
    assert set(os.listdir("out")) == images | described
    [row] = rows_of("out")
    assert row["class"] == "" and 0 <= float(row["residual"]) < 1
    assert sgr("--slices", "0:2", model=tmp_path / "prior", output="bounds") == 2
    assert "no segmentation model" in capsys.readouterr().err


def test_the_general_checkpoint_and_the_mean_of_samples(sgr, capsys):
    plain = ("--slices", "0:2", "--acceleration", "4", "--target", "none", "--final-consistency", "least_squares")
    assert sgr(*plain, model="general", output="one") == 0
    _, one = volume_of("one", "unguided_image.nii.gz")
    # The file has no noise; of its texture, most would be taken for some.
    assert sgr(*plain, "--samples", "2", "--noise-std", "0.1", model="general", output="mean") == 0
    _, mean = volume_of("mean", "unguided_image.nii.gz")
    _, deviation = volume_of("mean", "unguided_standard_deviation.nii.gz")
    assert mean.shape == deviation.shape == one.shape and not np.allclose(mean, one, rtol=1e-2)
    assert 0 < np.median(deviation) < np.median(mean)
    assert sgr("--samples", "2", model="general", output="bounds") == 2
    assert "--samples 2 goes with --target none" in capsys.readouterr().err


def test_one_bound_of_one_class_without_reference(sgr, scan, tmp_path):
    file = tmp_path / "prospective.h5"
    with h5py.File(scan) as old, h5py.File(file, "w") as new:
        for key in ("kspace", "maps"):
            old.copy(key, new)
        new["kspace"][:, ::2] = 0
        new.attrs["voxel_size_mm"] = [1.0, 2.0, 3.0]
    assert sgr("--slices", "2:4", "--target", "upper", "--classes", "femoral_cartilage", file=file) == 0
    [row] = rows_of("out")
    assert row["sampling"] == "as stored (2x)" and row["fully_sampled_mm3"] == "" and "uncertain_share" not in row
    _, labels = volume_of("out", "femoral_cartilage_upper_segmentation.nii.gz")
    assert float(row["upper_mm3"]) == pytest.approx((labels == 2).sum() * 6.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slices", "4:9"], ", got 4:9."),
        (["--slices", "9"], "`slices` must lie within the 6 slices"),
        (["--echo", "3"], "`echo` must be from 1 to 2"),
        (["--acceleration", "5"], "poisson_5.0x"),
        (["--mask", "spiral"], "no masks/spiral"),
        (["--classes", "patella"], "'patella'"),
        (["--classes", "5"], "got 5"),
        (["--device", "abacus"], "`device` 'abacus'"),
        (["--voxel-size", "1", "1", "900"], "`voxel-size` must be three edge lengths"),
        (["--repetition", "1"], "has no repetitions"),
        (["--group", "scan"], "has no such group"),
        (["--model", "nowhere"], "neither a folder nor the name of a Hub repository"),
        (["--model", "."], "no model_index.json"),
    ],
)
def test_bad_arguments_end_in_one_line_and_nothing_written(sgr, capsys, arguments, said):
    assert sgr(*arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("sgr: error: ") and said in message
    assert os.listdir() == []


def foreign(path):
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "truncated"),
        (lambda path: path.write_text("not HDF5"), "cannot be opened as HDF5"),
        (foreign, "has neither a dataset `kspace` nor"),
        (lambda path: path.unlink(), "is not a file"),
    ],
)
def test_bad_files_end_in_one_line_and_nothing_written(sgr, scan, tmp_path, capsys, damage, said):
    file = tmp_path.parent / f"{tmp_path.name}.h5"
    shutil.copy(scan, file)
    damage(file)
    assert sgr("--voxel-size", "1", "1", "1", file=file) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and said in errors[0]
    assert os.listdir() == []


def test_a_file_without_voxel_size_asks_for_it(sgr, scan, tmp_path, capsys):
    file = tmp_path.parent / f"{tmp_path.name}.h5"
    shutil.copy(scan, file)  # away from its annotations
    assert sgr(file=file) == 2
    assert "--voxel-size 0.3125 0.3125 0.8" in capsys.readouterr().err
    assert read_scan(file, slice(0, 1), voxel_size_mm=(1.0, 2.0, 3.0)).voxel_size_mm == (1.0, 2.0, 3.0)


def test_slices_without_data_are_named(sgr, scan, tmp_path, capsys):
    file = tmp_path.parent / f"{tmp_path.name}.h5"
    shutil.copy(scan, file)
    with h5py.File(file, "r+") as content:
        content["kspace"][4] = 0
    assert sgr("--slices", "3:6", "--voxel-size", "1", "1", "1", file=file) == 2
    assert "`slices` [4] hold no measured data" in capsys.readouterr().err
    assert os.listdir() == []


def test_an_output_folder_is_replaced_only_on_request(sgr, capsys):
    chosen = ("--slices", "2", "--classes", "meniscus")
    assert sgr(*chosen) == 0
    assert sgr(*chosen) == 2
    assert "`output` out is already there" in capsys.readouterr().err
    assert sgr("--slices", "2", "--target", "none", "--overwrite") == 0
    assert "unguided_image.nii.gz" in os.listdir("out") and "meniscus_upper_image.nii.gz" not in os.listdir("out")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the signal may come between opening a file and its `with`
# or in a callback of a weak reference, which loses the exception: it is repeated
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(sgr, tmp_path, capsys, number):
    """A signal arrives before the first part is made."""
    seen = []

    def interrupt():
        for _ in range(6000):
            if partial := [name for name in os.listdir(tmp_path) if name.endswith(".part")]:
                seen.extend(partial)
                time.sleep(0.5)  # a signal within `__enter__` or `__exit__` of a claim may leave it, until it is stale
                os.kill(os.getpid(), number)
                return
            time.sleep(0.01)

    before = signal.default_int_handler
    inherited = signal.signal(number, before)  # a job in the background ignores SIGINT, and so would this run
    try:
        watcher = threading.Thread(target=interrupt)
        watcher.start()
        code = sgr("--acceleration", "4", steps=1000)  # longer than anybody waits
        watcher.join()
        restored = signal.getsignal(number)
    finally:
        signal.signal(number, inherited)
    assert code == 128 + number
    assert seen and os.listdir(tmp_path) == []
    assert "interrupted" in capsys.readouterr().err
    assert restored is before


def test_a_signal_within_compiled_code_is_an_interruption(sgr, monkeypatch, capsys):
    """h5py's locks turn an exception that passes them into `SystemError`."""

    def reconstruct(*arguments, **options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("sgr_diffusers.reconstruction.run.reconstruct_file", reconstruct)
    assert sgr("--acceleration", "4") == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("sgr: interrupted\n")


class _Dying:
    """Its destructor gets the signal, and what a destructor raises is lost."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_within_a_destructor_is_not_lost(sgr, monkeypatch):
    cleaned_up = []

    def reconstruct(*arguments, **options):
        dying = _Dying()
        del dying
        try:
            time.sleep(60)
        finally:
            time.sleep(2.5)  # the signal comes twice more, and must not stop the cleaning up
            cleaned_up.append(True)

    monkeypatch.setattr("sgr_diffusers.reconstruction.run.reconstruct_file", reconstruct)
    began = time.monotonic()
    assert sgr("--acceleration", "4") == 128 + signal.SIGTERM
    assert cleaned_up == [True] and time.monotonic() - began < 30


def test_a_reader_that_has_gone_is_no_error(assets):
    """As in `sgr data check DIR | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sgr_diffusers.cli", "data", "check", str(assets)]
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, "")


def test_traceback_on_request(sgr):
    with pytest.raises(ValueError, match="6 slices"):
        sgr("--slices", "9", "--traceback")


def test_demo_shows_every_acceleration_and_class(assets, scan, tmp_path, capsys):
    arguments = {"n_steps": 2, "model": str(assets / "pipeline"), "case": scan}
    for _ in range(2):  # a second demo replaces the first
        figure = run_demo(tmp_path / "demo", [4.0, 16.0], **arguments)
    assert figure.stat().st_size > 10_000
    rows = rows_of(tmp_path / "demo")
    assert [(row["sampling"], row["class"]) for row in rows] == [(a, name) for a in ("4x", "16x") for name in CLASSES]
    assert {row["fully_sampled_mm3"] for row in rows[:4]} == {row["fully_sampled_mm3"] for row in rows[4:]}
    head = "sampling  tissue              lower mm³  upper mm³  fully sampled mm³  left open  misfit  misfit of noise"
    assert head in capsys.readouterr().out


def test_half_precision_is_for_the_prior_alone(assets):
    pipe = volume.load_pipeline(assets / "pipeline", "cpu", "bfloat16")
    assert pipe.unet.dtype == torch.bfloat16
    assert next(pipe.segmentation_model.parameters()).dtype == torch.float32
