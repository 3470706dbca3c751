import numpy as np
import pytest

from sgr_diffusers.calibration.scores import ScanVolumes, calibrated_interval


def volumes(**changes):
    values = {
        "scan_ids": ("a", "b"),
        "classes": ("cartilage", "meniscus"),
        "point_mm3": np.array([[14.0, 0.0], [30.0, 4.0]]),
        "lower_mm3": np.array([[10.0, 0.0], [20.0, 5.0]]),
        "upper_mm3": np.array([[18.0, 0.0], [39.0, 4.0]]),
        "reference_mm3": np.array([[19.0, 0.0], [16.0, 9.0]]),
        "voxel_mm3": np.array([2.0, 1.0]),
    }
    return ScanVolumes(**values | changes)


def test_scores_are_distances_from_the_point_estimate_in_a_unit_of_the_scan():
    below, above = volumes().scores()
    # width + 8 voxels; bounds in the wrong order have no width
    units = np.array([[8 + 16, 0 + 16], [19 + 8, 0 + 8]])
    np.testing.assert_allclose(below * units, [[-5, 0], [14, -5]])
    np.testing.assert_allclose(above * units, [[5, 0], [-14, 5]])


def test_the_interval_ends_where_a_volume_has_the_score_of_the_quantile():
    scans = volumes()
    below, above = scans.scores()
    for scan in range(2):
        row = scans.point_mm3[scan], scans.lower_mm3[scan], scans.upper_mm3[scan], scans.voxel_mm3[scan]
        low, high = calibrated_interval(*row, below[scan], above[scan])
        np.testing.assert_allclose(low, scans.reference_mm3[scan], atol=1e-7)
        np.testing.assert_allclose(high, scans.reference_mm3[scan], atol=1e-7)


def test_the_scan_that_sets_the_quantile_is_covered_whatever_the_rounding():
    lower, width, point, reference = np.random.default_rng(0).gamma(4.0, 10.0, (4, 500, 1))
    names = tuple(map(str, range(500)))
    scans = ScanVolumes(names, ("cartilage",), point, lower, lower + width, reference, np.full(500, 0.3))
    below, above = scans.scores()
    for scan in range(500):
        bounds = lower[scan], scans.upper_mm3[scan]
        low, high = calibrated_interval(point[scan], *bounds, 0.3, below[scan], above[scan])
        assert low[0] <= reference[scan, 0] <= high[0]


def test_the_interval_lies_beside_the_point_estimate_where_a_quantile_is_negative():
    bounds = np.array([[20.0], [19.0], [21.0]])
    low, high = calibrated_interval(*bounds, 2.0, np.array([-0.25]), np.array([0.5]))
    assert (low[0], high[0]) == (pytest.approx(20 + 4.5), pytest.approx(20 + 9))  # of a unit of 2 + 16


def test_the_interval_is_clipped_at_zero_and_open_where_a_quantile_is_infinite():
    bounds = np.array([[6.0], [3.0], [9.0]])
    low, high = calibrated_interval(*bounds, 1.0, np.array([np.inf]), np.array([np.inf]))
    assert low.tolist() == [0.0] and high.tolist() == [np.inf]
    low, high = calibrated_interval(*bounds, 1.0, np.array([1.0]), np.array([-0.1]))
    assert low.tolist() == [0.0] and high[0] == pytest.approx(6 - 1.4)  # a tenth of 6 + 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scan_ids": ("a", "b", "c")}, r"`point_mm3` must have the shape \(3, 2\) of 3 scans"),
        ({"reference_mm3": np.array([[1.0, np.nan], [1.0, 1.0]])}, "`reference_mm3` must be finite"),
        ({"lower_mm3": np.array([[1.0, -1.0], [1.0, 1.0]])}, "`lower_mm3` must be finite and not negative"),
        ({"scan_ids": ("a", "a")}, "got a more than once. Add up the volumes of a scan's slices"),
        ({"voxel_mm3": np.array([0.0, 1.0])}, "`voxel_mm3` must be above 0"),
    ],
)
def test_bad_volumes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        volumes(**changes)
