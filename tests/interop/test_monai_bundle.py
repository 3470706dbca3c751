"""The bundle runs by MONAI's own command, as its README says."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.helpers.pages import blocks
from tests.helpers.raw_files import body_image, fft
from tests.helpers.tiny_pipeline import save_tiny_pipeline

BUNDLE = Path(__file__).parents[2] / "pipelines" / "monai_bundle"


def test_it_runs(tmp_path):
    pytest.importorskip("fire", reason="fire is not installed: pip install '.[bundle]'")
    save_tiny_pipeline(tmp_path / "pipeline")
    np.savez(tmp_path / "scan.npz", kspace=fft(body_image(16, 12)[None, None] * [[[[1]], [[1j]]]], (-2, -1)))
    [command] = blocks("pipelines/monai_bundle/docs/README.md", "console")
    _, *arguments = shlex.split(command.replace("\\\n", " "))
    changed = {
        "scan.h5": str(tmp_path / "scan.npz"),
        "bounds": str(tmp_path / "bounds"),
        "general": str(tmp_path / "pipeline"),
        "25": "2",
    }
    arguments = [changed.get(argument, argument) for argument in arguments]
    arguments += ["--settings#target", "none", "--voxel_size_mm", "[4.0, 2.0, 1.0]"]
    done = subprocess.run([sys.executable, *arguments], cwd=BUNDLE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image = nibabel.load(tmp_path / "bounds/unguided_image.nii.gz")
    assert image.header.get_zooms() == (4.0, 2.0, 1.0)
    settings = json.loads((tmp_path / "bounds/settings.json").read_text())
    assert (settings["num_inference_steps"], settings["target"]) == (2, "none")


def test_its_metadata_are_those_of_the_package():
    import sgr_diffusers

    metadata = json.loads((BUNDLE / "configs/metadata.json").read_text())
    assert metadata["version"] == metadata["required_packages_version"]["sgr_diffusers"] == sgr_diffusers.__version__
    required = {"monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright"}
    assert required < set(metadata) and {"inputs", "outputs"} == set(metadata["network_data_format"])
