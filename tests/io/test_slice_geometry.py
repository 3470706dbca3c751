"""Slices of ISMRMRD files lie in the order of their positions, as far as positions and directions agree."""

import warnings

import numpy as np
import pytest

from sgr_diffusers.io.ismrmrd_reader import read_ismrmrd
from sgr_diffusers.io.raw_slices import SuspectDataWarning
from tests.helpers.raw_files import acquisition, body_image, fft, header_xml, write_ismrmrd

N_Y, N_X, THICKNESS = 8, 6, 3.0
KSPACE = fft(body_image(N_Y, N_X), (-2, -1))
XML = header_xml((N_X, N_Y, 1), (N_X, N_Y, 1))


def write(path, positions, directions=None, xml=XML):
    """A slice at each position, with a signal of slice number + 1; `directions` for each slice, if they differ."""
    lines = []
    for number, position in enumerate(positions):
        fields = {} if directions is None else directions[number]
        for step, line in enumerate((number + 1) * KSPACE):
            lines.append(acquisition(line[None], step, slice=number, position=position, **fields))
    return write_ismrmrd(path, xml, lines)


def along_z(*heights):
    return [(0.0, 0.0, float(height)) for height in heights]


def signals(raw):
    """Number that each slice had in the file."""
    return (raw.kspace[:, 0].abs().amax(dim=(1, 2)) / np.abs(KSPACE).max() - 1).round().int().tolist()


@pytest.mark.parametrize(
    ("heights", "order"),
    [
        ((0, 4, 8, 12), [0, 1, 2, 3]),
        ((12, 8, 4, 0), [0, 1, 2, 3]),  # downwards is an order, too
        ((0, 8, 4, 12), [0, 2, 1, 3]),
        ((0, 8, 16, 4, 12), [0, 3, 1, 4, 2]),  # as measured: every second slice first
    ],
)
def test_order(tmp_path, heights, order):
    raw = read_ismrmrd(write(tmp_path / "a.h5", along_z(*heights)))
    assert signals(raw) == order
    assert raw.voxel_size_mm == pytest.approx((4.0, 2.0, 1.5))
    assert raw.orientation == ("IS" if heights[0] < heights[-1] else "SI", "AP", "RL")
    for place, number in enumerate(order):
        middle = raw.affine @ [place, N_Y // 2, N_X // 2, 1]
        np.testing.assert_allclose(middle, [0, 0, heights[number], 1], atol=1e-5)
    two = read_ismrmrd(tmp_path / "a.h5", slices=[1, 3])
    assert signals(two) == [order[1], order[3]]
    np.testing.assert_allclose(two.affine @ [1, 0, 0, 1], raw.affine @ [3, 0, 0, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "message", "spacing"),
    [
        (along_z(0, 4, 4, 8), "several of them lie at the same position", THICKNESS),
        (along_z(5, 5, 5), "several of them lie at the same position", THICKNESS),
        (along_z(0, 4, 12, 16), "lie 4 to 8 mm apart: 4 mm is used for all", 4.0),
        ([(0, 0, 0), (2, 0, 4), (4, 0, 8)], r"stacked along \[0.447, 0.0, 0.894\], but slice_dir says", 20**0.5),
        (along_z(0, 0.004, 0.008), "0.004 mm apart by their positions, but 3 mm thick", THICKNESS),
        (along_z(0, 4000, 8000), "cannot be positions in mm", THICKNESS),
        (along_z(0, np.nan, 8), "cannot be positions in mm", THICKNESS),
    ],
)
def test_positions_that_contradict_are_not_claimed(tmp_path, positions, message, spacing):
    with pytest.warns(SuspectDataWarning, match=message):
        raw = read_ismrmrd(write(tmp_path / "a.h5", positions))
    assert raw.affine is None
    assert raw.voxel_size_mm == pytest.approx((spacing, 2.0, 1.5))


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ([{}, {"read_dir": (0, 0, 1), "slice_dir": (1, 0, 0)}], "lie at different angles"),
        ([{"read_dir": (0, 1, 0)}] * 2, "no perpendicular unit vectors"),
        ([{"read_dir": (2, 0, 0)}] * 2, "no perpendicular unit vectors"),
        ([{"read_dir": (np.nan, 0, 0)}] * 2, "no perpendicular unit vectors"),
    ],
)
def test_directions_that_contradict_are_not_claimed(tmp_path, directions, message):
    with pytest.warns(SuspectDataWarning, match=message):
        raw = read_ismrmrd(write(tmp_path / "a.h5", along_z(0, 4), directions))
    assert raw.affine is None and raw.orientation is None
    assert raw.voxel_size_mm == pytest.approx((4.0, 2.0, 1.5))


def test_what_the_file_does_not_say_is_unknown(tmp_path):
    nowhere = dict.fromkeys(("read_dir", "phase_dir", "slice_dir"), (0, 0, 0))
    raw = read_ismrmrd(write(tmp_path / "a.h5", along_z(0, 8, 4), [nowhere] * 3))
    assert signals(raw) == [0, 2, 1]
    assert (raw.orientation, raw.affine) == (None, None)
    assert raw.voxel_size_mm == pytest.approx((4.0, 2.0, 1.5))
    unplaced = read_ismrmrd(write(tmp_path / "b.h5", along_z(0, 0, 0)))
    assert signals(unplaced) == [0, 1, 2]
    assert unplaced.affine is None and unplaced.voxel_size_mm[0] == THICKNESS


def test_a_stated_number_of_slices_is_counted(tmp_path):
    xml = header_xml((N_X, N_Y, 1), (N_X, N_Y, 1), n_slices=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_ismrmrd(write(tmp_path / "a.h5", along_z(0, 4, 8), xml=xml)).n_slices == 3
    with pytest.warns(SuspectDataWarning, match="states 3 slices .*, but the data has 2"):
        read_ismrmrd(write(tmp_path / "b.h5", along_z(0, 4), xml=xml))


def test_slices_keep_masks_of_their_own(tmp_path):
    lines = [acquisition(KSPACE[step][None], step, slice=0, position=(0, 0, 0)) for step in (2, 3, 4, 5)]
    lines += [acquisition(KSPACE[step][None], step, slice=1, position=(0, 0, 4)) for step in (1, 3, 4, 7)]
    raw = read_ismrmrd(write_ismrmrd(tmp_path / "a.h5", XML, lines))
    assert raw.mask.shape == (2, N_Y, N_X)
    assert [mask[:, 0].nonzero()[:, 0].tolist() for mask in raw.mask] == [[2, 3, 4, 5], [1, 3, 4, 7]]
    assert read_ismrmrd(tmp_path / "a.h5", slices=[1]).mask.shape == (N_Y, N_X)
