"""The code that goes to the Hub is the package's, needs little, and does what the package does."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

import sgr_diffusers
from sgr_diffusers.hub.code_bundle import SEGMENTATION_PATH, bundle_files, code_files
from tests.helpers.hub_client import BareEnvironment, run_client
from tests.helpers.pipeline_parts import build, call, draw_problem

# sigpy inside of a function that draws masks; diffusers needs huggingface_hub and safetensors
ALLOWED = {"torch", "numpy", "diffusers", "huggingface_hub", "safetensors", "monai", "sigpy"}


@pytest.mark.parametrize("name", bundle_files())
def test_it_is_the_source_but_for_its_imports(name):
    text = bundle_files()[name]
    imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", text, flags=re.MULTILINE)
    roots = {module.split(".")[0] for module in imported if not module.startswith(".")}
    assert {root for root in roots if root not in sys.stdlib_module_names} <= ALLOWED
    siblings = [module[1:] for module in imported if module.startswith(".")]
    assert all(f"{one}.py" in bundle_files() for one in siblings)
    compile(text, name, "exec")
    stem = {"pipeline": "pipeline_sgr_mri", "segmentation_unet": "segmentation"}.get(Path(name).stem)
    stem = stem or Path(name).stem.removeprefix("sgr_")
    originals = list(Path(sgr_diffusers.__file__).parent.rglob(f"{stem}.py"))
    if stem not in ("code_bundle", "registration", "shapes"):  # these are written for the repository
        assert shape_of(text) in [shape_of(path.read_text()) for path in originals]


def shape_of(text):
    """All that is defined, without imports and without what stands in for jaxtyping."""
    body = [node for node in ast.parse(text).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.dump(node) for node in body if getattr(node, "name", "") != "Float"]


def test_a_pipeline_without_segmentation_model_carries_no_code_for_one():
    assert set(code_files(sgr_diffusers.SegmentationUNet)) - set(code_files()) == {SEGMENTATION_PATH}


def test_it_loads_and_gives_the_same_where_the_package_is_not(tmp_path):
    """Only torch, diffusers, monai, numpy and what they require can be imported there."""
    build("unet").save_pretrained(tmp_path / "pipeline")
    problem = draw_problem()
    torch.save(problem, tmp_path / "problem.pt")
    code = """
import torch
torch.set_num_threads(THREADS)
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained("PIPELINE")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("code of a repository ran without the flag")
assert not [name for name in sys.modules if name.startswith("diffusers_modules")]
pipe = DiffusionPipeline.from_pretrained("PIPELINE", trust_remote_code=True)
assert type(pipe).__module__.startswith("diffusers_modules")
problem = torch.load("PROBLEM", weights_only=True)
out = pipe(**problem, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
torch.save({"images": out.images, "segmentations": out.segmentations, "volumes": out.volumes_mm3}, "result.pt")
pipe.save_pretrained("again")
again = DiffusionPipeline.from_pretrained("again", trust_remote_code=True)
other = again(**problem, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
assert torch.equal(other.images, out.images)
estimated = pipe(problem["kspace"], torch.ones(16, 12), num_inference_steps=4)
assert torch.isfinite(estimated.data_residual).all()
missing = ["sgr_diffusers", "jaxtyping", "sigpy", "h5py", "transformers", "accelerate", "matplotlib"]
assert not [name for name in missing if name in sys.modules]
"""
    code = code.replace("PIPELINE", str(tmp_path / "pipeline")).replace("PROBLEM", str(tmp_path / "problem.pt"))
    code = code.replace("THREADS", str(torch.get_num_threads()))  # sums come out the same only then
    run_client(code, tmp_path / "home", path=BareEnvironment(tmp_path / "site-packages"))
    result = torch.load(tmp_path / "home" / "result.pt", weights_only=True)
    expected = call(build("unet"), problem)
    assert torch.equal(result["images"], expected.images)
    assert torch.equal(result["segmentations"], expected.segmentations)
    assert torch.equal(result["volumes"], expected.volumes_mm3)
    again = tmp_path / "home" / "again"
    saved = [path.relative_to(again) for path in again.rglob("*.*")]
    assert saved and all((again / name).read_bytes() == (tmp_path / "pipeline" / name).read_bytes() for name in saved)
