"""Pipelines saved as repositories: what is written, what is refused, what comes back."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from torch import nn

from sgr_diffusers import SegmentationAdapter, SGRMRIPipeline, create_scheduler
from sgr_diffusers.hub.code_bundle import SEGMENTATION_PATH, bundle_files
from sgr_diffusers.hub.loading import drop_code
from sgr_diffusers.hub.model_index import UnsafeCheckpointError
from tests.helpers.pipeline_parts import BrightOrNever, assert_same, build, build_segmentation_unet, build_unet, call


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build("unet").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected():
    return call(build("unet"))


def test_the_folder_carries_the_code(saved):
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*.py")}
    assert files == set(bundle_files())
    assert not [path for path in saved.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]


def test_with_the_package_its_own_classes_are_used_and_no_flag_is_needed(saved, expected):
    pipe = quiet(SGRMRIPipeline.from_pretrained(saved))
    assert type(pipe) is SGRMRIPipeline
    assert_same(call(pipe), expected, rtol=0, atol=0)


def test_the_general_class_is_left_as_diffusers_made_it(saved):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(saved)


def test_code_of_the_repository_is_not_run_by_our_class(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "changed")
    for name in ("pipeline.py", SEGMENTATION_PATH):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    SGRMRIPipeline.from_pretrained(folder)
    SGRMRIPipeline.from_pretrained(folder, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_saved_again_it_is_the_same(saved, tmp_path):
    SGRMRIPipeline.from_pretrained(saved).save_pretrained(tmp_path)
    names = [path.relative_to(saved) for path in saved.rglob("*.*")]
    assert all((tmp_path / name).read_bytes() == (saved / name).read_bytes() for name in names)


def test_no_path_of_this_machine_is_saved(saved, tmp_path):
    """Where a component was loaded from is in its configuration, until it is saved."""
    pipe = SGRMRIPipeline.from_pretrained(saved)
    assert str(saved) in str(pipe.unet.config)
    pipe.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.rglob("*.json") if str(saved) in path.read_text()]


def test_variants_lie_beside_each_other(tmp_path, expected):
    pipe = build("unet")
    pipe.save_pretrained(tmp_path)
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").exists()
    half = SGRMRIPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert half.unet.dtype == half.segmentation_model.dtype == torch.float16
    assert_same(call(quiet(SGRMRIPipeline.from_pretrained(tmp_path))), expected, rtol=0, atol=0)
    rounded = quiet(SGRMRIPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float32))
    assert not torch.equal(call(rounded).images, expected.images)
    with pytest.raises(ValueError, match="variant=bf16"):
        SGRMRIPipeline.from_pretrained(tmp_path, variant="bf16")


@pytest.mark.parametrize(
    "model", [BrightOrNever(), nn.Conv2d(1, 3, 1), SegmentationAdapter(nn.Conv2d(1, 2, 1), ["one"])]
)
def test_a_segmentation_model_that_cannot_be_saved_is_an_error_before_anything_is_written(tmp_path, model):
    pipe = build(model)
    with pytest.raises(ValueError, match=f"{type(model).__name__} is a plain module"):
        pipe.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists() and pipe.segmentation_model is model
    SGRMRIPipeline(pipe.unet, pipe.scheduler).save_pretrained(tmp_path / "rest")  # as the error says
    again = quiet(SGRMRIPipeline.from_pretrained(tmp_path / "rest", segmentation_model=model.eval()))
    assert_same(call(again), call(build(model.eval())))


def test_any_module_replaces_the_segmentation_model_of_the_repository(saved):
    pipe = SGRMRIPipeline.from_pretrained(saved, segmentation_model=BrightOrNever().eval())
    assert pipe.class_names == ("bright", "never")
    ours = build_segmentation_unet()
    assert SGRMRIPipeline.from_pretrained(saved, segmentation_model=ours).segmentation_model is ours


class HeavierUNet(type(build_segmentation_unet())):
    """A user's own model."""


def test_models_of_users_are_found_in_their_module(tmp_path):
    model = HeavierUNet(class_names=("one", "two"), channels=(4, 8), strides=(2,), num_res_units=1).eval()
    pipe = build(model)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["segmentation_model"] == [HeavierUNet.__module__, "HeavierUNet"]
    assert not (tmp_path / SEGMENTATION_PATH).exists()


class OwnPipeline(SGRMRIPipeline):
    """A user's own pipeline."""


def test_pipelines_of_users_are_left_as_they_are(tmp_path, expected):
    OwnPipeline(**build("unet").components).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "OwnPipeline"
    assert not list(tmp_path.glob("*.py"))
    pipe = quiet(OwnPipeline.from_pretrained(tmp_path))
    assert type(pipe) is OwnPipeline
    assert_same(call(pipe), expected, rtol=0, atol=0)


def test_pickles_are_neither_written_nor_asked_for(saved, tmp_path):
    with pytest.warns(UserWarning, match="`safe_serialization=False` is not followed"):
        build("unet").save_pretrained(tmp_path, safe_serialization=False)
    weights = {path.name for path in tmp_path.glob("*/*") if path.suffix not in (".json", ".py")}
    assert weights == {"diffusion_pytorch_model.safetensors"}
    with pytest.raises(ValueError, match="`use_safetensors` must not be False"):
        SGRMRIPipeline.from_pretrained(saved, use_safetensors=False)


def test_other_pipelines_are_read_as_before(tmp_path):
    DDPMPipeline(build_unet(), create_scheduler("epsilon")).save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is DDPMPipeline


def test_code_is_dropped_from_a_checkpoint_inside_of_the_package(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "bundled")
    drop_code(folder)
    assert not list(folder.rglob("*.py"))
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "SGRMRIPipeline"
    assert type(DiffusionPipeline.from_pretrained(folder)) is SGRMRIPipeline


@pytest.fixture
def sharing(saved, tmp_path):
    """A checkpoint whose prior is that of the checkpoint `first` beside it."""
    shutil.copytree(saved, tmp_path / "first")
    folder = shutil.copytree(saved, tmp_path / "second", ignore=shutil.ignore_patterns("unet"))
    (folder / "unet").mkdir()
    (folder / "unet/shared.json").write_text('{"checkpoint": "first"}')
    return folder


def test_a_component_may_be_that_of_a_checkpoint_beside_it(sharing, expected, tmp_path):
    pipe = quiet(SGRMRIPipeline.from_pretrained(sharing))
    assert_same(call(pipe), expected, rtol=0, atol=0)
    pipe.save_pretrained(tmp_path / "elsewhere/alone")
    alone = quiet(SGRMRIPipeline.from_pretrained(tmp_path / "elsewhere/alone"))
    assert_same(call(alone), expected, rtol=0, atol=0)


def test_a_shared_component_has_the_data_type_that_was_asked_for(sharing):
    dtype = {"unet": torch.bfloat16, "default": torch.float32}
    pipe = SGRMRIPipeline.from_pretrained(sharing, dtype=dtype)
    assert (pipe.unet.dtype, pipe.segmentation_model.dtype) == (torch.bfloat16, torch.float32)


def test_a_given_component_goes_before_a_shared_one(sharing):
    unet = build_unet()
    assert SGRMRIPipeline.from_pretrained(sharing, unet=unet).unet is unet


def test_a_shared_component_whose_checkpoint_is_missing_is_named(sharing, tmp_path):
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(OSError, match="is that of the checkpoint first"):
        SGRMRIPipeline.from_pretrained(sharing)


def test_a_shared_component_may_not_lie_anywhere(sharing):
    for text in ('{"checkpoint": "../first"}', '{"checkpoint": "/tmp"}', '["first"]'):
        (sharing / "unet/shared.json").write_text(text)
        with pytest.raises(UnsafeCheckpointError, match="the name of a folder"):
            SGRMRIPipeline.from_pretrained(sharing)
