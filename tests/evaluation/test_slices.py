"""Which slices are evaluated, and what is refused before anything is computed."""

import json

import h5py
import pytest

from sgr_diffusers.data.scan_files import close_files
from sgr_diffusers.data.selection import PAPER, SliceSelection
from sgr_diffusers.evaluation.slices import choose_data, choose_examples, parse_protocol
from tests.helpers.layout_fixture import write_tiny_skm_tea

RELEVANT = parse_protocol("relevant")


@pytest.fixture
def root(tmp_path):
    yield write_tiny_skm_tea(tmp_path / "data", n_scans=(("test", 2),))
    close_files()


def slices_of(root, protocol, **settings):
    return list(choose_data(root, "test", protocol, (8.0,), **settings).slices.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("relevant", SliceSelection(min_foreground=20)),
        ("paper", PAPER),
        ("all", SliceSelection()),
        ("3", SliceSelection(every=3)),
        ("4:9:2", SliceSelection(every=2, start=4, stop=9)),
        (":9", SliceSelection(stop=9)),
        ("5,3,3", (3, 5)),
    ],
)
def test_protocols(text, expected):
    assert parse_protocol(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "1:2:0", "a", "1,b", "relevant slices"])
def test_bad_protocols(text):
    with pytest.raises(ValueError, match="`slices` must be"):
        parse_protocol(text)


def test_slices_of_the_tiny_scans(root):
    assert slices_of(root, RELEVANT) == [(2, 3), (2, 3)]  # tissue is in slices 2 and 3 of 6
    assert slices_of(root, parse_protocol("all"), n_slices_per_scan=3) == [(1, 3, 5)] * 2
    assert slices_of(root, parse_protocol("all"), n_slices_per_scan=99, max_scans=1) == [tuple(range(6))]
    assert slices_of(root, (1, 5, 77)) == [(1, 5)] * 2


def test_the_papers_protocol_counts_through_all_scans(root):
    pooled = SliceSelection(every=3, min_foreground=1, pooled=True)
    assert slices_of(root, pooled) == [(2,), (3,)]  # candidates 2, 3 | 2, 3; the first and the fourth
    assert slices_of(root, PAPER, max_scans=1) == [(2,)]


def test_no_slice_is_an_error(root):
    for protocol in (SliceSelection(min_foreground=10**6), (66,)):
        with pytest.raises(ValueError, match="no slice is left"):
            slices_of(root, protocol)
    with pytest.raises(ValueError, match="`finding_slices` must be 0 or larger, got -1"):
        slices_of(root, RELEVANT, n_finding_slices=-1)
    with pytest.raises(ValueError, match="`max_scans` must be at least 1"):
        slices_of(root, RELEVANT, max_scans=0)


def test_a_missing_mask_is_found_before_anything_is_computed(root):
    with pytest.raises(ValueError, match=r"MTR_001.*poisson_5.0x"):
        choose_data(root, "test", RELEVANT, (8.0, 5.0))
    close_files()
    with h5py.File(root / "files_recon_calib-24/MTR_002.h5", "a") as file:
        del file["masks/poisson_8.0x"]
    with pytest.raises(ValueError, match=r"MTR_002.*poisson_8.0x"):
        slices_of(root, RELEVANT)


def test_a_missing_segmentation_is_found_unless_it_is_not_needed(root):
    (root / "segmentation_masks/raw-data-track/MTR_002.nii.gz").unlink()
    with pytest.raises(ValueError, match="MTR_002"):
        slices_of(root, parse_protocol("all"))
    assert slices_of(root, parse_protocol("2"), with_labels=False) == [(0, 2, 4)] * 2


def test_the_data_is_recognised(root):
    assert choose_data(root, "test", RELEVANT, (8.0,)).name == "data in the SKM-TEA layout"  # too small for SKM-TEA
    path = root / "annotations/v1.0.0/test.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "info": {"description": "my knees"}}))
    assert choose_data(root, "test", RELEVANT, (8.0,)).name == "my knees"


def test_the_fingerprint_follows_annotations_and_files(root):
    before = choose_data(root, "test", RELEVANT, (8.0,)).fingerprint
    assert before == choose_data(root, "test", RELEVANT, (8.0,)).fingerprint
    path = root / "annotations/v1.0.0/test.json"
    path.write_text(path.read_text().replace("2.5", "2.6", 1))
    after = choose_data(root, "test", RELEVANT, (8.0,)).fingerprint
    assert [before[scan] == after[scan] for scan in before] == [False, True]


def test_examples_show_several_scans(root):
    data = choose_data(root, "test", RELEVANT, (8.0,))
    assert {scan for scan, _ in choose_examples(data)} == {"MTR_001", "MTR_002"}
    assert choose_examples(data, with_labels=False) == [("MTR_001", 3), ("MTR_002", 3)]
