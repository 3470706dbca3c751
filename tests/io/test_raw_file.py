"""Every kind of file by its content, and prospective data from the file to an image."""

import shutil
import tracemalloc

import h5py
import numpy as np
import pytest
import torch

from sgr_diffusers.io.raw_file import count_single_slices, read_raw
from sgr_diffusers.mri.coils import estimate_coil_maps
from sgr_diffusers.mri.operators import SenseOperator
from tests.helpers.raw_files import acquisition, fft, header_xml, random_complex, write_cfl, write_ismrmrd


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


@pytest.mark.parametrize("name", ["scan.npy", "SCAN.NPY", "scan", "scan.raw"])
def test_numpy_files_of_any_name(tmp_path, name):
    kspace = random_complex(2, 8, 6)
    with open(tmp_path / name, "wb") as file:
        np.save(file, kspace)
    np.testing.assert_array_equal(read_raw(tmp_path / name).kspace[0], kspace)


@pytest.mark.parametrize("name", ["scan.npz", "SCAN.NPZ", "scan"])
def test_archives_of_any_name(tmp_path, name):
    kspace = random_complex(2, 8, 6)
    with open(tmp_path / name, "wb") as file:
        np.savez_compressed(file, kspace=kspace, junk=np.array([{}]))  # what has no meaning here is not looked at
    np.testing.assert_array_equal(read_raw(tmp_path / name).kspace[0], kspace)


@pytest.mark.parametrize("name", ["scan.mrd", "SCAN.H5", "scan.ismrmrd", "scan"])
def test_hdf5_files_of_any_name(tmp_path, name):
    kspace = random_complex(2, 8, 6)
    lines = [acquisition(kspace[:, step], step) for step in range(8)]
    write_ismrmrd(tmp_path / "a.h5", header_xml((6, 8, 1), (6, 8, 1)), lines, group="2026-01-31 12:00:00")
    shutil.move(tmp_path / "a.h5", tmp_path / name)
    np.testing.assert_allclose(read_raw(tmp_path / name).kspace[0], kspace, atol=1e-6)


@pytest.mark.parametrize("name", ["scan", "scan.cfl", "scan.hdr", "SCAN.CFL"])
def test_pairs_of_bart_by_any_of_their_names(tmp_path, name):
    kspace = random_complex(8, 6, 1, 2)
    written = write_cfl(tmp_path / "scan.cfl", kspace)
    if name.isupper():
        for ending in (".cfl", ".hdr"):
            shutil.move(written.with_suffix(ending), tmp_path / f"SCAN{ending.upper()}")
    np.testing.assert_array_equal(read_raw(tmp_path / name).kspace[0], kspace[:, :, 0].transpose(2, 0, 1))


def write_slices(folder, kind):
    """Three slices in a file of some kind."""
    kspace = random_complex(3, 2, 8, 6)
    if kind == "npy":
        np.save(folder / "a.npy", kspace)
        return folder / "a.npy"
    if kind == "npz":
        np.savez(folder / "a.npz", kspace=kspace)
        return folder / "a.npz"
    if kind == "cfl":
        axes = kspace.transpose(2, 3, 1, 0).reshape(8, 6, 1, 2, *(1,) * 9, 3)
        return write_cfl(folder / "a.cfl", axes)
    if kind == "cfl of 3-D k-space":
        return write_cfl(folder / "a.cfl", kspace.transpose(0, 2, 3, 1))
    lines = [acquisition(one[:, step], step, slice=k) for k, one in enumerate(kspace) for step in range(8)]
    if kind == "ismrmrd":
        return write_ismrmrd(folder / "a.h5", header_xml((6, 8, 1), (6, 8, 1)), lines)
    slab = [acquisition(one[:, step], step, k) for k, one in enumerate(kspace) for step in range(8)]
    return write_ismrmrd(folder / "a.h5", header_xml((6, 8, 3), (6, 8, 3)), slab)


@pytest.mark.parametrize("kind", ["npy", "cfl", "ismrmrd"])
def test_slices_read_one_by_one_are_those_read_together(tmp_path, kind):
    path = write_slices(tmp_path, kind)
    assert count_single_slices(path) == 3
    together, single = read_raw(path), [read_raw(path, [index]) for index in range(3)]
    np.testing.assert_array_equal(np.concatenate([raw.kspace for raw in single]), together.kspace)
    assert {(raw.voxel_size_mm, raw.n_slices) for raw in single} == {(together.voxel_size_mm, 3)}


@pytest.mark.parametrize("kind", ["npz", "cfl of 3-D k-space", "ismrmrd of 3-D k-space"])
def test_files_whose_slices_need_all_of_the_file(tmp_path, kind):
    assert count_single_slices(write_slices(tmp_path, kind)) is None


def test_a_slice_takes_no_memory_for_the_others(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, random_complex(64, 2, 32, 32))
    read_raw(path, [0])  # what is imported late stays
    tracemalloc.start()
    assert count_single_slices(path) == 64
    read_raw(path, [5])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


def test_repetitions_and_groups_of_ismrmrd(tmp_path):
    kspace = random_complex(2, 8, 6)
    xml = header_xml((6, 8, 1), (6, 8, 1))
    for factor, group in ((1, "first"), (3, "second")):
        lines = [
            acquisition((factor + repetition) * kspace[:, step], step, repetition=repetition)
            for step in range(8)
            for repetition in (0, 1)
        ]
        write_ismrmrd(tmp_path / "a.h5", xml, lines, group=group)
    with pytest.raises(ValueError, match=r"`group` must be named.*\['first', 'second'\]"):
        read_raw(tmp_path / "a.h5")
    raw = read_raw(tmp_path / "a.h5", group="second", repetition=1)
    np.testing.assert_allclose(raw.kspace[0], 4 * kspace, atol=1e-5)
    np.save(tmp_path / "a.npy", kspace)
    for arguments, said in (({"group": "first"}, "no HDF5 file"), ({"repetition": 1}, "no repetitions")):
        with pytest.raises(ValueError, match=said):
            read_raw(tmp_path / "a.npy", **arguments)


def test_a_fully_sampled_file_is_undersampled(tmp_path):
    kspace = random_complex(2, 3, 48, 40)
    np.savez(tmp_path / "a.npz", kspace=kspace, maps=kspace)
    raw = read_raw(tmp_path / "a.npz", mask=4)
    assert raw.mask.shape == (48, 40) and float(raw.mask.numel() / raw.mask.sum()) == pytest.approx(4, rel=0.05)
    np.testing.assert_array_equal(raw.kspace, np.where(raw.mask, kspace, 0))
    np.testing.assert_array_equal(raw.coil_maps, kspace)
    with h5py.File(tmp_path / "skm.h5", "w") as file:
        file["kspace"] = kspace.transpose(0, 2, 3, 1)[:, :, :, None]
    assert torch.equal(read_raw(tmp_path / "skm.h5", mask=4).mask, raw.mask)
