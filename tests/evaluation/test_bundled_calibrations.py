"""The calibrations and coverages of the bundled checkpoints follow from the volumes of scans beside this file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sgr_diffusers.calibration.quantiles import calibrate
from sgr_diffusers.calibration.record import Calibration
from sgr_diffusers.evaluation.calibrate import arrays_of
from sgr_diffusers.evaluation.coverage import coverage_table
from sgr_diffusers.pretrained import BRAIN_TUMOUR, PRETRAINED

COVERAGES = (0.9, 0.8)


def volumes_of(folder, calibration, split):
    """Volumes of the scans of a split by group; their masks are those of the calibration."""
    table = pd.read_csv(Path(__file__).with_name(f"volumes_{folder.name}_{split}.csv.gz"))
    groups = {entry.group.acceleration: entry.group for entry in calibration.quantiles}
    return {groups[acceleration]: arrays_of(part) for acceleration, part in table.groupby("acceleration")}


@pytest.mark.parametrize("folder", [PRETRAINED, BRAIN_TUMOUR])
def test_quantiles_are_those_of_the_calibration_scans(folder):
    calibration = Calibration.load(folder)
    volumes = volumes_of(folder, calibration, "calibration")
    found = {(entry.group, entry.coverage): entry for entry in calibrate(volumes, COVERAGES)}
    assert len(found) == len(calibration.quantiles) == 8
    for entry in calibration.quantiles:
        again = found[entry.group, entry.coverage]
        assert (again.classes, again.n_scans, again.n_seen) == (entry.classes, entry.n_scans, entry.n_seen)
        for name in ("lower", "upper", "all_lower", "all_upper", "unseen_upper"):
            np.testing.assert_allclose(getattr(again, name), getattr(entry, name), atol=1e-4)
    ids = {name for part in volumes.values() for name in part.scan_ids}
    assert ids == set(calibration.splits["calibration"])


@pytest.mark.parametrize("folder", [PRETRAINED, BRAIN_TUMOUR])
def test_coverage_is_that_of_the_test_scans(folder):
    calibration = Calibration.load(folder)
    table = coverage_table(volumes_of(folder, calibration, "test"), calibration, COVERAGES)
    pd.testing.assert_frame_equal(table, pd.read_csv(folder / "evaluation" / "coverage.csv"), rtol=1e-3)
