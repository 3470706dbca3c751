"""`load_skmtea` on a tiny data set: what rows hold, in every manner in which `datasets` can be used."""

import json
import shutil
import time

import fsspec
import h5py
import nibabel
import numpy as np
import pytest
import torch
from datasets import IterableDataset, concatenate_datasets, load_from_disk
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from sgr_diffusers.data.load import load_skmtea
from sgr_diffusers.data.scan_files import close_files
from sgr_diffusers.data.selection import SliceSelection
from sgr_diffusers.data.skm_tea import list_scans
from tests.helpers.layout_fixture import TINY_SHAPE, write_look_alike, write_tiny_skm_tea

N_SLICES = TINY_SHAPE[0]


def test_a_row_holds_what_the_files_hold(load, root):
    dataset = load(acceleration=4)
    assert len(dataset) == 2 * N_SLICES
    row = dataset[N_SLICES + 3]
    scan = list_scans(root, "train")[1]
    np.testing.assert_array_equal(row["mask"], scan.mask(4))
    np.testing.assert_array_equal(row["kspace"], np.where(scan.mask(4), scan.kspace(3), 0))
    np.testing.assert_array_equal(row["coil_maps"], scan.coil_maps(3))
    np.testing.assert_array_equal(row["target"], scan.target(3))
    np.testing.assert_array_equal(row["labels"], scan.labels()[3])
    for name, dtype in {"kspace": "complex64", "coil_maps": "complex64", "mask": "bool", "labels": "uint8"}.items():
        assert row[name].dtype == dtype
    rest = {key: row[key] for key in ("scan_id", "subject_id", "slice", "acceleration", "echo", "orientation")}
    assert rest == {
        "scan_id": "MTR_002",
        "subject_id": "2",
        "slice": 3,
        "acceleration": 4.0,
        "echo": 1,
        "orientation": ["SI", "AP", "LR"],
    }
    assert row["voxel_size_mm"] == [2.5, 1.6, 1.5]


def test_k_space_as_it_is_stored(load, root):
    scan = list_scans(root, "train")[0]
    with h5py.File(scan.kspace_file, "a") as file:
        file["kspace"][:, :2] = 0  # never acquired
    row = load(echo=2)[1]
    np.testing.assert_array_equal(row["kspace"], scan.kspace(1, echo=2))
    np.testing.assert_array_equal(row["target"], scan.target(1, echo=2))
    assert (row["acceleration"], row["echo"]) == (1.0, 2)
    assert not row["mask"][:2].any() and row["mask"][2:].all()


def test_labels_of_the_file_and_none(load, root):
    six = load(classes="file")[2]["labels"]
    np.testing.assert_array_equal(np.unique(six), range(7))
    stored = nibabel.load(list_scans(root, "train")[0].labels_file).dataobj
    np.testing.assert_array_equal(six, np.asarray(stored)[2])
    for scan in list_scans(root, "train"):
        scan.labels_file.unlink()
    assert "labels" not in load(classes=None).column_names


def test_columns_slices_and_batches(load):
    dataset = load().with_format("torch")
    assert dataset[2:5]["kspace"].shape == (3, 2, *TINY_SHAPE[1:])
    assert torch.equal(dataset.select_columns(["target"])[4]["target"], dataset[4]["target"])
    assert next(dataset.iter(batch_size=2))["labels"].shape == (2, *TINY_SHAPE[1:])


@pytest.mark.parametrize("streaming", [False, True])
def test_workers_of_a_loader_read_every_slice_once(load, streaming):
    dataset = load(acceleration=4, streaming=streaming)
    next(iter(dataset))  # a handle is open before the workers start
    loader = DataLoader(dataset.with_format("torch"), batch_size=3, num_workers=2)
    batches = list(loader)
    keys = [key for batch in batches for key in zip(batch["scan_id"], batch["slice"].tolist(), strict=True)]
    assert sorted(keys) == [(f"MTR_00{scan}", number) for scan in (1, 2) for number in range(N_SLICES)]
    whole = {(row["scan_id"], row["slice"]): row["kspace"] for row in load(acceleration=4)}
    for batch in batches:
        for scan, number, kspace in zip(batch["scan_id"], batch["slice"].tolist(), batch["kspace"], strict=True):
            np.testing.assert_array_equal(kspace, whole[scan, number])


def test_shuffling_moves_whole_rows(load):
    for dataset in (load().shuffle(seed=0), load(streaming=True).shuffle(seed=0, buffer_size=8)):
        rows = list(dataset)
        keys = [(row["scan_id"], row["slice"]) for row in rows]
        assert keys != sorted(keys) and len(set(keys)) == 2 * N_SLICES
        ordered = load()
        for row, key in zip(rows, keys, strict=True):
            place = N_SLICES * (key[0] == "MTR_002") + key[1]
            np.testing.assert_array_equal(row["target"], ordered[place]["target"])


@pytest.mark.parametrize("streaming", [False, True])
def test_nodes_share_the_scans(load, streaming):
    parts = [split_dataset_by_node(load(streaming=streaming), rank=rank, world_size=2) for rank in (0, 1)]
    assert [{row["scan_id"] for row in part} for part in parts] == [{"MTR_001"}, {"MTR_002"}]


def test_processes_make_the_same_index(load, tmp_path):
    one, two = load(), load_skmtea(tmp_path / "data", "train", num_proc=2, cache_dir=tmp_path / "other")
    assert one["slice"][:] == two["slice"][:] and one["scan_id"][:] == two["scan_id"][:]
    np.testing.assert_array_equal(one[7]["kspace"], two[7]["kspace"])


def test_streaming_from_a_url_equals_the_folder(load, root):
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/streamed", recursive=True)
    try:
        stream = load(
            source="memory://streamed", acceleration=4, streaming=True, slices=SliceSelection(min_foreground=1)
        )
        local = load(acceleration=4, slices=SliceSelection(min_foreground=1))
        assert isinstance(stream, IterableDataset)
        for ours, expected in zip(stream, local, strict=True):
            for key in ("kspace", "coil_maps", "target", "mask", "labels"):
                np.testing.assert_array_equal(ours[key], expected[key])
        indexed = load(source="memory://streamed", split="val")
        np.testing.assert_array_equal(indexed[2]["kspace"], load("val")[2]["kspace"])
    finally:
        memory.rm("/streamed", recursive=True)


def test_saved_and_concatenated(load, tmp_path):
    both = concatenate_datasets([load(acceleration=4), load(acceleration=8), load("val", echo=2)])
    both.save_to_disk(tmp_path / "saved")
    again = load_from_disk(tmp_path / "saved")
    assert again["acceleration"][:] == [4.0] * 12 + [8.0] * 12 + [1.0] * 6
    np.testing.assert_array_equal(again[14]["kspace"], load(acceleration=8)[2]["kspace"])
    assert (tmp_path / "saved" / "data-00000-of-00001.arrow").stat().st_size < 30_000


def test_splits_can_be_cut_and_added(load):
    assert len(load("train[:4]+val")) == 4 + N_SLICES
    assert {row["scan_id"] for row in load("train+test", streaming=True)} == {"MTR_001", "MTR_002", "MTR_004"}
    for split in ("validation", "train,val", ""):
        with pytest.raises(ValueError, match="`split`"):
            load(split)


def test_a_stale_index_is_never_used(load, root):
    assert len(load()) == 2 * N_SLICES
    annotations = root / "annotations/v1.0.0/train.json"
    content = json.loads(annotations.read_text())
    content["images"][0]["orientation"] = ["SI", "AP", "RL"]
    annotations.write_text(json.dumps(content))
    assert load()[0]["orientation"] == ["SI", "AP", "RL"]
    content["images"].pop(0)
    annotations.write_text(json.dumps(content))
    assert set(load()["scan_id"][:]) == {"MTR_002"}
    # other labels: another selection
    path = root / "segmentation_masks/raw-data-track/MTR_002.nii.gz"
    labels = np.zeros(TINY_SHAPE, np.uint8)
    labels[4, 0, 0] = 1
    has_tissue = SliceSelection(min_foreground=1)
    assert load(slices=has_tissue)["slice"][:] == [2, 3]
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), path)
    assert load(slices=has_tissue)["slice"][:] == [4]


@pytest.fixture
def other_root(tmp_path):
    """Data whose segmentations have other classes than SKM-TEA's, and a split of another name."""
    splits = (("train", 1), ("calibration", 1))
    yield write_tiny_skm_tea(tmp_path / "other", splits, class_names=tuple("abcdef"))
    close_files()


def test_data_with_classes_of_its_own(load, other_root):
    scan = list_scans(other_root, "train")[0]
    assert scan.class_names == tuple("abcdef")
    np.testing.assert_array_equal(np.unique(scan.labels()), np.arange(7))
    dataset = load(source=other_root, split="calibration+train")
    np.testing.assert_array_equal(dataset[N_SLICES + 2]["labels"], scan.labels(2))
    chosen = load(source=other_root, slices=SliceSelection(has_class=("f",)))
    assert chosen["slice"][:] == [2, 3]
    with pytest.raises(ValueError, match=r"`has_class` must hold names out of \('a', .*'bone'"):
        load(source=other_root, slices=SliceSelection(has_class=("bone",)))


def test_a_label_without_a_class_is_refused(tmp_path):
    root = write_tiny_skm_tea(tmp_path / "other", (("train", 1),), class_names=("tumour",))
    with pytest.raises(ValueError, match=r"`labels` must be in 0\.\.1 for the classes tumour, got 0 to 6"):
        list_scans(root, "train")[0].labels(2)


def test_splits_with_different_classes_are_not_joined(load, root, other_root):
    shutil.copy(root / "annotations/v1.0.0/test.json", other_root / "annotations/v1.0.0/test.json")
    with pytest.raises(ValueError, match=r"`split` joins splits of .* with different classes"):
        load(source=other_root, split="train+test")


def test_a_split_that_is_not_there_is_named_with_those_that_are(load, other_root):
    with pytest.raises(FileNotFoundError, match=r"`split` must be one that .* has, train, calibration, got 'val'"):
        load(source=other_root, split="val")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"echo": 3}, ValueError, "`echo`"),
        ({"acceleration": 0.5}, ValueError, "`acceleration`"),
        ({"acceleration": "x"}, ValueError, "`acceleration` must be at least 1, .* got 'x'"),
        ({"num_proc": "x"}, ValueError, "`num_proc` must be a whole number .* got 'x'"),
        ({"split": 5}, TypeError, "`split` must be text, .* got 5"),
        ({"source": None}, TypeError, "`data_dir_or_repo` must be a folder or .* got NoneType"),
        ({"classes": "tissue"}, ValueError, "`classes`"),
        ({"source": "no such folder"}, FileNotFoundError, "neither a folder"),
        ({"source": "/"}, FileNotFoundError, "train.json is missing"),
    ],
)
def test_arguments_that_cannot_be(load, arguments, error, message, unchecked_types):
    with pytest.raises(error, match=message):
        load(**arguments)


def test_index_of_the_full_set_is_small_and_quick(tmp_path):
    root = write_look_alike(tmp_path / "full")
    start = time.process_time()
    dataset = load_skmtea(root, "train+val+test", acceleration=8, cache_dir=tmp_path / "cache")
    assert time.process_time() - start < 120
    assert len(dataset) == 155 * 512
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert size < 20e6
    row = dataset[155 * 512 - 1]
    assert row["kspace"].shape == row["coil_maps"].shape == (8 if 155 % 3 else 16, 512, 160)
    assert row["labels"].shape == row["mask"].shape == (512, 160)
    close_files()


def test_the_first_row_of_a_stream_needs_one_scan_alone(root, load):
    for scan in (root / "files_recon_calib-24").glob("*.h5"):
        if scan.stem != "MTR_001":
            scan.unlink()
    stream = load(streaming=True)
    rows = iter(stream)
    assert next(rows)["scan_id"] == "MTR_001"
    with pytest.raises(ValueError, match=r"scan MTR_002, .*MTR_002\.h5: the file is missing"):
        list(rows)
