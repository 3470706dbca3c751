"""`sgr calibrate` and `sgr evaluate --coverage` with a tiny pipeline, and the table of what was covered."""

import json

import numpy as np
import pandas as pd
import pytest

from sgr_diffusers import SGRMRIPipeline, cli
from sgr_diffusers.calibration.quantiles import Group, calibrate, scans_needed
from sgr_diffusers.calibration.record import Calibration, CalibrationMismatch, CalibrationSettings
from sgr_diffusers.calibration.scores import ScanVolumes
from sgr_diffusers.data.scan_files import close_files
from sgr_diffusers.data.skm_tea import CLASS_NAMES
from sgr_diffusers.evaluation.calibrate import arrays_of, check_scans, seen_scans
from sgr_diffusers.evaluation.coverage import ALL_CLASSES, coverage_rows, coverage_table
from sgr_diffusers.evaluation.curves import width_figure
from sgr_diffusers.io.skm_tea_file import read_skm_tea
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import save_tiny_pipeline

GROUP = Group(8.0, "lines", (8.0, 8.1))


def volumes_of(seed, n_scans, start=0):
    """Scans whose point estimates are off by a random part of the width of the bounds."""
    rng = np.random.default_rng(seed)
    truth, width = rng.gamma(4.0, 50.0, (n_scans, 2)), rng.gamma(2.0, 10.0, (n_scans, 2))
    centre = truth + 0.6 * width * rng.normal(size=(n_scans, 2))
    lower, upper = np.maximum(centre - width / 2, 0), np.maximum(centre + width / 2, 0)
    ids = tuple(f"scan{number}" for number in range(start, start + n_scans))
    point = np.maximum(centre, 0)
    return ScanVolumes(ids, ("one", "two"), point, lower, upper, truth, np.ones(n_scans))


def first_scans(scans, n):
    arrays = (getattr(scans, f"{name}_mm3")[:n] for name in ("point", "lower", "upper", "reference", "voxel"))
    return ScanVolumes(scans.scan_ids[:n], scans.classes, *arrays)


@pytest.fixture
def calibration():
    calibrated = volumes_of(0, 999)
    settings = CalibrationSettings({}, {}, 4, None, 1.0, 0.1, 1.0, False, None, "cg", 5, "replace")
    splits = {"train": ("a",), "tune": ("b",), "calibration": calibrated.scan_ids}
    quantiles = calibrate({GROUP: calibrated}, [0.8, 0.9])
    return Calibration(quantiles, settings, splits, "fully_sampled", "all", (1, 1), 0, {})


def test_table_of_coverage_has_what_was_covered_and_what_was_to_be_expected(calibration):
    table = coverage_table({GROUP: volumes_of(1, 400, start=999)}, calibration, (0.9, 0.8))
    assert list(table["class"]) == ["one", "two", ALL_CLASSES] * 2
    assert ((table["n_calibration"] == 999) & (table["n_test"] == 400)).all()
    inside = (table["expected_low"] <= table["share"]) & (table["share"] <= table["expected_high"])
    assert inside[table["class"] != ALL_CLASSES].all()
    assert ((table["ci_low"] <= table["share"]) & (table["share"] <= table["ci_high"])).all()
    at_once = table[table["class"] == ALL_CLASSES]
    assert (at_once["share"] >= at_once["expected_low"]).all()
    assert (table["width_mm3"] > table["bounds_width_mm3"]).all()  # which hold 60 %
    row, first = coverage_rows(table)[0], table.iloc[0]
    assert (row["sampling"], row["tissue"]) == (f"{GROUP.acceleration:g}x", "one")
    expected = [round(400 * first[f"expected_{end}"]) for end in ("low", "high")]
    assert row["covered scans"] == f"{first['n_covered']} of 400 ({expected[0]} to {expected[1]})"
    assert row["of those that show it"] == row["covered scans"]


def test_scans_that_show_a_tissue_are_counted_by_themselves(calibration):
    scans = volumes_of(1, 400, start=999)
    shown = np.arange(400) < 100
    point, lower, upper, truth = (
        np.where(shown[:, None], getattr(scans, f"{name}_mm3"), 0) for name in ("point", "lower", "upper", "reference")
    )
    mixed = ScanVolumes(scans.scan_ids, scans.classes, point, lower, upper, truth, scans.voxel_mm3)
    table, alone = (coverage_table({GROUP: each}, calibration, (0.9,)) for each in (mixed, first_scans(mixed, 100)))
    first, of_shown = table.iloc[0], alone.iloc[0]
    assert (first["n_test"], first["n_seen"], first["n_seen_calibration"]) == (400, 100, 999)
    assert first["n_seen_covered"] == of_shown["n_covered"] == first["n_covered"] - 300
    for name in ("low", "high"):
        assert first[f"seen_expected_{name}"] == of_shown[f"expected_{name}"]
    assert first["width_mm3"] == of_shown["width_mm3"] > 0


def test_figure_shows_the_widths_of_intervals_and_bounds_by_acceleration():
    table = pd.DataFrame(
        [(a, c, "one", a * c, a / 2) for a in (4.0, 8.0) for c in (0.9, 0.8)],
        columns=["acceleration", "coverage", "class", "width_mm3", "bounds_width_mm3"],
    )
    [axes] = width_figure(table).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["90% interval"] == [[4.0, pytest.approx(3.6)], [8.0, pytest.approx(7.2)]]
    assert drawn["80% interval"] == [[4.0, pytest.approx(3.2)], [8.0, pytest.approx(6.4)]]
    assert drawn["guided bounds"] == [[4.0, 2.0], [8.0, 4.0]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["4x", "8x"]


def test_coverage_is_not_measured_on_scans_of_the_calibration(calibration):
    with pytest.raises(CalibrationMismatch, match="belong to the split calibration"):
        coverage_table({GROUP: volumes_of(1, 20, start=90)}, calibration, (0.9,))
    other = Group(4.0, "lines", (4.0, 4.0))
    with pytest.raises(CalibrationMismatch, match="`mask` of kind lines with acceleration 4 has no calibration"):
        coverage_table({other: volumes_of(1, 20, start=999)}, calibration, (0.9,))


def test_scans_that_cannot_be_calibrated_on_are_refused():
    ids = [f"scan{number}" for number in range(19)]
    check_scans(ids, {"train": ("a",), "tune": ()}, (0.9, 0.8))
    with pytest.raises(ValueError, match=r"--coverage 0\.9 needs at least 19 scans to calibrate on, got 18"):
        check_scans(ids[1:], {}, (0.9, 0.8))
    with pytest.raises(ValueError, match="scan3 and 1 in all belong to the split tune"):
        check_scans(ids, {"train": ("a",), "tune": ("scan3",)}, (0.9,))


def test_scans_of_the_checkpoint_and_of_the_data_count_as_seen(tmp_path):
    write_tiny_skm_tea(tmp_path / "data", n_scans=(("train", 1), ("val", 1), ("test", 1)))
    (tmp_path / "scans.json").write_text(json.dumps({"train": ["mine"], "tune": ["chosen"]}))
    seen = seen_scans(tmp_path, str(tmp_path / "data"), "test")
    assert {name: len(ids) for name, ids in seen.items()} == {"train": 2, "tune": 2}
    assert "mine" in seen["train"] and "chosen" in seen["tune"]
    assert seen_scans(tmp_path / "data", str(tmp_path / "data"), "val")["tune"] == ()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    n_scans = (("calibration", scans_needed(0.8)), ("test", 2), ("train", 1))
    write_tiny_skm_tea(folder / "data", n_scans=n_scans)
    yield folder / "data", save_tiny_pipeline(folder / "pipeline")
    close_files()


def run(command, inputs, output, *more):
    data, model = inputs
    fixed = ["--accelerations", "4", "--steps", "3", "--n-slices-per-scan", "1", "--coverage", "0.8"]
    return cli.main([command, str(data), "--model", str(model), "--output", str(output), *fixed, *more])


def test_calibrated_measured_and_called(inputs, tmp_path, capsys):
    data, model = inputs
    assert run("calibrate", inputs, tmp_path / "calibration", "--limit", "3") == 0  # interrupted
    assert not (model / "calibration.json").exists()
    assert run("calibrate", inputs, tmp_path / "calibration") == 0
    calibration = Calibration.load(model)
    assert calibration.quantiles[0].classes == CLASS_NAMES
    assert len(calibration.splits["calibration"]) == 9 and len(calibration.splits["train"]) == 1
    assert calibration.n_slices == (1, 1)
    volumes = arrays_of(pd.read_csv(tmp_path / "calibration" / "volumes.csv"))
    quantiles = calibrate({calibration.quantiles[0].group: volumes}, [0.8])
    assert quantiles[0].classes == CLASS_NAMES
    np.testing.assert_allclose(quantiles[0].upper, calibration.quantiles[0].upper, rtol=1e-3)

    assert run("evaluate", inputs, tmp_path / "test", "--methods", "SGR") == 0
    table = pd.read_csv(tmp_path / "test" / "coverage.csv")
    assert list(table["class"]) == [*CLASS_NAMES, ALL_CLASSES] and (table["n_test"] == 2).all()
    assert (tmp_path / "test" / "coverage.png").stat().st_size > 1000

    scan = next((data / "files_recon_calib-24").glob("*.h5"))
    case = read_skm_tea(scan, mask=4.0, slices=slice(0, 1))
    pipe = SGRMRIPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "coil_maps": case.coil_maps}
    out = pipe(case.kspace, case.mask, coverage=0.8, **call)
    assert out.attained.shape == (4, 2)
    with pytest.raises(CalibrationMismatch, match="num_inference_steps: 3 there, 4 now"):
        pipe(case.kspace, case.mask, coverage=0.8, **call | {"num_inference_steps": 4})

    output = tmp_path / "bounds"
    arguments = ["reconstruct", str(scan), "--model", str(model), "--output", str(output), "--coverage", "0.8"]
    arguments += ["--acceleration", "4", "--steps", "3", "--slices"]
    assert cli.main([*arguments, "2:4"]) == 2
    assert "for the volume in 1 slice of a scan together" in capsys.readouterr().err
    assert cli.main([*arguments, "2"]) == 0
    assert "Interval: holds a tissue's volume in 80% of scans" in capsys.readouterr().out
    rows = pd.read_csv(output / "volumes.csv")
    assert (rows["interval_low_mm3"] <= rows["interval_high_mm3"]).all()
    assert rows["attained"].isin(["both", "lower", "upper", "neither"]).all()
    record = json.loads((output / "settings.json").read_text())
    assert record["coverage"] == 0.8 and record["volumes"][0]["point_mm3"] == rows["point_mm3"][0]

    assert run("evaluate", inputs, tmp_path / "same", "--methods", "SGR", "--split", "calibration") == 2
    assert "belong to the split calibration" in capsys.readouterr().err
    assert run("evaluate", inputs, tmp_path / "other", "--methods", "SGR", "--eta", "0.5") == 2
    assert "eta: 1.0 there, 0.5 now" in capsys.readouterr().err
    assert run("evaluate", inputs, tmp_path / "more", "--methods", "SGR", "--n-slices-per-scan", "2") == 2
    assert "n_slices_per_scan 1; got 2. Give 1 slice chosen likewise" in capsys.readouterr().err


def test_too_few_scans_are_refused_before_anything_is_computed(inputs, tmp_path, capsys):
    assert run("calibrate", inputs, tmp_path / "results", "--max-scans", "8") == 2
    assert "--coverage 0.8 needs at least 9 scans to calibrate on, got 8" in capsys.readouterr().err
