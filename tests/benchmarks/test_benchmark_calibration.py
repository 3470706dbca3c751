"""The comparison of calibrated bounds with intervals of samples, on results made by hand."""

import benchmark_calibration
import benchmark_units
import numpy as np
import pandas as pd
import pytest

from sgr_diffusers.evaluation.plan import EvaluationPlan
from tests.helpers.evaluation_results import HandMade, labels


def tissue(n_one, n_two):
    """Label map with so many pixels of each class."""
    return labels(one=range(n_one), two=range(12, 12 + n_two))


def results(folder, n_scans, seed):
    """Scans whose bounds are the truth and two pixels on either side, and whose samples lie around it."""
    rng = np.random.default_rng(seed)
    made = HandMade(folder, EvaluationPlan((8.0,), rr_samples=4))
    for number in range(n_scans):
        true = rng.integers(4, 9, 2)
        made.reference(f"scan {number}", 0, tissue(*true))
        bounds = [(tissue(*(true - 2)), tissue(*(true + 2))) for _ in range(2)]
        made.guided(f"scan {number}", 0, bounds, acceleration=8.0, cost=(8, 4))
        maps = [tissue(*(true + rng.integers(-1, 2, 2))) for _ in range(4)]
        made.samples(f"scan {number}", 0, maps, 8.0)
    return made.finish()


def test_every_method_has_a_row_for_each_class(tmp_path, capsys):
    folders = [str(results(tmp_path / name, n, seed)) for name, n, seed in (("a", 20, 0), ("b", 8, 1))]
    output = tmp_path / "rows.csv"
    benchmark_calibration.main([*folders, "--samples", "4", "--output", str(output)])
    table = pd.read_csv(output)
    assert table["class"].value_counts().to_dict() == {"one": 3, "two": 3, "all tissues together": 3}
    assert set(table["method"]) == {"SGR", "extremes of 4", "quantiles of 4"}
    assert (table["n_calibration"] == 20).all() and (table["n_test"] == 8).all()
    # the mean of four samples is off by up to a pixel
    ours = table[table["method"] == "SGR"]
    assert (ours["covered"] >= 6).all() and (ours[ours["class"] != "all tissues together"]["width_mm3"] < 2.5).all()
    assert "sgr_minus_it" in capsys.readouterr().out


def test_results_with_too_few_samples_are_refused(tmp_path):
    folder = str(results(tmp_path / "a", 20, 0))
    with pytest.raises(SystemExit, match=r"No scan has bounds and 16 samples at 8x\. .*--rr-samples 16"):
        benchmark_calibration.main([folder, folder, "--output", str(tmp_path / "rows.csv")])


def test_scores_are_compared_with_the_first(tmp_path):
    folders = [str(results(tmp_path / name, 10, seed)) for seed, name in enumerate("ab")]
    scans = benchmark_units.scans_of(folders)
    assert len(scans) == 2 * 20 and (scans["upper"] - scans["lower"] == 4).all() and (scans["voxel"] == 1).all()
    scans["truth"] += np.random.default_rng(0).integers(-4, 5, len(scans))
    rows = benchmark_units.compare(scans, 0.8)
    assert rows[0] == {"distance from": "bounds", "unit": "width + 1 voxel", "width": "1.00"}
    # all bounds are of the same width, so that units of it alone agree
    of_bounds = {row["unit"]: row["width"] for row in rows if row["distance from"] == "bounds"}
    assert of_bounds["width + 16 voxels"] == of_bounds["the same for all scans"] == "1.00"
