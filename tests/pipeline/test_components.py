"""A pipeline as a set of components: saved, loaded, shared, moved and exchanged."""

import json

import pytest
import torch
from torch import nn

from sgr_diffusers import SGRMRIPipeline
from tests.helpers.pipeline_parts import assert_same, build, build_segmentation_unet, call

# --- what comes out -------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    numbers = {"cg_iterations": 2, "guidance_strength": 0.5, "guidance_from": 0.3, "consistency": "noise_aware"}
    pipe = build("unet", scale_quantile=0.95, scale_correction=1.1, **numbers)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "SGRMRIPipeline"]
    assert index["segmentation_model"] == ["segmentation_unet", "SegmentationUNet"]
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert (tmp_path / "segmentation_model" / "diffusion_pytorch_model.safetensors").exists()
    loaded = SGRMRIPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is SGRMRIPipeline
    assert (loaded.config.scale_quantile, loaded.config.scale_correction) == (0.95, 1.1)
    own = build("unet", scale_quantile=0.95, scale_correction=1.1, guidance_from=0.3)
    settings = {"guidance_scale": 100.0, "consistency": "noise_aware"}
    assert_same(call(loaded), call(own, **settings), rtol=1e-5, atol=1e-5)
    assert_same(call(loaded, consistency="cg"), call(own, cg_iterations=2, guidance_scale=100.0), rtol=1e-5, atol=1e-5)
    assert loaded.class_names == ("one", "two")
    assert_same(call(loaded), call(pipe), rtol=0, atol=0)


def test_save_and_load_in_half_precision(tmp_path):
    build("unet").save_pretrained(tmp_path)
    loaded = SGRMRIPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == loaded.segmentation_model.dtype == torch.bfloat16
    assert torch.isfinite(torch.view_as_real(call(loaded).images)).all()


def test_segmentation_model_is_optional(tmp_path):
    pipe = build(None)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["segmentation_model"] == [None, None]
    loaded = SGRMRIPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.segmentation_model is None and loaded.class_names is None
    out = call(loaded, target="none", num_samples=2)
    assert out.segmentations is None and out.volumes_mm3 is None and out.classes == ("all",)
    assert torch.equal(out.images, call(pipe, target="none", num_samples=2).images)
    assert torch.equal(out.images, call(build(), target="none", num_samples=2).images)

    without = SGRMRIPipeline.from_pretrained(tmp_path, segmentation_model=None)
    assert without.segmentation_model is None


def test_a_segmentation_model_registered_later_is_saved(tmp_path):
    pipe = build(None)
    pipe.register_modules(segmentation_model=build_segmentation_unet())
    pipe.save_pretrained(tmp_path)
    loaded = SGRMRIPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert_same(call(loaded), call(build("unet")), rtol=0, atol=0)


def test_components_are_shared():
    pipe = build("unet")
    other = SGRMRIPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert other.unet is pipe.unet and other.segmentation_model is pipe.segmentation_model
    assert_same(call(other), call(pipe), rtol=0, atol=0)
    assert set(pipe.components) == {"unet", "scheduler", "segmentation_model"}


@pytest.mark.parametrize("segmentation_model", ["bright", "unet", None])
def test_a_pipeline_made_from_another_keeps_every_component_and_setting(segmentation_model):
    pipe = build(segmentation_model, cg_iterations=3)
    other = SGRMRIPipeline.from_pipe(pipe)
    assert all(other.components[name] is component for name, component in pipe.components.items())
    assert other.config.cg_iterations == 3


@pytest.mark.parametrize("segmentation_model", ["bright", "unet", None])
def test_moving_devices_and_types(segmentation_model):
    pipe = build(segmentation_model)
    model = pipe.segmentation_model
    assert pipe.to("cpu") is pipe and pipe.to(torch.float32).dtype == torch.float32
    assert pipe.segmentation_model is model and pipe.device == torch.device("cpu")


def test_a_plain_module_moves_along():
    model = nn.Conv2d(1, 3, 3, padding=1)
    pipe = build(model).to(torch.bfloat16)
    assert pipe.segmentation_model is model and model.weight.dtype == torch.bfloat16
    out = call(pipe)
    assert out.classes == ("class_1", "class_2") and torch.isfinite(torch.view_as_real(out.images)).all()
