import h5py
import numpy as np
import pytest
import torch

from sgr_diffusers.io.arrays import read_arrays, read_cfl
from sgr_diffusers.io.raw_file import read_raw
from sgr_diffusers.io.raw_slices import SuspectDataWarning
from tests.helpers.raw_files import fft, random_complex, write_cfl


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
    np.testing.assert_array_equal(raw.fully_sampled, problem["kspace"][1:, 0])
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
    with pytest.raises(ValueError, match="holds no array `kspace`"):
        read_raw(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{**problem, "mask": problem["mask"][1:]})
    with pytest.raises(ValueError, match=r"`mask` for .* must be 0 and 1 in the shape \(8, 6\)"):
        read_raw(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{**problem, "coil_maps": problem["coil_maps"][:, 1:]})
    with pytest.raises(ValueError, match=r"`coil_maps` for .* must have shape \(3, 4, 8, 6\)"):
        read_raw(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.full((2, 4, 4), np.nan, np.complex64))
    with pytest.raises(ValueError, match=r"not finite in the slices \[0\]"):
        read_raw(tmp_path / "a.npy")
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png cannot be opened as HDF5: it is empty"):
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
    [({"mask": "poisson_8.0x"}, "stores no masks"), ({"echo": 2}, "no echoes"), ({"n_coils": 5}, "`n_coils`")],
)
def test_what_a_file_of_arrays_does_not_have(tmp_path, problem, arguments, message):
    np.savez(tmp_path / "a.npz", **problem)
    with pytest.raises(ValueError, match=message):
        read_raw(tmp_path / "a.npz", **arguments)


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_slices_keep_masks_of_their_own(tmp_path, problem, ending):
    masks = np.random.default_rng(3).random((3, 8, 6)) < 0.5
    kspace = np.where(masks[:, None], random_complex(3, 4, 8, 6), 0)
    for name, content in (("stored", {"kspace": kspace, "mask": masks}), ("zeros", {"kspace": kspace})):
        path = tmp_path / f"{name}.{ending}"
        if ending == "npz":
            np.savez(path, **content)
        else:
            with h5py.File(path, "w") as file:
                for key, value in content.items():
                    file[key] = value
        raw = read_raw(path)
        np.testing.assert_array_equal(raw.mask, masks)
        np.testing.assert_array_equal(raw.kspace, kspace)
        np.testing.assert_array_equal(read_raw(path, slices=[2, 0]).mask, masks[[2, 0]])
        np.testing.assert_array_equal(read_raw(path, slices=[1]).mask, masks[1])


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6), (1, 8, 6), (8, 1), (1, 1, 8, 6)])
def test_masks_of_lines(tmp_path, shape):
    mask = np.arange(np.prod(shape)).reshape(shape) % 3 != 1
    kspace = random_complex(2, 3, 8, 6)
    np.savez(tmp_path / "a.npz", kspace=kspace, mask=mask)
    raw = read_raw(tmp_path / "a.npz")
    expected = np.broadcast_to(mask.reshape(mask.shape[-2:]) if mask.ndim > 2 else mask, (8, 6))
    np.testing.assert_array_equal(raw.mask, expected)
    np.testing.assert_array_equal(raw.kspace, np.where(expected, kspace, 0))


def test_a_mask_of_other_data_is_warned_of(tmp_path, problem):
    np.savez(tmp_path / "a.npz", kspace=problem["kspace"], mask=1 - problem["mask"])
    with pytest.warns(SuspectDataWarning, match="`mask` for .*a.npz says .* zero in all coils"):
        read_raw(tmp_path / "a.npz")
