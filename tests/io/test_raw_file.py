"""Every kind of file by its content, and prospective data from the file to an image."""

import numpy as np
import torch

from sgr_diffusers.io.raw_file import read_raw
from sgr_diffusers.mri.coils import estimate_coil_maps
from sgr_diffusers.mri.operators import SenseOperator
from tests.helpers.raw_files import fft


def test_prospective_data_reach_an_image(tmp_path):
    """Mask from the data, maps from their own calibration lines, an image that fits; no full sampling."""
    n = 32
    y, x = np.mgrid[:n, :n] / n - 0.5
    image = ((y / 0.4) ** 2 + (x / 0.35) ** 2 < 1) * (1 + 0.5 * np.cos(12 * y) * np.cos(9 * x))
    coils = np.stack(
        [np.exp(-3 * ((y - a) ** 2 + (x - b) ** 2)) for a, b in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    )
    mask = np.random.default_rng(0).random((n, n)) < 0.4
    mask[8:24, 8:24] = True
    np.save(tmp_path / "scan.npy", np.where(mask, fft(coils * image, (-2, -1)), 0))
    raw = read_raw(tmp_path / "scan.npy")
    assert np.array_equal(raw.mask, mask)
    maps = estimate_coil_maps(raw.kspace, raw.mask)
    operator = SenseOperator(maps, raw.mask)
    zero_filled = operator.adjoint(raw.kspace)
    assert zero_filled.shape == (1, n, n) and bool(zero_filled.isfinite().all())
    expected = torch.from_numpy(image * np.linalg.norm(coils, axis=0))
    inside = maps.abs().sum(dim=1)[0] > 0
    error = (zero_filled[0].abs() - expected)[inside].norm() / expected[inside].norm()
    assert error < 0.2
