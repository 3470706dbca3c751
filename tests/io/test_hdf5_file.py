"""Raw files that refer to other files of this machine are refused, whatever kind they pretend to be."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from sgr_diffusers.io.hdf5_file import open_hdf5
from sgr_diffusers.io.raw_file import read_raw, stored_choices
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
    assert (
        read_skm_tea(path, mask="poisson_16.0x", echo=2, with_maps=False, with_fully_sampled=False).kspace.shape[0]
        == 2
    )
    with h5py.File(path, "a") as file:
        del file["masks"]
        file["masks"] = np.ones(3)
    assert stored_choices(path) == ((), 2)
    np.save(tmp_path / "scan.npy", KSPACE)
    assert stored_choices(tmp_path / "scan.npy") == ((), 1)


def nested(path, depth):
    with h5py.File(path, "w") as file:
        group = file
        for _ in range(depth):
            group = group.create_group("g")
        group["kspace"] = KSPACE


def test_nesting_is_bounded(tmp_path):
    nested(tmp_path / "deep.h5", 800)
    with pytest.raises(ValueError, match=r"deep\.h5 has groups nested deeper than 32"):
        open_hdf5(tmp_path / "deep.h5")
    nested(tmp_path / "shallow.h5", 3)
    np.testing.assert_array_equal(read_raw(tmp_path / "shallow.h5").kspace, KSPACE)


def test_many_members_are_refused(tmp_path):
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        for number in range(20_001):
            file[str(number)] = h5py.SoftLink("/kspace")
    with pytest.raises(ValueError, match="or more than 20000 members"):
        open_hdf5(tmp_path / "wide.h5")


def test_soft_links_in_a_circle_are_no_data(tmp_path):
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        file["kspace"] = h5py.SoftLink("/other")
        file["other"] = h5py.SoftLink("/kspace")
    with pytest.raises(ValueError, match=r"circle\.h5 has neither a dataset `kspace` nor"):
        read_raw(tmp_path / "circle.h5")


def test_arrays_larger_than_the_file_can_hold_are_refused_before_they_are_made(tmp_path):
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset("kspace", (4, 8, 4000, 4000), np.complex64, chunks=(1, 1, 400, 400))
        file.create_dataset("mask", (4000, 4000), np.uint8)
    with pytest.raises(ValueError, match=r"`kspace` of .*empty\.h5 would take 4096 MB, but the file has only"):
        read_raw(tmp_path / "empty.h5")


def test_a_filter_that_is_not_installed_is_no_damage(tmp_path):
    with h5py.File(tmp_path / "zstd.h5", "w") as file:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((1, 3, 8, 6))
        settings.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (3,))  # a number that no filter has
        space = h5py.h5s.create_simple((2, 3, 8, 6))
        data = h5py.h5d.create(file.id, b"kspace", h5py.h5t.py_create(np.dtype(np.complex64)), space, settings)
        data.write_direct_chunk((0, 0, 0, 0), bytes(100), 0)
    with pytest.raises(ValueError, match=r"compressed by the HDF5 filter 32099, .*not damaged.*h5repack") as caught:
        read_raw(tmp_path / "zstd.h5")
    assert "Download it again" not in str(caught.value)


def test_a_file_that_is_being_written_is_no_damage(tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = KSPACE
    code = f"import h5py; f = h5py.File({str(tmp_path / 'scan.h5')!r}, 'r+'); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with pytest.raises(BlockingIOError, match=r"scan\.h5 is in use: another program has it open for writing"):
            read_raw(tmp_path / "scan.h5")
        writer.stdin.close()
    assert read_raw(tmp_path / "scan.h5").n_slices == 2


def test_the_group_of_the_scan_is_found_or_chosen(tmp_path):
    path = tmp_path / "two.h5"
    with h5py.File(path, "w") as file:
        file["2026-01-31 12:00:00/kspace"] = KSPACE
    np.testing.assert_array_equal(read_raw(path).kspace, KSPACE)
    with h5py.File(path, "a") as file:
        file["other/kspace"] = 2 * KSPACE
    with pytest.raises(ValueError, match=r"`group` must be named.*\['2026-01-31 12:00:00', 'other'\]"):
        read_raw(path)
    np.testing.assert_array_equal(read_raw(path, group="other").kspace, 2 * KSPACE)
    with pytest.raises(ValueError, match=r"`group` 'third': .* no such group"):
        read_raw(path, group="third")
