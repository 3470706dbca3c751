"""Hostile repositories: refused before anything is imported, built or unpickled."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgr_diffusers import SegmentationUNet, SGRMRIPipeline
from sgr_diffusers.hub.model_index import UnsafeCheckpointError, read_model_index
from tests.helpers.pipeline_parts import build


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build("unet").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "hostile")


def change(folder, **entries):
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = {
    "function of a module": {"segmentation_model": ["os", "system"]},
    "class of a module": {"segmentation_model": ["subprocess", "Popen"]},
    "module not imported yet": {"segmentation_model": ["antigravity", "SegmentationUNet"]},
    "dotted module": {"segmentation_model": ["torch.nn", "Linear"]},
    "dotted module not imported yet": {"segmentation_model": ["http.server.x", "SegmentationUNet"]},
    "path": {"segmentation_model": ["../../evil", "SegmentationUNet"]},
    "absolute path": {"segmentation_model": ["/tmp/evil", "SegmentationUNet"]},
    "windows path": {"segmentation_model": ["..\\evil", "SegmentationUNet"]},
    "hidden class": {"segmentation_model": ["segmentation_unet", "__import__('os')"]},
    "other class of the same file": {"segmentation_model": ["sgr_diffusers", "SenseOperator"]},
    "pipeline module of diffusers": {"segmentation_model": ["stable_diffusion", "StableDiffusionSafetyChecker"]},
    "unet of another library": {"unet": ["builtins", "eval"]},
    "scheduler that is a model": {"scheduler": ["diffusers", "UNet2DModel"]},
    "unet that is a scheduler": {"unet": ["diffusers", "DDIMScheduler"]},
    "unknown class": {"unet": ["diffusers", "NoSuchModel"]},
    "nothing": {"unet": [None, None]},
    "three parts": {"unet": ["diffusers", "UNet2DModel", "more"]},
    "number": {"unet": 3},
    "objects": {"unet": [{"a": 1}, {"b": 2}]},
    "another component": {"evil": ["os", "system"]},
    "foreign pipeline code": {"_class_name": ["os", "SGRMRIPipeline"]},
    "foreign pipeline path": {"_class_name": ["../pipeline", "SGRMRIPipeline"]},
    "pipeline class that is no name": {"_class_name": ["pipeline", "SGRMRIPipeline; import os"]},
    "pipeline class that is an object": {"_class_name": {"a": 1}},
    "no pipeline class": {"_class_name": None},
    "deep": {"trained_with": nested(50)},
    "long text": {"_class_name": "A" * 50_000},
    "long name": {"unet": ["diffusers", "U" * 200]},
    "many entries": {"trained_with": {"prediction_type": "epsilon", "alphas_cumprod": [0.5] * 30_000}},
    "more levels than can be": {"trained_with": {"prediction_type": "epsilon", "alphas_cumprod": [0.5] * 200}},
    "levels that are texts": {"trained_with": {"prediction_type": "epsilon", "alphas_cumprod": ["a"]}},
    "trained with a list": {"trained_with": ["os", "system"]},
    "trained with a text": {"trained_with": "v_prediction"},
    "quantile": {"scale_quantile": 2.0},
    "quantile as text": {"scale_quantile": "0.99"},
    "correction": {"scale_correction": -1.0},
    "correction that is huge": {"scale_correction": 1e300},
    "strength": {"guidance_strength": -0.005},
    "guidance from nowhere": {"guidance_from": 0.0},
    "guidance before the start": {"guidance_from": 1.5},
    "guidance from null": {"guidance_from": None},
    "strength as text": {"guidance_strength": "0.005"},
    "consistency": {"consistency": "dps"},
    "denoising_variance": {"denoising_variance": {"noise_to_signal": [0.1, 0.1], "error": [0.01, 0.02]}},
    "is_equivariant": {"is_equivariant": "yes"},
    "no noise": {"noise_of_mean": 0.0},
    "later timestep": {"timestep_of_mean": 1.5},
    "no deviation": {"deviation_of_mean": 0.0},
    "iterations": {"cg_iterations": 10**9},
    "iterations that are half": {"cg_iterations": 2.5},
    "iterations that are true": {"cg_iterations": True},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_model_index_is_refused(folder, name, monkeypatch):
    change(folder, **HOSTILE[name])
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("something was unpickled"))
    before = set(sys.modules)
    with pytest.raises(UnsafeCheckpointError) as refusal:
        SGRMRIPipeline.from_pretrained(folder)
    assert len(str(refusal.value)) < 700
    new = {module for module in set(sys.modules) - before if not module.startswith("diffusers.")}
    assert not new  # diffusers imports its own modules when asked for a name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "cannot be read as JSON"),
        ('{"a": ' * 100_000, "cannot be read as JSON"),
        ("[1, 2]", "must hold a JSON object"),
        ("not json", "cannot be read as JSON"),
        ('{"_class_name": "SGRMRIPipeline", "scale_quantile": NaN}', "NaN is no number"),
        ('{"cg_iterations": ' + "9" * 10_000 + "}", "cannot be read as JSON"),
        ('{"a": "' + "x" * 2_000_000 + '"}', "at most 1000000 bytes"),
    ],
)
def test_files_that_are_no_model_index(folder, text, message):
    (folder / "model_index.json").write_text(text)
    with pytest.raises(UnsafeCheckpointError, match=message):
        SGRMRIPipeline.from_pretrained(folder)


def test_not_utf_8(folder):
    (folder / "model_index.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UnsafeCheckpointError, match="cannot be read"):
        SGRMRIPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("component", "file", "entry", "value"),
    [
        ("unet", "config.json", "layers_per_block", 3000),
        ("unet", "config.json", "block_out_channels", [100_000, 8]),
        ("unet", "config.json", "block_out_channels", [8] * 1000),
        ("segmentation_model", "config.json", "num_res_units", 3000),
        ("unet", "config.json", "block_out_channels", [10**12, 10**12]),
        ("segmentation_model", "config.json", "channels", [10**9, 8]),
        ("segmentation_model", "config.json", "class_names", nested(100)),
        ("scheduler", "scheduler_config.json", "num_train_timesteps", 10**10),
        ("unet", "config.json", "freq_shift", "x"),
        ("scheduler", "scheduler_config.json", "beta_start", "0.1"),
    ],
)
def test_components_without_end_or_number_are_refused(folder, component, file, entry, value):
    path = folder / component / file
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    with pytest.raises(UnsafeCheckpointError, match=f"{component}/{file}"):
        SGRMRIPipeline.from_pretrained(folder)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("component", ["unet", "segmentation_model"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused_and_not_opened(folder, tmp_path, component, name):
    (folder / component / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "exploded"), folder / component / name)
    with pytest.raises(UnsafeCheckpointError, match=f"`{component}` has weights only as {name}"):
        SGRMRIPipeline.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["shard.bin", "shard.gguf", "../shard.safetensors", 3])
def test_shards_that_are_no_safetensors_are_refused_and_not_opened(folder, tmp_path, name):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    build("unet").save_pretrained(folder, max_shard_size="3KB")
    SGRMRIPipeline.from_pretrained(folder)  # in shards, but sound
    file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["conv_in.weight"] = name
    file.write_text(json.dumps(index))
    torch.save(Bomb(tmp_path / "exploded"), folder / "unet" / str(name))
    with pytest.raises(UnsafeCheckpointError, match=r"index.json must name files beside it that end in .safetensors"):
        SGRMRIPipeline.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


def test_shards_of_a_variant(folder, tmp_path):
    """diffusers calls their index ....safetensors.index.fp16.json."""
    build("unet").to(torch.float16).save_pretrained(folder, variant="fp16", max_shard_size="3KB")
    SGRMRIPipeline.from_pretrained(folder, variant="fp16")  # though its `total_size` is no count of channels
    file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index = json.loads(file.read_text())
    index["weight_map"]["conv_in.weight"] = "shard.bin"
    file.write_text(json.dumps(index))
    torch.save(Bomb(tmp_path / "exploded"), folder / "unet" / "shard.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"index.fp16.json must name files beside it that end in .safeten"):
        SGRMRIPipeline.from_pretrained(folder, variant="fp16")
    assert not (tmp_path / "exploded").exists()


def test_a_variant_that_is_a_pickle_beside_safetensors_is_refused(folder, tmp_path):
    for component in ("unet", "segmentation_model"):
        torch.save(Bomb(tmp_path / "exploded"), folder / component / "diffusion_pytorch_model.fp16.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"has weights only as diffusion_pytorch_model.fp16.bin"):
        SGRMRIPipeline.from_pretrained(folder, variant="fp16")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("component", ["unet", "segmentation_model"])
def test_files_that_lack_a_weight_are_refused(folder, component):
    file = folder / component / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[1]
    save_file({key: value for key, value in weights.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"`{component}` has no values for 1 of its weights, such as {name}"):
        SGRMRIPipeline.from_pretrained(folder)


def test_a_pickle_beside_safetensors_is_not_opened(folder, tmp_path):
    torch.save(Bomb(tmp_path / "exploded"), folder / "unet" / "diffusion_pytorch_model.bin")
    assert SGRMRIPipeline.from_pretrained(folder).unet is not None
    assert not (tmp_path / "exploded").exists()


def test_the_segmentation_model_alone_is_not_unpickled_either(folder, tmp_path):
    component = folder / "segmentation_model"
    (component / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "exploded"), component / "diffusion_pytorch_model.bin")
    for more in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match="safetensors"):
            SegmentationUNet.from_pretrained(component, **more)
    assert not (tmp_path / "exploded").exists()


def test_code_of_a_component_runs_only_behind_the_flag(folder, tmp_path):
    change(folder, segmentation_model=["my_network", "MyNetwork"])
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom sgr_diffusers import SegmentationUNet\n"
    (folder / "segmentation_model" / "my_network.py").write_text(code + "class MyNetwork(SegmentationUNet): ...\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        SGRMRIPipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()
    pipe = SGRMRIPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(pipe.segmentation_model).__name__ == "MyNetwork" and (tmp_path / "ran").exists()


def test_settings_that_a_later_version_may_add_are_let_through(folder):
    change(folder, note="text", threshold=0.5, trained_with=None, _diffusers_version="0.99.0")
    assert read_model_index(folder / "model_index.json")["note"] == "text"


def test_classes_of_modules_that_were_imported_are_found(folder):
    change(folder, segmentation_model=["sgr_diffusers.models.segmentation", "SegmentationUNet"])
    assert SGRMRIPipeline.from_pretrained(folder).class_names == ("one", "two")
