"""Slices that are chosen from a split: by number, by what they show, by the protocol of the paper."""

import nibabel
import numpy as np
import pytest

from sgr_diffusers.data.load import load_skmtea
from sgr_diffusers.data.selection import PAPER, SliceSelection, parse_selection
from tests.helpers.layout_fixture import write_look_alike


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5] * 2),
        ("all", [0, 1, 2, 3, 4, 5] * 2),
        (4, [0, 4] * 2),
        (slice(1, None, 2), [1, 3, 5] * 2),
        (range(2, 4), [2, 3] * 2),
        (SliceSelection(has_class=("meniscus",)), [2, 3] * 2),
        (SliceSelection(min_foreground=121), []),
        (SliceSelection(min_foreground=120, every=2), [2] * 2),
        (SliceSelection(every=4, pooled=True), [0, 4, 2]),
        (SliceSelection(every=5, pooled=True), [0, 5, 4]),
        ("paper", [2]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_slices_are_selected(load, slices, expected, streaming):
    dataset = load(slices=slices, streaming=streaming).select_columns(["slice"])
    assert [row["slice"] for row in dataset] == expected


def test_the_protocol_of_the_paper():
    assert parse_selection("paper") == PAPER == SliceSelection(every=8, min_foreground=82, pooled=True)
    counts = np.zeros((5, 7), np.int64)
    counts[:, 1] = [81, 82, 40, 0, 200]
    counts[2, 6] = 42
    assert PAPER.candidates(5, counts).tolist() == [1, 2, 4]


def test_the_protocol_of_the_paper_gives_869_slices_of_a_look_alike(tmp_path):
    """36 scans, as in SKM-TEA's test split, with as many slices of 82 foreground pixels and more as it should have."""
    root, rng = write_look_alike(tmp_path / "data", {"test": 36}, slice_size=(12, 10)), np.random.default_rng(0)
    counts = 150 + rng.multinomial(6947 - 36 * 150, [1 / 36] * 36)
    pooled = []
    for number, count in enumerate(counts, start=1):
        labels = np.zeros((512, 12, 10), np.uint8)
        for place, index in enumerate(rng.permutation(512)[: count + 40]):  # 40 of them show too little
            n_pixels = rng.integers(82, 121) if place < count else rng.integers(1, 82)
            labels[index].flat[:n_pixels] = rng.integers(1, 7, n_pixels)
        path = root / "segmentation_masks/raw-data-track" / f"MTR_{number:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), path)
        pooled += [(f"MTR_{number:03d}", n) for n in range(512) if (labels[n] > 0).sum() >= 82]
    dataset = load_skmtea(root, "test", slices="paper", cache_dir=tmp_path / "cache")
    assert list(zip(dataset["scan_id"][:], dataset["slice"][:], strict=True)) == pooled[::8]
    assert len(dataset) == 869


@pytest.mark.parametrize("wrong", ["every", 0, True, slice(5, 0, -1)])
def test_a_selection_that_is_none(wrong):
    with pytest.raises(ValueError, match="`slices` must be"):
        parse_selection(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"every": 0}, "`every`"), ({"min_foreground": -1}, "`min_foreground`")]
)
def test_a_selection_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        SliceSelection(**arguments)
