"""Malformed arguments, components and checkpoints of the pipeline: each is refused with the essential words.

What is wrong in range or shape alone is in `test_inputs.py`, files of raw data in `tests/io/test_malformed_files.py`, and
the command line in `tests/cli/test_malformed_commands.py`.
"""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from sgr_diffusers import SegmentationGuidance, SGRMRIPipeline, create_scheduler
from tests.helpers.pipeline_parts import (
    SIZE,
    BrightOrNever,
    FailingUNet,
    build,
    build_segmentation_unet,
    build_unet,
    call,
    draw_problem,
    seeded,
)

pytestmark = pytest.mark.usefixtures("unchecked_types")
NAN, INF = float("nan"), float("inf")
PROBLEM = draw_problem()
KSPACE, MASK, MAPS = PROBLEM["kspace"], PROBLEM["mask"], PROBLEM["coil_maps"]
PLAIN = {"target": "none"}
MAPS_ESTIMATED = {"coil_maps": None}

# ruff: noqa: E501 - the tables below have one line a case
# name -> arguments of the call, essential words of the message
CALLS = {
    "steps of text": ({"num_inference_steps": "4"}, "`num_inference_steps` must be a whole number .*got '4'"),
    "maps and how to estimate them": ({"kernel_width": 3}, "`kernel_width` .*but `coil_maps` is given"),
    "steps NaN": ({"num_inference_steps": NAN}, "`num_inference_steps` must be a whole number .*got nan"),
    "steps true": ({"num_inference_steps": True}, "`num_inference_steps` must be a whole number .*got True"),
    "no eta": ({"eta": None}, "`eta` must be from 0 .*got None"),
    "eta of text": ({"eta": "1"}, "`eta` must be from 0 .*got '1'"),
    "complex eta": ({"eta": 1j}, "`eta` must be .*got 1j"),
    "iterations without end": ({"cg_iterations": 10**9}, "`cg_iterations` must be a whole number from 0 to 1000, got 1000000000"),
    "samples without end": ({"num_samples": 10**9, **PLAIN}, "`num_samples` must be a whole number from 1 to 10000"),
    "target of a list": ({"target": ["upper"]}, "`target` must be one of"),
    "class 1.5": ({"classes": 1.5}, "`classes` must be a name, a label number or a list of them, got 1.5"),
    "classes in a dictionary": ({"classes": {"bright": 1}}, "`classes` must be a name, a label number or a list"),
    "classes in a list of lists": ({"classes": [[1]]}, r"`classes` must name classes .*got \[1\]"),
    "one voxel length": ({"voxel_size_mm": 1.0}, "`voxel_size_mm` must be three positive edge lengths .*got 1.0"),
    "voxel of text": ({"voxel_size_mm": "abc"}, "`voxel_size_mm` must be three positive .*got 'abc'"),
    "voxel NaN": ({"voxel_size_mm": (1, 1, NAN)}, "`voxel_size_mm` must be three positive .*nan"),
    "voxel of 1e300": ({"voxel_size_mm": (1, 1, 1e300)}, "`voxel_size_mm` must be three positive .*1e[+]300"),
    "a seed": ({"generator": 0}, r"`generator` must be a torch.Generator.*got int.*manual_seed\(seed\)"),
    "seeds": ({"generator": [0, 1]}, "`generator` must be a torch.Generator, or a list .*got int"),
    "a generator of numpy": ({"generator": np.random.default_rng(0)}, "`generator` must be a torch.Generator"),
    "a tuple of generators": ({"generator": (seeded(), seeded())}, "`generator` must be .* a list .*got tuple"),
    "latents in a list": ({"latents": [1.0]}, r"`latents` must be a dense torch tensor .*\(2, 2, 16, 12\), got list"),
    "latents of numpy": ({"latents": np.zeros((2, 2, *SIZE))}, "`latents` must be a dense torch tensor .*got ndarray"),
    "sparse latents": ({"latents": torch.zeros(2, 2, *SIZE).to_sparse()}, "`latents` must be a dense torch tensor"),
    "noise of text": ({"noise_std": "low"}, "`noise_std` must be"),
    "guidance of text": ({"guidance": "x"}, "`guidance` must be a `sgr_diffusers.Guidance`.*got str"),
    "guidance class": ({"guidance": SegmentationGuidance}, "`guidance` must be a `sgr_diffusers.Guidance`"),
    "timesteps of text": ({"timesteps": "abc"}, "`timesteps` must fall .*got 'abc'"),
    "one timestep": ({"timesteps": 5}, "`timesteps` must fall .*got 5"),
    "timesteps NaN": ({"timesteps": [NAN]}, "`timesteps` must fall"),
    "callback of text": ({"callback_on_step_end": "x"}, "`callback_on_step_end` must be a function .*got str"),
    "callback tensors of text": ({"callback_on_step_end_tensor_inputs": "latents"}, "`callback_on_step_end_tensor_inputs` must be a list .*got 'latents'"),
    "callback returns text": ({"callback_on_step_end": lambda *_: "x"}, "`callback_on_step_end` must return None or a dictionary .*got str"),
    "callback returns NaN": ({"callback_on_step_end": lambda pipe, i, t, x: {"latents": NAN * x["latents"]}}, "`callback_on_step_end` must return finite `latents`"),
    "callback returns one image": ({"callback_on_step_end": lambda pipe, i, t, x: {"latents": x["latents"][:1]}}, r"`callback_on_step_end` must return finite `latents` of shape \(8, 2, 16, 12\), got \(1, 2"),
    "no k-space": ({"kspace": None}, "`kspace` must be a dense torch tensor or numpy array .*got NoneType"),
    "k-space of lists": ({"kspace": KSPACE.tolist()}, "`kspace` must be .*got a list with list"),
    "k-space of objects": ({"kspace": KSPACE.numpy().astype(object)}, "`kspace` must be .*got ndarray of object"),
    "sparse k-space": ({"kspace": KSPACE.to_sparse()}, "`kspace` must be a dense .*got a tensor that is sparse"),
    "k-space without values": ({"kspace": torch.empty_like(KSPACE, device="meta")}, "`kspace` must be a dense .*without values"),
    "k-space of 1e-38": ({"kspace": 1e-38 * KSPACE}, "`kspace` must have the largest magnitude of each slice between 1e-12 and 1e[+]12, got .*e-38 in slice 0.*power of ten"),
    "k-space of 1e30": ({"kspace": 1e30 * KSPACE}, "`kspace` must have the largest magnitude"),
    "k-space beyond single precision": ({"kspace": 1e300 * KSPACE.to(torch.complex128)}, "`kspace` must be finite"),
    "mask of text": ({"mask": np.array([["a"]])}, "`mask` must be .*got ndarray of <U1"),
    "maps times 1e30": ({"coil_maps": 1e30 * MAPS}, "`coil_maps` must have the largest root sum of squares .*usually 1, .*between 0.001 and 1000, got 1e[+]30"),
    "maps times 1e-10": ({"coil_maps": 1e-10 * MAPS}, "`coil_maps` must have the largest root sum of squares"),
    "maps of text": ({"coil_maps": "x"}, "`coil_maps` must be .*got str"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_malformed_calls(name):
    change, words = CALLS[name]
    scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample=False) if "timesteps" in change else None
    pipe = build(unet=None if name.startswith("callback returns") else build_unet(FailingUNet), scheduler=scheduler)
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        call(
            pipe, {**PROBLEM, **change}, **({"num_inference_steps": 4} if "num_inference_steps" not in change else {})
        )


@pytest.mark.parametrize("dtype", [">c8", "c16", np.clongdouble])
def test_arrays_of_every_byte_order_and_length_are_taken(dtype):
    arrays = {"kspace": KSPACE.numpy().astype(dtype), "mask": MASK.numpy().astype(">u2"), "coil_maps": MAPS}
    assert torch.equal(call(build(), arrays).images, call(build()).images)


class Returns(BrightOrNever):
    """Returns a function of its logits, and has other attributes."""

    def __init__(self, function=lambda logits: logits, **attributes):
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, magnitude):
        return self.function(super().forward(magnitude))


def fill(network, value):
    with torch.no_grad():
        next(iter(network.parameters())).fill_(value)
    return network


def made_in_inference_mode():
    with torch.inference_mode():
        return build("unet")


# name -> function that makes a pipeline, essential words of the message
PIPELINES = {
    "NaN weights": (lambda: build(unet=fill(build_unet(), NAN)), "`unet` returned NaN or infinity: its weights are not finite, such as those of conv_in.weight"),
    "infinite weights": (lambda: build(unet=fill(build_unet(), INF)), "`unet` returned NaN or infinity: its weights are not finite"),
    "weights of 1e38": (lambda: build(unet=fill(build_unet(), 1e38)), "`unet` returned NaN or infinity: its weights are finite, so it overflows in torch.float32"),
    "NaN segmentation": (lambda: build(fill(build_segmentation_unet(), NAN)), "`segmentation_model` returned NaN or infinity: its weights are not finite"),
    "NaN logits": (lambda: build(Returns(lambda logits: NAN * logits)), "`segmentation_model` returned NaN or infinity"),
    "complex logits": (lambda: build(Returns(lambda logits: logits + 0j)), "`segmentation_model` must return a tensor of real logits, got torch.complex64"),
    "logits in a dictionary": (lambda: build(Returns(lambda logits: {"logits": logits})), "`segmentation_model` must return a tensor .*got dict"),
    "a number for names": (lambda: build(Returns(class_names=5)), "`segmentation_model.class_names` must be a list of different names, got 5"),
    "names twice": (lambda: build(Returns(class_names=("a", "a"))), "`segmentation_model.class_names` must be .*different"),
    "a multiple of 0": (lambda: build(Returns(size_multiple=0)), "`segmentation_model.size_multiple` must be a whole number from 1 to 4096, got 0"),
    "a multiple of text": (lambda: build(Returns(size_multiple="x")), "`segmentation_model.size_multiple` must be .*got 'x'"),
    "another prior": (lambda: build(unet=nn.Identity()), "`unet` must be a UNet2DModel of diffusers, got Identity"),
    "weights of inference mode": (made_in_inference_mode, "`unet` was made in `torch.inference_mode`"),
    "no scheduler": (lambda: SGRMRIPipeline(build_unet(), None), "`scheduler` is needed to reconstruct, but it is None"),
    "scheduler of text": (lambda: SGRMRIPipeline(build_unet(), "ddim"), "`scheduler` must be a SchedulerMixin or None, got str"),
    "prior of text": (lambda: SGRMRIPipeline("unet", create_scheduler("v_prediction")), "`unet` must be a Module or None, got str"),
    "quantile NaN": (lambda: build(scale_quantile=NAN), "`scale_quantile` must be a number above 0 and up to 1, got nan"),
    "correction of text": (lambda: build(scale_correction="x"), "`scale_correction` must be a number above 0"),
    "strength NaN": (lambda: build(guidance_strength=NAN), "`guidance_strength` must be a number above 0"),
    "no table of errors": (lambda: build(denoising_variance={"x": 1}), "`denoising_variance` must hold the lists `noise_to_signal`"),
    "noise of another prior": (lambda: build(trained_with={"x": 1}), "`trained_with` must hold `prediction_type`"),
    "strength of guidance": (lambda: SegmentationGuidance(strength="x"), "`strength` must be 0 or larger, got 'x'"),
    "window of guidance": (lambda: SegmentationGuidance(start="x"), "`start` and `stop` must be shares .*got 'x' and 1.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_malformed_pipelines(name):
    make, words = PIPELINES[name]
    with pytest.raises((ValueError, TypeError), match=words):
        call(make(), **({} if "no scheduler" not in name else PLAIN))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build("unet").save_pretrained(folder)
    return folder


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def edit(name, **changes):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return change


def rewrite(function):
    def change(folder):
        save_file(function(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})

    return change


# name -> function that spoils the folder of a pipeline, essential words of the message
FOLDERS = {
    "negative layers": (edit("unet/config.json", layers_per_block=-5), "unet/config.json must have no layers_per_block below 1, got -5"),
    "layers of text": (edit("unet/config.json", layers_per_block="x"), "`layers_per_block` of unet/config.json must be like 2, got 'x'"),
    "other channels": (edit("unet/config.json", in_channels=3), "cannot be loaded: .*conv_in.weight"),
    "unknown blocks": (edit("unet/config.json", down_block_types=["X", "Y"]), "cannot be loaded: X does not exist"),
    "no groups": (edit("unet/config.json", norm_num_groups=0), "cannot be loaded: "),
    "weights that are left over": (rewrite(lambda weights: {**weights, "more": torch.ones(1)}), "`unet` has .* weights by its config.json, but its files hold .*such as more"),
    "other weights": (rewrite(lambda weights: {f"model.{key}": value for key, value in weights.items()}), "`unet` has no values for"),
    "NaN weights": (rewrite(lambda weights: {key: NAN * value for key, value in weights.items()}), "`unet` returned NaN or infinity: its weights are not finite"),
    "half of the weights": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000]), WEIGHTS),
    "no training steps": (edit("scheduler/scheduler_config.json", num_train_timesteps=0), "scheduler/scheduler_config.json must have no num_train_timesteps below 1, got 0"),
    "a list for a configuration": (lambda folder: (folder / "unet/config.json").write_text("[]"), "unet/config.json must hold a JSON object, got list"),
    "late steps": (edit("scheduler/scheduler_config.json", steps_offset=5000), "`scheduler` DDIMScheduler visits timesteps outside of the 1000"),
    "steps of text": (edit("scheduler/scheduler_config.json", steps_offset="x"), "`steps_offset` of scheduler/scheduler_config.json must be like 0, got 'x'"),
    "unknown spacing": (edit("scheduler/scheduler_config.json", timestep_spacing="x"), "`scheduler` DDIMScheduler cannot make these steps"),
    "strides of 0": (edit("segmentation_model/config.json", strides=[0]), "segmentation_model/config.json must have no strides below 1"),
    "names of numbers": (edit("segmentation_model/config.json", class_names=[1, 2]), "`class_names` must be one or more different names"),
    "names in a text": (edit("segmentation_model/config.json", class_names="ab"), "`class_names` must be one or more different names"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_malformed_folders(tmp_path, saved, name):
    change, words = FOLDERS[name]
    for path in saved.glob("*/*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(saved)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / "model_index.json").write_bytes((saved / "model_index.json").read_bytes())
    change(tmp_path)
    with pytest.raises((ValueError, OSError)) as caught:
        call(SGRMRIPipeline.from_pretrained(tmp_path))
    assert re.search(words, str(caught.value)), str(caught.value)


def test_a_path_that_is_none():
    with pytest.raises(TypeError, match="`pretrained_model_name_or_path` must be a folder or a name, got NoneType"):
        SGRMRIPipeline.from_pretrained(None)
