import warnings
from pathlib import Path

import numpy as np
import pytest

from sgr_diffusers.io.kspace_checks import check_centre, check_mask_has_data, slice_energy
from sgr_diffusers.io.raw_slices import SuspectDataWarning
from tests.helpers.raw_files import body_image, fft, random_complex

PATH = Path("scan.npy")
ENERGY = slice_energy(fft(body_image(48, 40), (-2, -1))[None, None])


def check(energy):
    check_centre(energy, PATH, ("y", "x"), "Shift it.")


def test_energy_is_summed_over_slices_and_coils():
    kspace = random_complex(2, 3, 5, 4)
    np.testing.assert_allclose(slice_energy(kspace), (np.abs(kspace) ** 2).sum(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize("shift", [(0, 0), (1, 1), (-2, 0), (0, 2)])
def test_echoes_are_never_exactly_centred(shift):
    check(np.roll(ENERGY, shift, axis=(0, 1)))


@pytest.mark.parametrize("shift", [(5, 0), (0, -4), (4, 4)])
def test_a_centre_beside_its_place_is_warned_of(shift):
    peak = tuple(int(n // 2 + s) for n, s in zip((48, 40), shift, strict=True))
    message = rf"centre of scan.npy should be at \(y, x\) = \(24, 20\), .* peaks at \({peak[0]}, {peak[1]}\)"
    with pytest.warns(SuspectDataWarning, match=message):
        check(np.roll(ENERGY, shift, axis=(0, 1)))


@pytest.mark.parametrize("shift", [(24, 20), (16, 0), (0, -12)])
def test_a_centre_far_away_is_refused(shift):
    with pytest.raises(ValueError, match=r"peaks at .* Shift it"):
        check(np.roll(ENERGY, shift, axis=(0, 1)))


@pytest.mark.parametrize("seed", range(20))
def test_noise_has_no_centre(seed):
    check(slice_energy(random_complex(1, 1, 48, 40, seed=seed)))
    check(np.zeros((4, 4)))


def test_masks_are_held_against_the_data():
    has_data = np.ones((2, 8, 6), bool)
    has_data[:, :4] = False
    with pytest.warns(SuspectDataWarning, match="says that 96 positions were measured, but .* zero .* at 48 of them"):
        check_mask_has_data(np.ones((8, 6), bool), has_data, PATH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_mask_has_data(has_data, has_data, PATH)
        check_mask_has_data(has_data[0], np.ones((2, 8, 6), bool), PATH)  # undersampled retrospectively
