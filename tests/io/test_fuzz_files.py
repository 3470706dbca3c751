"""Files that are spoilt at random are read, or refused in a message with their name: no hang and no crash."""

import sys
import zlib

import h5py
import numpy as np
import pytest

from tests.helpers.fuzz import read_until_killed, spoil
from tests.helpers.raw_files import acquisition, body_image, fft, header_xml, write_cfl, write_fastmri, write_ismrmrd

N_Y, N_X = 12, 10
KSPACE = np.stack([fft(body_image(N_Y, N_X), (-2, -1))] * 2)  # (coil, y, x)
XML = header_xml((N_X, N_Y, 1), (N_X, N_Y, 1))


def write_skm_tea(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = KSPACE.transpose(1, 2, 0)[None, :, :, None]
        file["masks/poisson_4.0x"] = np.ones((N_Y, N_X), np.uint8)
        file.attrs["voxel_size_mm"] = (3.0, 1.0, 1.0)


FORMATS = {
    "skm_tea.h5": write_skm_tea,
    "fastmri.h5": lambda path: write_fastmri(path, KSPACE.swapaxes(-1, -2)[None], XML, np.ones(N_Y)),
    "ismrmrd.h5": lambda path: write_ismrmrd(path, XML, [acquisition(KSPACE[:, k], k) for k in range(N_Y)]),
    "array.npy": lambda path: np.save(path, KSPACE),
    "arrays.npz": lambda path: np.savez(path, kspace=KSPACE, mask=np.ones((N_Y, N_X)), voxel_size_mm=[3.0, 1, 1]),
    "packed.npz": lambda path: np.savez_compressed(path, kspace=KSPACE, mask=np.ones((N_Y, N_X))),
    "bart.cfl": lambda path: write_cfl(path, KSPACE.T[:, :, None]),
    "bart.hdr": lambda path: write_cfl(path, KSPACE.T[:, :, None]),
}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
@pytest.mark.parametrize("n_files", [10, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_spoilt_files(tmp_path, name, n_files):
    original = tmp_path / name
    FORMATS[name](original)
    content = original.read_bytes()
    partner = original.with_suffix({".cfl": ".hdr", ".hdr": ".cfl"}.get(original.suffix, ".none"))
    rng = np.random.default_rng([zlib.crc32(name.encode()), n_files])
    paths = []
    for number in range(n_files):
        paths.append(tmp_path / f"spoilt{number}{original.suffix}")
        paths[-1].write_bytes(spoil(content, rng))
        if partner.is_file():
            paths[-1].with_suffix(partner.suffix).write_bytes(partner.read_bytes())
    assert read_until_killed(paths) == {}
