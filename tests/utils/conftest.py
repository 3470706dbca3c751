import os
import shutil
from pathlib import Path

import pytest

from sgr_diffusers import utils


@pytest.fixture(scope="session")
def light_environment(tmp_path_factory):
    """Environment of processes that import `utils` alone: the whole package takes seconds to import."""
    folder = tmp_path_factory.mktemp("light")
    shutil.copytree(Path(utils.__file__).parent, folder / "utils")
    return {**os.environ, "PYTHONPATH": str(folder)}
