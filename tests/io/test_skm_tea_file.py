import json

import h5py
import numpy as np
import pytest
import torch

from sgr_diffusers.io.raw_slices import SuspectDataWarning
from sgr_diffusers.io.skm_tea_file import read_skm_tea

SHAPE = (5, 8, 6)  # slices, y, x
N_ECHOES, N_COILS = 2, 3


@pytest.fixture
def scan(tmp_path):
    """A tiny file in the SKM-TEA layout; its path and what was written."""
    rng = np.random.default_rng(0)

    def random(*shape):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)

    content = {
        "kspace": random(*SHAPE, N_ECHOES, N_COILS),
        "maps": random(*SHAPE, N_COILS, 1),
        "target": random(*SHAPE, N_ECHOES, 1),
        "masks/poisson_4.0x": (rng.random((6, 3)) < 0.5).astype(np.uint8),
        "masks/poisson_8.0x": np.ones((6, 3), np.uint8),
        "masks/too_large": np.ones((9, 3), np.uint8),
    }
    path = tmp_path / "files_recon_calib-24" / "MTR_005.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value
    return path, content


def annotate(path, text=None):
    entry = {"scan_id": "MTR_005", "voxel_spacing": [2.5, 1.6, 1.5], "orientation": ["SI", "AP", "RL"]}
    annotations = path.parent.parent / "annotations" / "v1.0.0"
    annotations.mkdir(parents=True)
    (annotations / "train.json").write_text(json.dumps({"images": []}))
    (annotations / "val.json").write_text(text or json.dumps({"images": [{**entry, "scan_id": "MTR_006"}, entry]}))


def rewrite(path, key, value):
    with h5py.File(path, "a") as file:
        del file[key]
        if value is not None:
            file[key] = value


def test_reads_what_was_written_coils_first(scan):
    path, content = scan
    raw = read_skm_tea(path)
    assert raw.kspace.dtype == torch.complex64
    np.testing.assert_array_equal(raw.kspace, np.moveaxis(content["kspace"][..., 0, :], -1, 1))
    np.testing.assert_array_equal(raw.coil_maps, np.moveaxis(content["maps"][..., 0], -1, 1))
    np.testing.assert_array_equal(raw.fully_sampled, content["target"][..., 0, 0])
    assert raw.mask.all()
    assert (raw.slice_indices, raw.n_slices, raw.scan_id) == ((0, 1, 2, 3, 4), 5, "MTR_005")
    assert (raw.voxel_size_mm, raw.orientation) == (None, None)


def test_without_a_mask_what_is_zero_in_the_file_counts_as_not_acquired(scan):
    path, content = scan
    content["kspace"][:, 0] = 0
    rewrite(path, "kspace", content["kspace"])
    mask = read_skm_tea(path).mask
    assert not mask[0].any()
    assert mask[1:].all()


@pytest.mark.parametrize(
    ("slices", "expected"),
    [(range(1, 5, 2), (1, 3)), (slice(3, None), (3, 4)), (slice(None, 2), (0, 1)), ([4, 0], (4, 0)), ((2,), (2,))],
)
def test_slices_and_echo(scan, slices, expected):
    path, content = scan
    raw = read_skm_tea(path, slices, echo=2, with_maps=False)
    assert raw.slice_indices == expected
    assert raw.coil_maps is None
    np.testing.assert_array_equal(raw.kspace, np.moveaxis(content["kspace"][list(expected)][..., 1, :], -1, 1))
    np.testing.assert_array_equal(raw.fully_sampled, content["target"][list(expected)][..., 1, 0])


@pytest.mark.parametrize("mask", [4, 4.0, "poisson_4.0x"])
def test_mask_is_padded_about_the_centre_and_applied(scan, mask):
    path, content = scan
    raw = read_skm_tea(path, [0], mask=mask, with_fully_sampled=False)
    expected = np.zeros((8, 6), bool)
    expected[1:7, 1:4] = content["masks/poisson_4.0x"]  # floor((6 - 3) / 2) = 1 before, 2 after
    np.testing.assert_array_equal(raw.mask, expected)
    np.testing.assert_array_equal(raw.kspace[0, 0], content["kspace"][0, :, :, 0, 0] * expected)
    assert raw.fully_sampled is None


def test_voxel_size_and_orientation_come_from_the_annotations(scan):
    path, _ = scan
    annotate(path)
    raw = read_skm_tea(path, [0])
    assert raw.voxel_size_mm == (2.5, 1.6, 1.5)
    assert raw.orientation == ("SI", "AP", "RL")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slices": range(3, 6)}, r"`slices` must be from 0 to 4.*got \[5\]"),
        ({"slices": [-1]}, r"got \[-1\]"),
        ({"slices": slice(0, 9)}, "within the 5 slices"),
        ({"slices": slice(-2, None)}, "within the 5 slices"),
        ({"slices": []}, "selects none"),
        ({"slices": range(0)}, "selects none"),
        ({"echo": 0}, "`echo` must be from 1 to 2"),
        ({"echo": 3}, "`echo` must be from 1 to 2"),
        ({"mask": 16}, r"no masks/poisson_16.0x.*'poisson_4.0x', 'poisson_8.0x'"),
        ({"mask": "spiral"}, r"no masks/spiral.*'poisson_4.0x'"),
        ({"mask": "too_large"}, "masks/too_large of .* does not fit"),
    ],
)
def test_bad_arguments_are_named(scan, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_skm_tea(scan[0], **arguments)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kspace", None, r"no dataset `kspace`, only \['maps', 'masks', 'target'\]"),
        ("maps", None, "no dataset `maps`"),
        ("target", None, "no dataset `target`"),
        ("masks", None, r"no masks/poisson_4.0x. The masks stored are \[\]"),
        ("kspace", np.zeros((5, 8, 6, 3), np.complex64), "`kspace` of .* must have 5 axes"),
        ("kspace", np.zeros((5, 8, 6, 2, 3), np.float32), "`kspace` of .* must be complex, got float32"),
        ("maps", np.zeros((5, 8, 6, 4, 1), np.complex64), r"`maps` of .* must have shape \(5, 8, 6, 3, 1\)"),
        (
            "target",
            np.full((5, 8, 6, 2, 1), np.nan + 0j, np.complex64),
            r"`target` of .* not finite in the slices \[0\]",
        ),
        (
            "kspace",
            np.full((5, 8, 6, 2, 3), np.inf + 0j, np.complex64),
            r"`kspace` of .* not finite in the slices \[0\]",
        ),
    ],
)
def test_bad_content_is_named(scan, key, value, message):
    path, _ = scan
    rewrite(path, key, value)
    with pytest.raises(ValueError, match=message):
        read_skm_tea(path, [0], mask=4)


def test_truncated_foreign_and_missing_files(scan, tmp_path):
    path, _ = scan
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"MTR_005\.h5 cannot be opened as HDF5: it is damaged .*truncated file"):
        read_skm_tea(path)
    foreign = tmp_path / "notes.h5"
    foreign.write_text("not HDF5")
    with pytest.raises(ValueError, match=r"notes\.h5 cannot be opened as HDF5: it is damaged or of another format"):
        read_skm_tea(foreign)
    with pytest.raises(FileNotFoundError, match=r"`path` .*nothing.h5"):
        read_skm_tea(tmp_path / "nothing.h5")


def test_foreign_annotations_are_named(scan):
    path, _ = scan
    annotate(path, text="[1, 2]")
    with pytest.raises(ValueError, match=r"val.json is not a SKM-TEA annotation file"):
        read_skm_tea(path)


def test_slices_keep_masks_of_their_own(scan):
    path, content = scan
    masks = np.random.default_rng(1).random((5, 8, 6)) < 0.5
    rewrite(path, "kspace", np.where(masks[..., None, None], content["kspace"], 0))
    np.testing.assert_array_equal(read_skm_tea(path).mask, masks)
    np.testing.assert_array_equal(read_skm_tea(path, [3]).mask, masks[3])


def test_a_dataset_in_the_place_of_the_masks(scan):
    path, _ = scan
    rewrite(path, "masks", np.ones((8, 6)))
    with pytest.raises(ValueError, match=r"`masks` of .* is a dataset of shape \(8, 6\), where SKM-TEA has a group"):
        read_skm_tea(path, mask=4)
    assert read_skm_tea(path).mask.all()


def test_a_voxel_size_of_the_file_is_held_against_the_annotations(scan):
    path, _ = scan
    annotate(path)
    with h5py.File(path, "a") as file:
        file.attrs["voxel_size_mm"] = [2.5, 1.6, 1.5]
    assert read_skm_tea(path).voxel_size_mm == (2.5, 1.6, 1.5)
    with h5py.File(path, "a") as file:
        file.attrs["voxel_size_mm"] = [1.0, 2.0, 3.0]
    with pytest.warns(SuspectDataWarning, match=r"is \(1.0, 2.0, 3.0\), but the annotations .* \(2.5, 1.6, 1.5\)"):
        assert read_skm_tea(path).voxel_size_mm == (1.0, 2.0, 3.0)
