"""The documentation builds without a warning."""

import os
import subprocess
import sys

import pytest

from tests.helpers.pages import ROOT

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.mark.timeout(300)
def test_it_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "RUN_TUTORIALS": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text()
    assert "From k-space to bounds" in (tmp_path / "tutorials" / "bounds" / "index.html").read_text()
    assert "num_inference_steps" in reference and "guidance_strength" in reference
