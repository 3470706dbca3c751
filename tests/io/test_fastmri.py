import h5py
import numpy as np
import pytest
import torch

from sgr_diffusers.io.fastmri import read_fastmri
from sgr_diffusers.io.raw_file import read_raw
from sgr_diffusers.io.raw_slices import SuspectDataWarning
from sgr_diffusers.mri.operators import ifft2c
from tests.helpers.raw_files import fft, header_xml, random_complex, write_fastmri

N_SLICES, N_COILS, N_ROWS, N_COLUMNS = 3, 2, 6, 10  # rows after the oversampling is removed
XML = header_xml((2 * N_ROWS, N_COLUMNS, 1), (N_ROWS, N_COLUMNS, 1), fov=(24.0, 30.0, 4.5))


def fastmri_images(n_coils=N_COILS):
    images = np.zeros((N_SLICES, n_coils, 2 * N_ROWS, N_COLUMNS), np.complex64)
    middle = slice(N_ROWS - N_ROWS // 2, N_ROWS + N_ROWS // 2)
    images[..., middle, :] = random_complex(N_SLICES, n_coils, N_ROWS, N_COLUMNS)
    return images, images[..., middle, :]


def test_fastmri_multi_coil(tmp_path):
    images, cropped = fastmri_images()
    path = write_fastmri(tmp_path / "file1.h5", fft(images, (-2, -1)), XML)
    raw = read_raw(path, slices=[2, 0])
    np.testing.assert_allclose(ifft2c(raw.kspace), cropped[[2, 0]], atol=1e-5)
    assert raw.mask.all() and raw.mask.shape == (N_ROWS, N_COLUMNS)
    assert (raw.slice_indices, raw.n_slices, raw.scan_id, raw.fully_sampled) == ((2, 0), 3, "file1", None)
    assert raw.voxel_size_mm == pytest.approx((4.5, 2.0, 3.0))
    full = read_fastmri(path, remove_oversampling=False)
    np.testing.assert_allclose(full.kspace, fft(images, (-2, -1)), atol=1e-6)


def test_fastmri_single_coil(tmp_path):
    images, cropped = fastmri_images(1)
    raw = read_raw(write_fastmri(tmp_path / "a.h5", fft(images, (-2, -1))[:, 0], XML))
    assert raw.kspace.shape == (N_SLICES, 1, N_ROWS, N_COLUMNS)
    np.testing.assert_allclose(ifft2c(raw.kspace), cropped, atol=1e-5)


def test_fastmri_undersampled(tmp_path):
    kspace = fft(fastmri_images()[0], (-2, -1))
    kspace[..., 8:] = 0  # filled up by the scanner
    lines = np.array([1, 0, 0, 1, 1, 1, 1, 0, 0, 1], bool)
    acquired = lines & (np.arange(10) < 8)
    stored = read_raw(write_fastmri(tmp_path / "test.h5", np.where(lines, kspace, 0), XML, mask=lines))
    chosen = read_fastmri(write_fastmri(tmp_path / "train.h5", kspace, XML), mask=lines)
    for raw in (stored, chosen):
        assert torch.equal(raw.mask, torch.from_numpy(acquired).expand(N_ROWS, -1))
        assert not raw.kspace[..., ~torch.from_numpy(acquired)].any()
    torch.testing.assert_close(stored.kspace, chosen.kspace)


def test_fastmri_that_cannot_be_read(tmp_path):
    kspace = fft(fastmri_images()[0], (-2, -1))
    kspace[1, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"`kspace` of .*a\.h5 has values that are not finite in the slices \[1\]"):
        read_fastmri(write_fastmri(tmp_path / "a.h5", kspace, XML))
    with pytest.raises(ValueError, match=r"`mask` of .* must have 10 columns as `kspace`, .*got \(4,\)"):
        read_fastmri(write_fastmri(tmp_path / "a.h5", kspace, XML, mask=np.ones(4, bool)), [0])
    with pytest.raises(ValueError, match=r"`mask` must be \(10,\) or \(6, 10\), got \(3,\)"):
        read_fastmri(write_fastmri(tmp_path / "c.h5", kspace, XML), [0], mask=np.ones(3))
    for message, change in {
        "not a fastMRI file": lambda file: file.__delitem__("kspace"),
        "must be complex": lambda file: (file.__delitem__("kspace"), file.__setitem__("kspace", np.zeros((2, 3, 4)))),
        "not XML": lambda file: (file.__delitem__("ismrmrd_header"), file.__setitem__("ismrmrd_header", "<a>")),
    }.items():
        write_fastmri(tmp_path / "b.h5", kspace, XML)
        with h5py.File(tmp_path / "b.h5", "a") as file:
            change(file)
        with pytest.raises(ValueError, match=message):
            read_fastmri(tmp_path / "b.h5")


def test_slices_keep_masks_of_their_own(tmp_path):
    kspace = fft(fastmri_images()[0], (-2, -1))
    lines = np.random.default_rng(0).random((N_SLICES, N_COLUMNS)) < 0.6
    kspace = np.where(lines[:, None, None], kspace, 0)
    for mask in (None, lines, lines[:, None]):
        raw = read_raw(write_fastmri(tmp_path / "a.h5", kspace, XML, mask=mask))
        assert raw.mask.shape == (N_SLICES, N_ROWS, N_COLUMNS)
        np.testing.assert_array_equal(raw.mask[:, 0], lines)
        assert read_raw(tmp_path / "a.h5", slices=[2]).mask.shape == (N_ROWS, N_COLUMNS)


def test_headers_are_held_against_the_kspace(tmp_path):
    kspace = fft(fastmri_images()[0], (-2, -1))
    wider = header_xml((2 * N_ROWS, N_COLUMNS + 2, 1), (N_ROWS, N_COLUMNS, 1), fov=(24.0, 30.0, 4.5))
    with pytest.warns(SuspectDataWarning, match="10 columns, but the header a matrix of 12 lines"):
        assert read_raw(write_fastmri(tmp_path / "a.h5", kspace, wider)).voxel_size_mm[2] == pytest.approx(3.0)
    more = header_xml((2 * N_ROWS, N_COLUMNS, 1), (N_ROWS, N_COLUMNS, 1), n_slices=9)
    with pytest.warns(SuspectDataWarning, match=r"states 9 slices \(encodingLimits\), but `kspace` has 3"):
        read_raw(write_fastmri(tmp_path / "b.h5", kspace, more))
    metres = header_xml((2 * N_ROWS, N_COLUMNS, 1), (N_ROWS, N_COLUMNS, 1), fov=(0.024, 0.030, 0.0045))
    with pytest.warns(SuspectDataWarning, match=r"voxels of 0.0045 x 0.002 x 0.003 mm"):
        assert read_raw(write_fastmri(tmp_path / "c.h5", kspace, metres)).voxel_size_mm is None


def test_an_attribute_of_the_file_replaces_the_voxel_size_of_the_header(tmp_path):
    path = write_fastmri(tmp_path / "a.h5", fft(fastmri_images()[0], (-2, -1)), XML)
    with h5py.File(path, "a") as file:
        file.attrs["voxel_size_mm"] = [5.0, 2.0, 3.0]
    with pytest.warns(SuspectDataWarning, match=r"is \(5.0, 2.0, 3.0\), but its header says \(4.5, 2.0, 3.0\)"):
        assert read_raw(path).voxel_size_mm == (5.0, 2.0, 3.0)
