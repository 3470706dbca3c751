"""fastMRI, arrays of numpy and BART, coil compression, and prospective data from the file to the reconstruction."""

import h5py
import numpy as np
import pytest
import torch

from sgr_diffusers.io.arrays import read_arrays, read_cfl
from sgr_diffusers.io.fastmri import read_fastmri
from sgr_diffusers.io.raw_file import read_raw
from sgr_diffusers.io.readout import crop_field_of_view
from sgr_diffusers.mri.coils import estimate_coil_maps
from sgr_diffusers.mri.compression import compress_coils
from sgr_diffusers.mri.operators import SenseOperator, ifft2c
from tests.helpers.raw_files import fft, header_xml, random_complex, write_cfl, write_fastmri

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
    assert (raw.slice_indices, raw.n_slices, raw.scan_id, raw.target) == ((2, 0), 3, "file1", None)
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
    path = write_fastmri(tmp_path / "a.h5", kspace, XML, mask=np.ones(4, bool))
    with pytest.raises(ValueError, match=r"`kspace` of .*a\.h5 has values that are not finite in the slices \[1\]"):
        read_fastmri(path)
    with pytest.raises(ValueError, match=r"`mask` of .* must have 10 columns as `kspace`, got 4"):
        read_fastmri(path, [0])
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


def test_cropping_the_field_of_view_of_what_was_measured_in_part():
    images = np.zeros((4, 24), np.complex64)
    images[:, 6:18] = random_complex(4, 12)
    measured = np.arange(24) >= 5
    kspace, within = crop_field_of_view(np.where(measured, fft(images, (-1,)), np.nan), measured, 12)
    assert np.flatnonzero(within).tolist() == list(range(3, 12))  # sample 2.5 of the new grid is the first old one
    expected = fft(images[:, 6:18], (-1,))
    assert np.abs(kspace - expected)[:, within].max() < 0.05 * np.abs(expected).max()
    assert not kspace[:, ~within].any()


@pytest.fixture
def problem():
    kspace, maps = random_complex(3, 4, 8, 6), random_complex(3, 4, 8, 6, seed=1)
    mask = np.random.default_rng(2).random((8, 6)) < 0.5
    return {"kspace": np.where(mask, kspace, 0), "coil_maps": maps, "mask": mask.astype(np.uint8)}


def same(raw, problem, slices=slice(None)):
    np.testing.assert_array_equal(raw.kspace, problem["kspace"][slices])
    np.testing.assert_array_equal(raw.coil_maps, problem["coil_maps"][slices])
    np.testing.assert_array_equal(raw.mask, problem["mask"].astype(bool))


def test_numpy_and_plain_hdf5(tmp_path, problem):
    np.savez(tmp_path / "a.npz", **problem, voxel_size_mm=[3.0, 2.0, 1.0], target=problem["kspace"][:, 0])
    raw = read_raw(tmp_path / "a.npz", slices=range(1, 3))
    same(raw, problem, slice(1, 3))
    assert (raw.voxel_size_mm, raw.slice_indices) == ((3.0, 2.0, 1.0), (1, 2))
    np.testing.assert_array_equal(raw.target, problem["kspace"][1:, 0])
    for name, array in problem.items():
        np.save(tmp_path / f"{name}.npy", array)
    same(read_arrays(*(tmp_path / f"{name}.npy" for name in ("kspace", "mask", "coil_maps"))), problem)
    alone = read_raw(tmp_path / "kspace.npy")
    np.testing.assert_array_equal(alone.mask, problem["mask"].astype(bool))  # what is not zero
    assert alone.coil_maps is None and alone.voxel_size_mm is None
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"], file["mask"], file["maps"] = problem["kspace"][0], problem["mask"], problem["coil_maps"][0]
    same(read_raw(tmp_path / "a.h5"), problem, slice(0, 1))
    np.save(tmp_path / "one.npy", problem["kspace"][0, 0])
    assert read_raw(tmp_path / "one.npy").kspace.shape == (1, 1, 8, 6)


def test_cfl_two_dimensions(tmp_path, problem):
    def bart(array):  # (slice, coil, y, x) to READ, PHS1, 1, COIL, ..., SLICE
        return array.transpose(2, 3, 1, 0).reshape(8, 6, 1, 4, *[1] * 9, 3)

    kspace = write_cfl(tmp_path / "kspace.cfl", bart(problem["kspace"]))
    maps = write_cfl(tmp_path / "maps.cfl", bart(problem["coil_maps"]))
    np.save(tmp_path / "mask.npy", problem["mask"])
    same(read_arrays(kspace, tmp_path / "mask.npy", maps), problem)
    np.testing.assert_array_equal(read_raw(tmp_path / "kspace.hdr").kspace, problem["kspace"])
    one = write_cfl(tmp_path / "one.cfl", problem["kspace"][0].transpose(1, 2, 0)[:, :, None])
    np.testing.assert_array_equal(read_raw(one).kspace, problem["kspace"][:1])
    np.testing.assert_array_equal(read_cfl(one)[:, :, 0, 1], problem["kspace"][0, 1])


def test_cfl_three_dimensions(tmp_path):
    images = random_complex(5, 8, 6, 4)  # READ, PHS1, PHS2, COIL
    sampled = np.random.default_rng(2).random((8, 6)) < 0.5
    kspace = np.where(sampled[None, :, :, None], fft(images, (0, 1, 2)), 0)
    raw = read_arrays(write_cfl(tmp_path / "k.cfl", kspace), coil_maps=write_cfl(tmp_path / "maps.cfl", images))
    expected = np.where(sampled[None, :, :, None], fft(images, (1, 2)), 0)  # image space along the readout
    np.testing.assert_allclose(raw.kspace, expected.transpose(0, 3, 1, 2), atol=1e-5)
    np.testing.assert_array_equal(raw.coil_maps, images.transpose(0, 3, 1, 2))
    assert torch.equal(raw.mask, torch.from_numpy(sampled))


def test_arrays_that_cannot_be_read(tmp_path, problem):
    with pytest.raises(FileNotFoundError, match=r"a\.npy"):
        read_raw(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(b"not numpy")
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        read_raw(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        read_raw(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`kspace` for .*a\.npy must be complex"):
        read_raw(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", image=np.zeros(3))
    with pytest.raises(ValueError, match="but no `kspace`"):
        read_raw(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{**problem, "mask": problem["mask"][1:]})
    with pytest.raises(ValueError, match=r"`mask` for .* must be \(8, 6\) of 0 and 1"):
        read_raw(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{**problem, "coil_maps": problem["coil_maps"][:, 1:]})
    with pytest.raises(ValueError, match=r"`coil_maps` for .* must have shape \(3, 4, 8, 6\)"):
        read_raw(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.full((2, 4, 4), np.nan, np.complex64))
    with pytest.raises(ValueError, match=r"not finite in the slices \[0\]"):
        read_raw(tmp_path / "a.npy")
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"must end in \.npy"):
        read_arrays(tmp_path / "a.png")
    path = write_cfl(tmp_path / "a.cfl", problem["kspace"])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.cfl has 4600 bytes, but a\.hdr says 4608"):
        read_raw(path)
    with pytest.raises(ValueError, match="only READ, PHS1"):
        read_raw(write_cfl(tmp_path / "b.cfl", np.ones((2, 2, 1, 2, 2))))
    path.with_suffix(".hdr").write_text("nothing")
    with pytest.raises(ValueError, match="does not state its dimensions"):
        read_raw(path)
    path.with_suffix(".hdr").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.hdr is missing"):
        read_raw(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mask": 8}, "stores no masks"), ({"echo": 2}, "no echoes"), ({"n_coils": 5}, "`n_coils`")],
)
def test_what_a_file_of_arrays_does_not_have(tmp_path, problem, arguments, message):
    np.savez(tmp_path / "a.npz", **problem)
    with pytest.raises(ValueError, match=message):
        read_raw(tmp_path / "a.npz", **arguments)


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
