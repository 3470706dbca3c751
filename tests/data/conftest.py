import pytest

from sgr_diffusers.data.load import load_skmtea
from sgr_diffusers.data.scan_files import close_files
from tests.helpers.layout_fixture import write_tiny_skm_tea


@pytest.fixture
def root(tmp_path):
    """A tiny data set in the SKM-TEA layout."""
    yield write_tiny_skm_tea(tmp_path / "data")
    close_files()


@pytest.fixture
def load(root, tmp_path):
    """Load the tiny data set, or another, with an index of its own."""

    def load(split="train", source=root, **arguments):
        return load_skmtea(source, split, cache_dir=tmp_path / "cache", **arguments)

    return load
