import shutil

import pytest

from sgr_diffusers.pretrained import PRETRAINED


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled checkpoint."""
    return shutil.copytree(PRETRAINED, tmp_path / "pipeline")
