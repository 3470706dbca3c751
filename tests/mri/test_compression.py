import numpy as np
import pytest
import torch

from sgr_diffusers.io.raw_file import read_raw
from sgr_diffusers.mri.compression import compress_coils
from tests.helpers.raw_files import random_complex


def test_coil_compression(tmp_path):
    two = torch.from_numpy(random_complex(3, 2, 8, 6))
    mixing = torch.from_numpy(random_complex(5, 2, seed=4))
    kspace = torch.einsum("vc,scyx->svyx", mixing, two)  # five coils that see no more than two
    result = compress_coils(kspace, 2, kspace)
    assert result.energy == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(result.matrix @ result.matrix.mH, torch.eye(2, dtype=torch.complex64))
    back = torch.einsum("vc,svyx->scyx", result.matrix.conj(), result.kspace)
    torch.testing.assert_close(back, kspace, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.coil_maps, result.kspace)
    assert compress_coils(kspace, 1).energy < 1
    np.save(tmp_path / "a.npy", kspace.numpy())
    torch.testing.assert_close(read_raw(tmp_path / "a.npy", n_coils=2).kspace, result.kspace)
    with pytest.raises(ValueError, match="`n_coils` must be from 1 to 5"):
        compress_coils(kspace, 0)
    with pytest.raises(ValueError, match="zero everywhere or not finite"):
        compress_coils(0 * kspace, 1)
