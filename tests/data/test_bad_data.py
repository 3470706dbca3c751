"""Damaged scans: an error names scan and file; without `strict` they are skipped, counted and named."""

import json
import os
import pickle

import h5py
import nibabel
import numpy as np
import pytest

from sgr_diffusers.data.check import check_folder, report_text
from sgr_diffusers.data.load import load_skmtea
from sgr_diffusers.data.scan_files import DataFault
from sgr_diffusers.data.skm_tea_builder import SkippedDataWarning
from tests.helpers.layout_fixture import TINY_SHAPE

N_SLICES = TINY_SHAPE[0]
BAD = "MTR_001"  # of two in the split


def kspace_file(root):
    return root / "files_recon_calib-24" / f"{BAD}.h5"


def labels_file(root):
    return root / "segmentation_masks/raw-data-track" / f"{BAD}.nii.gz"


def edit(root, key, value=None, at=None):
    with h5py.File(kspace_file(root), "a") as file:
        if at is not None:
            file[key][at] = value
            return
        del file[key]
        if value is not None:
            file[key] = value


def annotate(root, key, value):
    path = root / "annotations/v1.0.0/train.json"
    content = json.loads(path.read_text())
    content["images"][0][key] = value
    path.write_text(json.dumps(content))


def save_labels(root, labels):
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), labels_file(root))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def cut(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


WHOLE_SCANS = {
    "missing mask": (lambda root: edit(root, "masks/poisson_4.0x"), rf"{BAD}.h5: has no masks/poisson_4.0x, only"),
    "mask too large": (lambda root: edit(root, "masks/poisson_4.0x", np.ones((30, 8))), rf"{BAD}.h5: masks/poisson"),
    "no file": (lambda root: kspace_file(root).unlink(), rf"{BAD}.h5: the file is missing"),
    "a pipe": (lambda root: pipe(kspace_file(root)), rf"{BAD}.h5: .* must be a regular file, but is a named pipe"),
    "no labels": (lambda root: labels_file(root).unlink(), rf"{BAD}.nii.gz: the scan has no segmentation"),
    "other matrix": (lambda root: annotate(root, "matrix_shape", [6, 24, 20]), r"\(6, 24, 20\) of the annotations"),
    "labels of another shape": (
        lambda root: save_labels(root, np.zeros((6, 24, 15), np.uint8)),
        rf"{BAD}.nii.gz: the segmentation has shape \(6, 24, 15\)",
    ),
    "truncated": (lambda root: cut(kspace_file(root)), rf"{BAD}.h5: cannot be opened as HDF5: it is damaged"),
    "not HDF5": (
        lambda root: kspace_file(root).write_bytes(b"<html>404</html>"),
        "cannot be opened as HDF5: it is a web page",
    ),
    "not NIfTI": (lambda root: labels_file(root).write_bytes(b"<html>404</html>"), "not a readable segmentation"),
    "foreign keys": (
        lambda root: edit(root, "kspace"),
        rf"{BAD}.h5: holds no dataset `kspace`, only \['maps', 'masks', 'target'\]",
    ),
    "real k-space": (
        lambda root: edit(root, "kspace", np.zeros((*TINY_SHAPE, 2, 2), np.float32)),
        "`kspace` must be complex, got float32",
    ),
    "coils of maps": (
        lambda root: edit(root, "maps", np.zeros((*TINY_SHAPE, 3, 1), np.complex64)),
        r"`maps` must end in the axes \(2, 1\)",
    ),
}
CONTENT = {
    "label outside 0..6": (
        lambda root: save_labels(root, np.full(TINY_SHAPE, 7, np.uint8)),
        rf"{BAD}.nii.gz: labels must be whole numbers in 0..6, got 7 to 7",
    ),
    "labels that are no whole numbers": (
        lambda root: save_labels(root, np.full(TINY_SHAPE, 0.5, np.float32)),
        "labels must be whole numbers",
    ),
    "truncated labels": (lambda root: cut(labels_file(root)), rf"{BAD}.nii.gz: not a readable segmentation"),
}
SLICES = {
    "k-space not finite": (lambda root: edit(root, "kspace", np.nan, at=(4, 3, 2, 0, 1)), "kspace"),
    "maps not finite": (lambda root: edit(root, "maps", np.inf, at=(4, 3, 2, 1)), "maps"),
    "target not finite": (lambda root: edit(root, "target", -np.inf, at=(4, 3, 2, 0)), "target"),
}


@pytest.mark.parametrize(
    ("name", "num_proc"), [*((name, None) for name in WHOLE_SCANS), ("missing mask", 2), ("truncated", 2)]
)
def test_a_scan_that_cannot_be_used_is_named(root, tmp_path, name, num_proc):
    damage, message = WHOLE_SCANS[name]
    damage(root)
    with pytest.raises(ValueError, match=rf"scan {BAD}, .*{message}"):
        load_skmtea(root, "train", acceleration=4, cache_dir=tmp_path / "cache", num_proc=num_proc)
    with pytest.raises(DataFault, match=message):
        list(load_skmtea(root, "train", acceleration=4, streaming=True))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", [*WHOLE_SCANS, *CONTENT])
def test_a_bad_scan_is_skipped_and_counted(root, tmp_path, name, streaming):
    damage, _ = {**WHOLE_SCANS, **CONTENT}[name]
    damage(root)
    arguments = {"acceleration": 4, "strict": False, "streaming": streaming, "cache_dir": tmp_path / "cache"}
    for _ in range(2):  # the second time from the cache
        with pytest.warns(SkippedDataWarning, match="skipped 1 scans and 0 single slices") as caught:
            rows = [row["scan_id"] for row in load_skmtea(root, "train", **arguments)]
        assert rows == ["MTR_002"] * N_SLICES
        [skipped] = caught[0].message.skipped
        assert (skipped["scan_id"], skipped["slice"]) == (BAD, None)
        assert BAD in skipped["file"]


@pytest.mark.parametrize("name", CONTENT)
def test_bad_labels_are_named_when_they_are_read(root, tmp_path, name):
    damage, message = CONTENT[name]
    damage(root)
    dataset = load_skmtea(root, "train", cache_dir=tmp_path / "cache")
    assert dataset[N_SLICES]["labels"].shape == TINY_SHAPE[1:]
    with pytest.raises(DataFault, match=message):
        dataset[0]
    for slices in ("paper", 1):
        with pytest.raises(ValueError, match=message):
            load_skmtea(root, "train", slices=slices, check_content=True, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", SLICES)
def test_a_bad_slice(root, tmp_path, name):
    damage, key = SLICES[name]
    damage(root)
    message = rf"scan {BAD}, .*{BAD}.h5: slice 4 of `{key}` has values that are not finite"
    dataset = load_skmtea(root, "train", cache_dir=tmp_path / "cache")
    assert np.isfinite(dataset[3]["kspace"]).all()
    with pytest.raises(DataFault, match=message):
        dataset[4]
    with pytest.raises(ValueError, match=message):
        load_skmtea(root, "train", check_content=True, cache_dir=tmp_path / "cache")
    for streaming in (False, True):
        with pytest.warns(SkippedDataWarning, match="skipped 0 scans and 1 single slices"):
            rows = load_skmtea(root, "train", strict=False, streaming=streaming, cache_dir=tmp_path / "cache")
            keys = [(row["scan_id"], row["slice"]) for row in rows]
        assert len(keys) == 2 * N_SLICES - 1 and (BAD, 4) not in keys


def test_large_values_are_not_taken_for_infinite_ones(root, tmp_path):
    edit(root, "kspace", 3e38, at=slice(None))
    assert np.isfinite(load_skmtea(root, "train", cache_dir=tmp_path / "cache")[0]["kspace"]).all()


def test_a_bad_scan_does_not_move_the_pooled_stride_onto_others(root, tmp_path):
    kspace_file(root).unlink()
    with pytest.warns(SkippedDataWarning, match="skipped 1 scans"):
        rows = load_skmtea(root, "train", slices="paper", strict=False, cache_dir=tmp_path / "cache")
    assert [(row["scan_id"], row["slice"]) for row in rows] == [("MTR_002", 2)]


@pytest.mark.parametrize("content", ["{", '{"scans": []}', '{"images": [{"scan_id": "a"}]}', '{"images": 3}', "[1]"])
def test_foreign_annotations(root, tmp_path, content):
    (root / "annotations/v1.0.0/train.json").write_text(content)
    with pytest.raises(ValueError, match=r"train.json is not a SKM-TEA annotation file"):
        load_skmtea(root, "train", cache_dir=tmp_path / "cache")


def test_a_fault_survives_the_way_between_processes():
    fault = pickle.loads(pickle.dumps(DataFault("MTR_001", "a.h5", "is gone")))
    assert (str(fault), fault.scan_id, fault.file) == ("scan MTR_001, a.h5: is gone", "MTR_001", "a.h5")


def test_check_of_a_good_folder(root):
    reports = list(check_folder(root))
    assert [one.scan_id for one in reports] == ["MTR_001", "MTR_002", "MTR_003", "MTR_004"]
    first = reports[0]
    assert (first.n_coils, first.n_echoes, first.n_labelled, first.faults) == (2, 2, 2, ())
    assert first.masks == ("poisson_4.0x", "poisson_8.0x", "poisson_12.0x", "poisson_16.0x")
    lines = list(report_text(reports))
    assert "6x24x16" in lines[1] and "4.0x 8.0x 12.0x 16.0x" in lines[1]
    assert lines[-1].endswith("4 can be used, 0 cannot")


@pytest.mark.parametrize("name", [name for name in {**WHOLE_SCANS, **CONTENT} if name != "missing mask"])
def test_check_names_what_is_damaged(root, name):
    damage, message = {**WHOLE_SCANS, **CONTENT}[name]
    damage(root)
    first, *others = check_folder(root)
    with pytest.raises(ValueError, match=message):
        raise ValueError(" ".join(first.faults))
    assert not any(one.faults for one in others)
    assert list(report_text([first]))[-1].endswith("0 can be used, 1 cannot")


def test_check_reads_arrays_when_asked(root):
    edit(root, "kspace", np.nan, at=(4, 3, 2, 0, 1))
    assert not next(iter(check_folder(root))).faults
    assert "slice 4 of `kspace`" in next(iter(check_folder(root, read_arrays=True))).faults[0]
