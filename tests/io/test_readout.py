import numpy as np

from sgr_diffusers.io.readout import crop_field_of_view
from tests.helpers.raw_files import fft, random_complex


def test_cropping_the_field_of_view_of_what_was_measured_in_part():
    images = np.zeros((4, 24), np.complex64)
    images[:, 6:18] = random_complex(4, 12)
    measured = np.arange(24) >= 5
    kspace, within = crop_field_of_view(np.where(measured, fft(images, (-1,)), np.nan), measured, 12)
    assert np.flatnonzero(within).tolist() == list(range(3, 12))  # sample 2.5 of the new grid is the first old one
    expected = fft(images[:, 6:18], (-1,))
    assert np.abs(kspace - expected)[:, within].max() < 0.05 * np.abs(expected).max()
    assert not kspace[:, ~within].any()
