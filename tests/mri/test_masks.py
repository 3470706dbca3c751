import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgr_diffusers.mri.masks import calibration_region, mask_family, pad_mask, poisson_disc_mask

few = settings(derandomize=True, max_examples=20, deadline=None)


def box_of(mask, size):
    """The centred box of a mask, cut out here independently: its centre is the pixel n // 2."""
    (n_y, n_x), (y, x) = mask.shape, size
    return mask[n_y // 2 - y // 2 :, n_x // 2 - x // 2 :][:y, :x]


@pytest.mark.parametrize("shape", [(48, 40), (49, 37)])
@pytest.mark.parametrize("acceleration", [4, 8])
def test_poisson_disc_reaches_and_reports_the_acceleration(shape, acceleration):
    result = poisson_disc_mask(shape, acceleration, calibration_shape=(8, 7), seed=3)
    assert result.mask.dtype == bool
    assert result.mask.shape == shape
    assert result.acceleration == pytest.approx(result.mask.size / result.mask.sum())
    assert result.acceleration == pytest.approx(acceleration, rel=0.05)
    assert box_of(result.mask, (8, 7)).all()


def test_poisson_disc_density_falls_and_corners_are_left_out():
    mask = poisson_disc_mask((64, 64), 6, calibration_shape=(8, 8)).mask
    y, x = np.mgrid[:64, :64] - 32
    radius = np.hypot(y, x)
    assert mask[(radius > 6) & (radius < 14)].mean() > 1.5 * mask[(radius > 22) & (radius < 31)].mean()
    assert not mask[radius > 34].any()
    assert poisson_disc_mask((64, 64), 6, calibration_shape=(8, 8), crop_corners=False).mask[radius > 34].any()


def test_poisson_disc_lives_through_a_start_inside_the_calibration_box():
    # sigpy's sampler returns the bare box for such seeds, and its own search then raises
    for seed in (0, 6):
        result = poisson_disc_mask((32, 32), 2.5, calibration_shape=(16, 16), seed=seed)
        assert result.acceleration == pytest.approx(2.5, rel=0.05)


def test_poisson_disc_is_a_function_of_its_seed_and_leaves_the_global_state_alone():
    before = np.random.get_state()  # noqa: NPY002
    first = poisson_disc_mask((32, 32), 4, (6, 6), seed=1)
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.array_equal(first.mask, poisson_disc_mask((32, 32), 4, (6, 6), seed=1).mask)
    assert not np.array_equal(first.mask, poisson_disc_mask((32, 32), 4, (6, 6), seed=2).mask)


def test_poisson_disc_gives_up_after_its_attempts_and_says_what_was_reached():
    with pytest.raises(ValueError, match=r"`acceleration` 1.05 was not reached within 5% .* has 1\.\d\d"):
        poisson_disc_mask((32, 32), 1.05, (6, 6))
    with pytest.raises(ValueError, match="nearest of 1 attempts"):
        poisson_disc_mask((48, 48), 12, (6, 6), max_attempts=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"acceleration": 1}, "`acceleration` must be above 1"),
        ({"acceleration": "x"}, "`acceleration` must be above 1 .* got 'x'"),
        ({"acceleration": 4, "seed": "x"}, "`seed` a whole number .* 'x'"),
        ({"acceleration": 8, "calibration_shape": (24, 24)}, "box alone has 576"),
        ({"acceleration": 4, "calibration_shape": (33, 4)}, "calibration region must be"),
    ],
)
def test_bad_arguments_are_named(arguments, message, unchecked_types):
    with pytest.raises(ValueError, match=message):
        poisson_disc_mask(**{"shape": (32, 32), "calibration_shape": (4, 4), **arguments})


@pytest.mark.parametrize("arguments", [{"max_attempts": 0}, {"tolerance": 0.0}, {"seed": -1}])
def test_bad_poisson_settings_are_named(arguments):
    with pytest.raises(ValueError, match="`max_attempts` must be 1 or more"):
        poisson_disc_mask((32, 32), 4, (4, 4), **arguments)


def test_pad_mask_puts_the_floor_before_and_the_rest_after():
    padded = pad_mask(np.ones((416, 80), np.uint8), (512, 160))
    assert padded.dtype == bool
    rows, columns = np.flatnonzero(padded.any(axis=1)), np.flatnonzero(padded.any(axis=0))
    assert (rows[0], 511 - rows[-1], columns[0], 159 - columns[-1]) == (48, 48, 40, 40)
    assert padded.sum() == 416 * 80
    assert np.array_equal(pad_mask(np.ones((1, 2), bool), (4, 5))[1], [False, True, True, False, False])


@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.ones((5, 4)), "at most"), (np.full((2, 2), 0.5), "only 0 and 1"), (np.full((2, 2), np.nan), "only 0 and 1")],
)
def test_pad_mask_refuses(mask, message):
    with pytest.raises(ValueError, match=message):
        pad_mask(mask, (4, 4))


@few
@given(st.tuples(st.integers(4, 12), st.integers(4, 12)), st.data())
def test_calibration_region_finds_a_box_that_was_put_there(shape, data):
    size = tuple(data.draw(st.integers(1, n)) for n in shape)
    mask = np.zeros(shape, bool)
    (n_y, n_x), (y, x) = shape, size
    mask[n_y // 2 - y // 2 : n_y // 2 - y // 2 + y, n_x // 2 - x // 2 : n_x // 2 - x // 2 + x] = True
    rows, columns = calibration_region(mask)
    assert mask[rows, columns].all()
    assert (rows.stop - rows.start, columns.stop - columns.start) == size


def size_of_region(mask):
    return tuple(side.stop - side.start for side in calibration_region(mask))


def test_calibration_region_need_not_be_centred():
    mask = np.zeros((20, 30), bool)
    mask[8:20, 4:17] = mask[:, ::7] = True
    assert calibration_region(mask) == (slice(8, 20), slice(4, 17))


def test_calibration_region_prefers_a_square_to_a_thin_strip_and_can_be_empty():
    mask = np.zeros((20, 20), bool)
    mask[10] = True
    mask[8:12, 8:12] = True
    assert size_of_region(mask) == (4, 4)
    assert size_of_region(np.zeros((4, 4), np.uint8)) == (0, 0)
    assert size_of_region(np.ones((7, 4), np.uint8)) == (7, 4)
    lines = (np.arange(20) - 10) % 4 == 0
    lines[7:13] = True
    assert size_of_region(np.repeat(lines[:, None], 12, axis=1)) == (7, 12)  # the next line of the pattern adjoins


def test_kinds_of_masks_are_told_apart():
    shape = (64, 48)
    points = poisson_disc_mask(shape=shape, acceleration=4.0, calibration_shape=(8, 8), seed=0).mask
    wider = poisson_disc_mask(shape=shape, acceleration=4.0, calibration_shape=(12, 12), seed=0).mask
    lines = np.zeros(shape, bool)
    lines[:, ::3] = True
    assert mask_family(points) == "points around a centre of 8 or 9"
    assert mask_family(wider) == "points around a centre of 12 or 13"
    assert mask_family(lines) == mask_family(lines.T) == "lines"
    padded = pad_mask(lines, (80, 48))  # what was never acquired does not make points of lines
    assert mask_family(padded) == "lines"
