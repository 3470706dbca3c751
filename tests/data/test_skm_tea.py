import json

import h5py
import nibabel
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sgr_diffusers.data.skm_tea import CLASS_NAMES, SkmTeaSlices, list_scans, merge_labels
from sgr_diffusers.mri.operators import channels_to_complex, ifft2c
from tests.helpers.layout_fixture import TINY_SHAPE, write_tiny_skm_tea

SHAPE = TINY_SHAPE


@pytest.fixture
def root(tmp_path):
    return write_tiny_skm_tea(tmp_path)


@pytest.fixture
def scan(root):
    return list_scans(root, "train")[0]


def test_merge_labels():
    assert merge_labels(np.arange(7)).tolist() == [0, 1, 2, 3, 3, 4, 4]
    assert len(CLASS_NAMES) == 4
    for wrong in ([7], [-1]):
        with pytest.raises(ValueError, match=r"0\.\.6"):
            merge_labels(np.array(wrong))


def test_list_scans(root):
    scans = list_scans(root, "train")
    assert [scan.scan_id for scan in scans] == ["MTR_001", "MTR_002"]
    assert [scan.scan_id for scan in list_scans(str(root), "test")] == ["MTR_004"]
    assert scans[0].matrix_shape == SHAPE
    assert scans[0].orientation == ("SI", "AP", "LR")
    assert scans[0].mask_names == ["poisson_4.0x", "poisson_8.0x", "poisson_12.0x", "poisson_16.0x"]


def test_list_scans_says_what_is_wrong(root):
    with pytest.raises(ValueError, match="`split`"):
        list_scans(root, "validation")
    with pytest.raises(FileNotFoundError, match="`root`"):
        list_scans(root / "elsewhere", "train")
    file = root / "annotations/v1.0.0/train.json"
    content = json.loads(file.read_text())
    del content["images"][0]["matrix_shape"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="matrix_shape"):
        list_scans(root, "train")


def test_target_kspace_and_maps_of_a_scan_fit_together(scan):
    target = scan.target(2)
    images = ifft2c(torch.from_numpy(scan.kspace(2)))
    maps = torch.from_numpy(scan.coil_maps(2))
    assert maps.shape == images.shape == (2, *SHAPE[1:])
    torch.testing.assert_close((maps.conj() * images).sum(0), torch.from_numpy(target), rtol=1e-4, atol=1e-2)
    assert np.array_equal(scan.target(slice(1, 4))[1], target)
    assert not np.array_equal(scan.target(2, echo=2), target)


def test_labels_are_merged(scan):
    labels = scan.labels()
    assert labels.shape == SHAPE
    assert labels.dtype == np.uint8
    assert np.unique(labels).tolist() == [0, 1, 2, 3, 4]
    assert labels.any(axis=(1, 2)).tolist() == [False, False, True, True, False, False]


def test_mask_is_padded_about_the_centre(scan):
    with h5py.File(scan.kspace_file) as file:
        stored = file["masks/poisson_8.0x"][()].astype(bool)
    mask = scan.mask(8)
    assert mask.shape == SHAPE[1:]
    assert mask.sum() == stored.sum()
    assert np.array_equal(mask[3:-3, 2:-3], stored)  # 24 - 18 and 16 - 11: floor of the difference before
    with pytest.raises(ValueError, match="`acceleration`"):
        scan.mask(5)


def test_labels_of_a_slice(scan):
    labels = scan.labels()
    assert np.array_equal(scan.labels(3), labels[3]) and np.array_equal(scan.labels(slice(1, 4)), labels[1:4])
    assert scan.foreground.tolist() == labels.any(axis=(1, 2)).tolist()


def test_slice_and_echo_outside_the_scan(scan):
    for read in (scan.target, scan.kspace, scan.coil_maps, scan.labels):
        for index in (6, -1):
            with pytest.raises(IndexError, match="`index`"):
                read(index)
    with pytest.raises(IndexError, match="`echo`"):
        scan.target(0, echo=3)


@pytest.mark.parametrize("in_place", [True, False])
def test_files_that_change_are_read_anew(scan, in_place):
    before, n_labelled = scan.target(2), int(scan.foreground.sum())
    written = scan.kspace_file.with_suffix(".new")
    with h5py.File(scan.kspace_file) as file:
        content = {key: file[key][()] for key in ("kspace", "maps", "target")}
    with h5py.File(written, "w") as file:  # other datasets at other places in the file
        file.update({"masks/poisson_8.0x": np.ones((20, 10), np.uint8), **content, "target": 2 * content["target"]})
    if in_place:
        scan.kspace_file.write_bytes(written.read_bytes())
    else:
        written.replace(scan.kspace_file)
    np.testing.assert_array_equal(scan.target(2), 2 * before)
    assert scan.mask_names == ["poisson_8.0x"] and scan.mask(8).sum() == 200
    labels = scan.labels()
    labels[5, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), scan.labels_file)
    assert int(scan.foreground.sum()) == n_labelled + 1


@pytest.mark.parametrize("preload", [False, True])
def test_slices_of_all_scans(root, preload):
    scans = list_scans(root, "train")
    slices = SkmTeaSlices(scans, preload=preload)
    assert len(slices) == 12
    item = slices[8]
    assert (item["scan_id"], item["slice"]) == ("MTR_002", 2)
    image = channels_to_complex(item["image"])
    target = scans[1].target(2)
    np.testing.assert_allclose(image.numpy() * np.quantile(np.abs(target), 0.99), target, rtol=1e-4)
    assert torch.equal(item["labels"], torch.from_numpy(scans[1].labels()[2]).long())
    assert not slices[0]["labels"].any()
    assert slices.foreground.tolist() == ([False, False, True, True, False, False]) * 2
    with pytest.raises(IndexError):
        slices[12]


def test_workers_open_files_of_their_own(root):
    slices = SkmTeaSlices(list_scans(root, "train"))
    expected = slices[3]["image"]  # a handle is open before the workers start
    batches = list(DataLoader(slices, batch_size=4, num_workers=2))
    assert torch.equal(batches[0]["image"][3], expected)
    assert batches[2]["scan_id"] == ["MTR_002"] * 4
    assert batches[1]["labels"].dtype == torch.int64


def test_size_makes_different_scans_equal(root, tmp_path):
    write_tiny_skm_tea(tmp_path / "other", n_scans=(("train", 1),), shape=(6, 24, 18))
    scans = list_scans(root, "train") + list_scans(tmp_path / "other", "train")
    with pytest.raises(ValueError, match="`size`"):
        SkmTeaSlices(scans)
    slices = SkmTeaSlices(scans, size=(24, 16), preload=True)
    assert {tuple(slices[index]["image"].shape) for index in (0, 13)} == {(2, 24, 16)}
    assert slices[14]["labels"].shape == (24, 16)


def test_no_scans():
    with pytest.raises(ValueError, match="`scans`"):
        SkmTeaSlices([])


def test_an_empty_slice_is_named(root):
    scan = list_scans(root, "val")[0]
    with h5py.File(scan.kspace_file, "a") as file:
        file["target"][4] = 0
    slices = SkmTeaSlices([scan])
    assert slices[3]["image"].isfinite().all()
    with pytest.raises(ValueError, match="MTR_003"):
        slices[4]
