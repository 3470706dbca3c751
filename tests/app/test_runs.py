import copy
import csv
import json
import sys
import zipfile
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from sgr_diffusers.app.downloads import write_downloads
from sgr_diffusers.app.limits import AppLimits, RunRefused, RunStopped
from sgr_diffusers.app.runs import RunRequest, SliceRequest, preview_slice, run_case, run_isolated
from sgr_diffusers.app.uploads import describe_case
from sgr_diffusers.app.views import headline_view, interval_plot, message, preview_view, progress_view, result_views
from sgr_diffusers.reconstruction.demo import CASE, COVERAGE
from sgr_diffusers.reconstruction.settings import SamplingSettings
from sgr_diffusers.reconstruction.source import read_scan
from sgr_diffusers.reconstruction.volume import can_be_fast, load_pipeline, reconstruct_volume
from sgr_diffusers.schedulers.timesteps import fast_timesteps
from tests.helpers.raw_files import random_complex

CLASSES = ("femoral_cartilage", "meniscus")
LIMITS = AppLimits()


@pytest.fixture(scope="module")
def pipe(model):
    return load_pipeline(model, "cpu")


@pytest.fixture(scope="module")
def request_of_the_scan(scan):
    measurement = SliceRequest(describe_case(scan, LIMITS), 2, "poisson_4.0x")
    return RunRequest(measurement, CLASSES, n_steps=3, strength=20.0, seed=5)


@pytest.fixture(scope="module")
def result(pipe, request_of_the_scan):
    return run_case(pipe, request_of_the_scan, LIMITS)


@pytest.fixture(scope="module")
def plain_result(pipe, tmp_path_factory):
    """Of a file with neither voxel size nor fully sampled image."""
    path = tmp_path_factory.mktemp("arrays") / "scan.npy"
    mask = np.random.default_rng(0).random((24, 16)) < 0.5
    np.save(path, np.where(mask, random_complex(1, 1, 24, 16), 0))
    measurement = SliceRequest(describe_case(path, LIMITS), voxel_size_mm=(2.0, 1.0, 0.5))
    return run_case(pipe, RunRequest(measurement, CLASSES, 2), LIMITS)


def test_a_run_is_what_the_library_gives(pipe, scan, result):
    expected = reconstruct_volume(
        pipe,
        read_scan(scan, slice(2, 3), mask="poisson_4.0x"),
        SamplingSettings(classes=CLASSES, num_inference_steps=3, guidance_scale=20.0, seed=5),
    )
    np.testing.assert_array_equal(result.bounds.magnitudes, expected.magnitudes)
    np.testing.assert_array_equal(result.bounds.segmentations, expected.segmentations)
    assert result.plain is None and [row["class"] for row in result.rows()] == list(CLASSES)


def test_a_fast_run_is_what_the_library_gives_and_leaves_the_pipeline_as_it_was(
    pipe, scan, request_of_the_scan, result
):
    scheduler, config = pipe.scheduler, dict(pipe.config)
    fast = run_case(pipe, replace(request_of_the_scan, fast=True), LIMITS)
    assert pipe.scheduler is scheduler and dict(pipe.config) == config
    by_hand = copy.copy(pipe)
    by_hand.scheduler = DDPMScheduler.from_config(scheduler.config, clip_sample=False)
    settings = replace(request_of_the_scan.settings(), fast=True)
    assert settings.visited_timesteps == fast_timesteps(3)
    expected = reconstruct_volume(by_hand, fast.scan, settings)
    np.testing.assert_array_equal(fast.bounds.magnitudes, expected.magnitudes)
    assert not np.array_equal(fast.bounds.magnitudes, result.bounds.magnitudes)
    assert "3 fast steps" in headline_view(fast) and "fast" not in headline_view(result)
    again = run_case(pipe, request_of_the_scan, LIMITS)  # after a fast run: what it was before
    np.testing.assert_array_equal(again.bounds.magnitudes, result.bounds.magnitudes)


def test_whether_a_pipeline_can_be_fast(pipe):
    assert can_be_fast(pipe)
    other = copy.copy(pipe)
    other.register_to_config(trained_with={"prediction_type": "epsilon", "alphas_cumprod": None})
    assert not can_be_fast(other) and can_be_fast(pipe)


def test_a_calibrated_run_is_of_all_slices_and_what_the_library_gives(pipe):
    case = describe_case(CASE, LIMITS)
    request = RunRequest(SliceRequest(case, 0, "poisson_8.0x"), ("meniscus",), n_steps=9, seed=3, coverage=COVERAGE)
    result = run_case(pipe, request, LIMITS)
    settings = SamplingSettings(classes=("meniscus",), num_inference_steps=2, fast=True, seed=3, coverage=COVERAGE)
    expected = reconstruct_volume(pipe, read_scan(CASE, mask="poisson_8.0x"), settings)
    np.testing.assert_array_equal(result.bounds.magnitudes, expected.magnitudes)
    assert result.scan.slice_indices == (0, 1) and result.shown == 0
    (row,) = result.rows()
    assert row["interval_low_mm3"] <= row["interval_high_mm3"]
    assert ", 2 slices, " in headline_view(result) and "2 fast steps" in headline_view(result)
    plot = interval_plot(result.rows(), COVERAGE, 2)
    assert f"<b>{row['interval_low_mm3']:.0f} mm³ to {row['interval_high_mm3']:.0f} mm³</b>" in plot
    assert f"best estimate: {row['point_mm3']:.0f} mm³" in plot and "in 2 slices together" in plot
    result_views(result, "meniscus")


def test_an_interval_of_another_number_of_slices_is_refused_in_the_words_of_the_page(pipe, scan):
    measurement = SliceRequest(describe_case(scan, LIMITS), 0, "poisson_4.0x")
    with pytest.raises(ValueError, match=r"in 2 slices of a scan together, and the file has 6\. Cut out"):
        run_case(pipe, RunRequest(measurement, ("meniscus",), coverage=COVERAGE), AppLimits(max_slices=6))


@pytest.mark.parametrize(
    ("mask", "limits", "message"),
    [
        ("poisson_4.0x", LIMITS, "calibrated at 8x.* untick the interval"),
        ("poisson_8.0x", AppLimits(max_slices=1), "at most 1 here, and case.h5 has 2. Cut out"),
    ],
)
def test_an_interval_that_cannot_be_had_is_refused_in_the_words_of_the_page(pipe, mask, limits, message):
    measurement = SliceRequest(describe_case(CASE, LIMITS), 0, mask)
    with pytest.raises(ValueError, match=message):
        run_case(pipe, RunRequest(measurement, ("meniscus",), coverage=COVERAGE), limits)


ROW = {"class": "meniscus", "lower_mm3": 80.0, "upper_mm3": 149.0, "fully_sampled_mm3": 160.0, "point_mm3": 105.0}
ROW |= {"interval_low_mm3": 60.0, "interval_high_mm3": 150.0}


@pytest.mark.parametrize(
    ("attained", "n_short", "text"),
    [
        ("both", 0, "images reach both ends"),
        ("upper", 1, "images reach the upper end only"),
        ("neither", 2, "images reach neither end"),
    ],
)
def test_the_plot_marks_the_images_that_fall_short_of_their_end(attained, n_short, text):
    plot = interval_plot([ROW | {"attained": attained}], COVERAGE)
    assert plot.count('class="sgr-dot sgr-short" style') == n_short and text in plot
    assert "fully sampled: 160 mm³, outside" in plot and "90% interval" in plot


def test_without_a_fully_sampled_image_the_plain_reconstruction_is_made(plain_result):
    for row in plain_result.rows():
        assert row["fully_sampled_mm3"] is None and row["plain_mm3"] >= 0
    assert plain_result.bounds.voxel_size_mm == (2.0, 1.0, 0.5)


def test_progress_counts_every_step(pipe, request_of_the_scan):
    seen = []
    run_case(pipe, request_of_the_scan, LIMITS, lambda *progress: seen.append(progress))
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total, _ in seen} == {len(seen)} and seen[-1][2] == 0


def test_an_isolated_run_is_the_same_and_reports_its_steps(pipe, request_of_the_scan, result):
    seen = []
    isolated = run_isolated(pipe, request_of_the_scan, LIMITS, lambda *progress: seen.append(progress), lambda: False)
    np.testing.assert_array_equal(isolated.bounds.magnitudes, result.bounds.magnitudes)
    assert isolated.rows() == result.rows()
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))


def test_an_isolated_run_ends_when_it_is_stopped_and_at_its_limits(pipe, request_of_the_scan):
    seen, long = [], replace(request_of_the_scan, n_steps=100)

    def run(limits, is_stopped=lambda: False):
        run_isolated(pipe, long, limits, lambda *progress: seen.append(progress), is_stopped)

    with pytest.raises(RunStopped):
        run(LIMITS, lambda: len(seen) >= 1)
    assert len(seen) < 100
    with pytest.raises(RunRefused, match=r"longer than the 0\.0001 minutes .* Choose fewer steps"):
        run(AppLimits(max_minutes=1e-4))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_an_isolated_run_ends_at_its_limit_of_memory(pipe, tmp_path):
    np.save(tmp_path / "large.npy", np.ones((1, 2048, 2048), np.complex64))
    measurement = SliceRequest(describe_case(tmp_path / "large.npy", LIMITS), voxel_size_mm=(2.0, 1.0, 1.0))
    with pytest.raises(RunRefused, match="more memory than there is, or than the 600 MB"):
        run_isolated(
            pipe, RunRequest(measurement, CLASSES, 2), AppLimits(max_run_mb=600), lambda *progress: None, lambda: False
        )


@pytest.mark.parametrize("n_steps", [2, 100])
def test_a_run_that_takes_too_long_is_refused(pipe, request_of_the_scan, n_steps):
    wanted = replace(request_of_the_scan, n_steps=n_steps)
    with pytest.raises(RunRefused, match=r"at most 1e-07 are allowed here. Choose fewer steps or fewer tissues"):
        run_case(pipe, wanted, AppLimits(max_minutes=1e-7))
    seen = []
    if n_steps == 100:  # judged by the first steps, not after the time has passed
        with pytest.raises(RunRefused, match="would take about"):
            run_case(pipe, wanted, AppLimits(max_minutes=1e-4), lambda *progress: seen.append(progress))
        assert len(seen) < 10


@pytest.fixture(scope="module")
def without_maps(tmp_path_factory):
    """Two coils, whose maps must be estimated; no fully sampled image."""
    y, x = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 24), indexing="ij")
    body = (y**2 + x**2 < 0.6) * (1 + 0.2 * np.cos(5 * y))
    coils = np.stack([body * np.exp(x + 0.3j * y), body * np.exp(-x)])
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(coils, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    path = tmp_path_factory.mktemp("maps") / "scan.npy"
    np.save(path, kspace[None].astype(np.complex64))
    return SliceRequest(describe_case(path, LIMITS), voxel_size_mm=(2.0, 1.0, 1.0)), np.linalg.norm(coils, axis=0)


def test_a_preview_estimates_no_coil_maps(without_maps, monkeypatch):
    measurement, root_sum_of_squares = without_maps
    monkeypatch.setattr(
        "sgr_diffusers.pipeline.inputs.estimate_coil_maps", lambda *given: pytest.fail("maps were estimated")
    )
    scan, zero_filled, fully_sampled = preview_slice(measurement)
    assert scan.coil_maps is None and fully_sampled is None
    np.testing.assert_allclose(zero_filled, root_sum_of_squares, atol=1e-5)


def test_coil_maps_that_are_not_stored_are_estimated(pipe, without_maps):
    request = RunRequest(without_maps[0], CLASSES, 2)
    result = run_case(pipe, request, LIMITS)
    expected = reconstruct_volume(pipe, without_maps[0].read(), request.settings())
    np.testing.assert_array_equal(result.bounds.magnitudes, expected.magnitudes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ()}, "at least one tissue"),
        ({"n_steps": 101}, "from 2 to 100, got 101"),
        ({"n_steps": 1, "fast": True}, "from 2 to 100, got 1"),
        ({"strength": float("nan")}, "strength must be from 0 to 100"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_bad_settings(pipe, request_of_the_scan, change, said):
    with pytest.raises(ValueError, match=said):
        run_case(pipe, replace(request_of_the_scan, **change), LIMITS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slice_number": 6}, "`slices` must lie within the 6 slices of MTR_001.h5"),
        ({"mask_name": "../kspace"}, "no stored mask '../kspace'; it has poisson_4.0x"),
        ({"echo": 3}, "`echo` must be from 1 to 2"),
    ],
)
def test_what_the_file_does_not_have(request_of_the_scan, change, said):
    with pytest.raises(ValueError, match=said) as caught:
        preview_slice(replace(request_of_the_scan.measurement, **change))
    assert "/" not in str(caught.value).replace("../kspace", "")


@pytest.mark.parametrize("size", [None, (0.0, 1.0, 1.0), (1.0, 1.0, float("nan")), (1.0, 1.0, 1e6)])
def test_a_voxel_size_that_is_not_known(plain_result, size):
    with pytest.raises(ValueError, match=r"scan.npy does not state its voxel size. Enter the three edge lengths"):
        preview_slice(replace(plain_result.request.measurement, voxel_size_mm=size))


def test_downloads(result, tmp_path):
    archive, table = write_downloads(result, tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"MTR_001_slice2_bounds.zip", "MTR_001_slice2_volumes.csv"}
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["upper_mm3"]) for row in rows] == [row["upper_mm3"] for row in result.rows()]
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        file.extractall(tmp_path / "out")
    folder = tmp_path / "out" / "MTR_001_slice2"
    kinds = [f"{target}_{kind}" for target in ("lower", "upper") for kind in ("image", "segmentation")]
    images = {f"{name}_{kind}.nii.gz" for name in CLASSES for kind in kinds}
    assert {entry.name for entry in folder.iterdir()} == images | {"README.txt", "volumes.csv", "settings.json"}
    assert "not for clinical use" in (folder / "README.txt").read_text()
    image = nibabel.load(folder / "meniscus_upper_image.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), result.bounds.magnitudes[:, 1, 1])
    # the file says nothing of directions and place
    assert image.header["sform_code"] == image.header["qform_code"] == 0
    np.testing.assert_allclose(image.header.get_zooms(), (2.5, 1.6, 1.5))
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["file"] == "MTR_001.h5" and settings["seed"] == 5 and settings["mask"] == "poisson_4.0x"


def test_downloads_lie_where_the_patient_lay(result, tmp_path):
    affine = np.array([[0, 0, 1.5, 7], [0, -1.6, 0, 8], [2.5, 0, 0, 9], [0, 0, 0, 1]], float)
    moved = replace(result, scan=replace(result.scan, affine=affine))
    archive, _ = write_downloads(moved, tmp_path)
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "out")
        assert b"where the slice lay in the patient, as the raw file says" in file.read("MTR_001_slice2/README.txt")
    image = nibabel.load(tmp_path / "out/MTR_001_slice2/meniscus_lower_segmentation.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)


def test_plain_downloads(plain_result, tmp_path):
    archive, table = write_downloads(plain_result, tmp_path)
    with zipfile.ZipFile(archive) as file:
        assert "scan_slice0/unguided_image.nii.gz" in file.namelist()
    assert "plain_mm3" in table.read_text().splitlines()[0]


def test_views_of_a_result(result):
    panels, fade = result_views(result, "meniscus")
    titles = ["Fully sampled", "Lower bound", "Upper bound", "Uncertainty boundary"]
    assert [panels.index(f">{title}<") for title in titles] == sorted(panels.index(f">{title}<") for title in titles)
    for text in ("Agreement", "Room", "Violation", "Uncertainty boundary: in the upper bound"):
        assert text in panels
    assert 'type="range"' in fade and "data:image/png;base64," in fade
    whole, _ = result_views(result, "meniscus", zoom=False)
    assert "aspect-ratio:24.0000/38.4000" in whole  # 16 columns of 1.5 mm, 24 rows of 1.6 mm
    headline = headline_view(result)
    assert "MTR_001.h5, slice 2, 4x" in headline and "strength of the search 20, random seed 5" in headline


def test_sides_of_the_body_are_marked_where_they_are_known(result):
    known = replace(result, scan=replace(result.scan, orientation=("SI", "AP", "RL")))
    panels, _ = result_views(known, "meniscus")
    for side, letter in {"top": "A", "bottom": "P", "left": "R", "right": "L"}.items():
        assert f'<b class="sgr-edge sgr-{side}" aria-hidden="true">{letter}</b>' in panels
    assert "sgr-edge" not in result_views(result, "meniscus")[0]


def test_views_without_a_fully_sampled_image(plain_result):
    panels, _ = result_views(plain_result, CLASSES[0])
    assert ">Plain reconstruction<" in panels and "Violation" not in panels and "In the bound" in panels
    assert "plain reconstruction:" in interval_plot(plain_result.rows())


def test_intervals_are_drawn_to_scale():
    row = {"class": "tibial_cartilage", "lower_mm3": 400.0, "upper_mm3": 700.0, "fully_sampled_mm3": 800.0}
    absent = {"class": "meniscus", "lower_mm3": 0.0, "upper_mm3": 0.0, "fully_sampled_mm3": 0.0}
    plot = interval_plot([row, absent])
    assert "left:50.00%;width:37.50%" in plot and 'sgr-tick sgr-outside" style="left:100.00%' in plot
    assert "400 mm³ to 700 mm³" in plot and "fully sampled: 800 mm³, outside" in plot and "not found" in plot
    assert "tibial cartilage" in plot
    assert 'sgr-outside" style' not in interval_plot([absent])


def test_texts():
    assert message("<b>", "error") == '<p class="sgr-message sgr-error" role="alert">&lt;b&gt;</p>'
    assert progress_view(3, 20, 14.6) == "Step 3 of 20, about 15 s left"
    assert progress_view(3, 20, 300.0) == "Step 3 of 20, about 5 min left"


def test_preview(request_of_the_scan):
    scan, zero_filled, fully_sampled = preview_slice(request_of_the_scan.measurement)
    assert zero_filled.shape == fully_sampled.shape == tuple(scan.kspace.shape[-2:])
    expected = torch.linalg.vector_norm(scan.fully_sampled[0]).item()
    assert np.linalg.norm(fully_sampled) == pytest.approx(expected, rel=1e-5)
    view = preview_view(zero_filled, fully_sampled, scan.voxel_size_mm, scan.orientation, "<4x>")
    assert view.count("<figure>") == 2 and "Undersampled, &lt;4x&gt;" in view
    assert preview_view(zero_filled, None, scan.voxel_size_mm, None, "4x").count("<figure>") == 1
