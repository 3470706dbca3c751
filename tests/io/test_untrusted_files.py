"""Raw files that refer to other files of this machine are refused, whatever kind they pretend to be."""

import h5py
import numpy as np
import pytest

from sgr_diffusers.io.raw_file import read_raw, stored_choices
from sgr_diffusers.io.raw_slices import open_hdf5
from sgr_diffusers.io.skm_tea_file import read_skm_tea
from tests.helpers.raw_files import header_xml, random_complex

KSPACE = random_complex(2, 3, 8, 6)
HEADER = header_xml((6, 8, 1), (6, 8, 1))


@pytest.fixture
def secret(tmp_path):
    """A file that the one uploaded tries to have read."""
    path = tmp_path / "elsewhere" / "secret.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["kspace"] = KSPACE
        file["masks/poisson_4.0x"] = np.ones((8, 6), np.uint8)
    return path


def link(file, secret):
    file["kspace"] = h5py.ExternalLink(str(secret), "kspace")


def link_in_a_group(file, secret):
    file["kspace"] = KSPACE
    file["notes/more"] = h5py.ExternalLink(str(secret), "kspace")


def link_behind_a_soft_link(file, secret):
    file["kspace"] = h5py.SoftLink("/hidden")
    file["hidden"] = h5py.ExternalLink(str(secret), "kspace")


def external_storage(file, secret):
    n_bytes = KSPACE.nbytes
    file.create_dataset("kspace", KSPACE.shape, np.complex64, external=[(str(secret), 0, n_bytes)])


def virtual_dataset(file, secret):
    layout = h5py.VirtualLayout(KSPACE.shape, np.complex64)
    layout[...] = h5py.VirtualSource(str(secret), "kspace", KSPACE.shape)
    file.create_virtual_dataset("kspace", layout)


HOSTILE = [link, link_in_a_group, link_behind_a_soft_link, external_storage, virtual_dataset]


@pytest.mark.parametrize("hide", HOSTILE)
@pytest.mark.parametrize("kind", ["arrays", "fastmri", "ismrmrd", "skm_tea"])
def test_what_lies_in_other_files_is_not_read(hide, kind, tmp_path, secret):
    path = tmp_path / "upload.h5"
    with h5py.File(path, "w") as file:
        hide(file, secret)
        if kind == "fastmri":
            file["ismrmrd_header"] = HEADER
        elif kind == "ismrmrd":
            file["dataset/xml"] = [HEADER]
        elif kind == "skm_tea":
            file["masks/poisson_4.0x"] = np.ones((8, 6), np.uint8)
    for read in (read_raw, stored_choices, open_hdf5):
        with pytest.raises(ValueError, match=r"of .*upload\.h5 refers to another file, which is not followed"):
            read(path)


def test_references_within_the_file_are_read(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["data/first"] = KSPACE
        layout = h5py.VirtualLayout(KSPACE.shape, np.complex64)
        layout[...] = h5py.VirtualSource(file["data/first"])
        file.create_virtual_dataset("kspace", layout)
        file["maps"] = h5py.SoftLink("/data/first")
    raw = read_raw(path)
    np.testing.assert_array_equal(raw.kspace, KSPACE)
    np.testing.assert_array_equal(raw.coil_maps, KSPACE)


def test_masks_and_echoes_to_choose_from(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = random_complex(2, 8, 6, 2, 3)
        for name in ("poisson_16.0x", "poisson_4.0x", "mine"):
            file[f"masks/{name}"] = np.ones((8, 6), np.uint8)
    assert stored_choices(path) == (("mine", "poisson_4.0x", "poisson_16.0x"), 2)
    assert read_skm_tea(path, mask="poisson_16.0x", echo=2, with_maps=False, with_target=False).kspace.shape[0] == 2
    with h5py.File(path, "a") as file:
        del file["masks"]
        file["masks"] = np.ones(3)
    assert stored_choices(path) == ((), 2)
    np.save(tmp_path / "scan.npy", KSPACE)
    assert stored_choices(tmp_path / "scan.npy") == ((), 1)
