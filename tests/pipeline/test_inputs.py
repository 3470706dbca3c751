"""Every bad input of the pipeline is refused before the prior is called, with the way out."""

import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from torch import nn

from tests.helpers.pipeline_parts import (
    SIZE,
    BrightOrNever,
    FailingUNet,
    build,
    build_unet,
    call,
    draw_problem,
    seeded,
)


def with_value(tensor, value, index=(0,)):
    tensor = tensor.clone().to(torch.promote_types(tensor.dtype, torch.tensor(value).dtype))
    tensor.view(-1)[list(index)] = value
    return tensor


# ruff: noqa: E501 - the tables below have one line a case
BAD_CALLS = {
    "real k-space": (lambda p: {"kspace": p["kspace"].abs()}, TypeError, r"`kspace` must be complex, got torch.float32"),
    "NaN": (lambda p: {"kspace": with_value(p["kspace"], float("nan"))}, ValueError, r"`kspace` must be finite, got 1 entries of"),
    "infinity": (lambda p: {"kspace": with_value(p["kspace"], float("inf"))}, ValueError, r"`kspace` must be finite"),
    "no signal": (lambda p: {"kspace": 0 * p["kspace"]}, ValueError, r"`kspace` must hold .* only zeros in slices \[0, 1\]"),
    "one empty slice": (lambda p: {"kspace": p["kspace"] * torch.tensor([1, 0])[:, None, None, None]}, ValueError, r"slices \[1\] of 2"),
    "too many axes": (lambda p: {"kspace": p["kspace"][None]}, ValueError, r"`kspace` must be \(batch, coil, y, x\)"),
    "mask shape": (lambda p: {"mask": p["mask"][1:]}, ValueError, r"`mask` must have the shape \(y, x\) = \(16, 12\).*got \(15, 12\).*pad_mask"),
    "mask values": (lambda p: {"mask": with_value(p["mask"].float(), 0.5)}, ValueError, r"`mask` must be bool or hold only 0 and 1, got 1 other values, such as 0.5"),
    "empty mask": (lambda p: {"mask": 0 * p["mask"]}, ValueError, r"`mask` must be true \(measured\) somewhere"),
    "unmeasured signal": (lambda p: {"mask": p["mask"] & (torch.arange(12) < 6)}, ValueError, r"`kspace` must be zero where `mask` says unmeasured, got \d+ non-zero entries there \(.*% of .*% of the energy.*kspace \* mask"),
    "coil count": (lambda p: {"coil_maps": p["coil_maps"][:, :2]}, ValueError, r"`coil_maps` must have the coils and the size of `kspace`, \(2, 3, 16, 12\) .*got \(2, 2, 16, 12\)"),
    "real maps": (lambda p: {"coil_maps": p["coil_maps"].real}, TypeError, r"`coil_maps` must be complex"),
    "empty maps": (lambda p: {"coil_maps": 0 * p["coil_maps"]}, ValueError, r"`coil_maps` must not be zero everywhere"),
    "unknown class": (lambda p: {"classes": ["ligament"]}, ValueError, r"`classes` must name classes .*1 'bright', 2 'never'.* got 'ligament'"),
    "background": (lambda p: {"classes": [0]}, ValueError, r"`classes` .*got 0"),
    "class number": (lambda p: {"classes": 3}, ValueError, r"`classes` .*got 3"),
    "class twice": (lambda p: {"classes": [1, "bright"]}, ValueError, r"`classes` must name one class or more, each once"),
    "no class": (lambda p: {"classes": []}, ValueError, r"`classes` must name one class or more"),
    "unknown target": (lambda p: {"target": "up"}, ValueError, r"`target` must be one of .*'upper'.* got 'up'"),
    "final step": (lambda p: {"final_consistency": "none"}, ValueError, r"`final_consistency` must be one of"),
    "output type": (lambda p: {"output_type": "pil"}, ValueError, r"`output_type` must be one of \('pt', 'np'\)"),
    "no steps": (lambda p: {"num_inference_steps": 0}, ValueError, r"`num_inference_steps` must be a whole number from 1 to 10000, got 0"),
    "too many steps": (lambda p: {"num_inference_steps": 1001}, ValueError, r"`num_inference_steps` .*got 1001"),
    "eta": (lambda p: {"eta": 1.5}, ValueError, r"`eta` must be from 0"),
    "strength": (lambda p: {"guidance_strength": -1.0}, ValueError, r"`guidance_strength` must be 0 or larger"),
    "scale": (lambda p: {"guidance_scale": float("inf")}, ValueError, r"`guidance_scale` must be 0 or larger, got inf"),
    "iterations": (lambda p: {"cg_iterations": -1}, ValueError, r"`cg_iterations` must be a whole number"),
    "noise text": (lambda p: {"noise_std": np.array(["low"])}, TypeError, r"`noise_std` must be a number .*got array"),
    "noise shape": (lambda p: {"noise_std": torch.ones(2)}, ValueError, r"`noise_std` must be one number, .*\(coil,\) = \(3,\) .*got \(2,\)"),
    "batch size": (lambda p: {"batch_size": 0}, ValueError, r"`batch_size` must be a whole number of at least 1"),
    "mean of one": (lambda p: {"combine": "mean", "target": "none"}, ValueError, r"`combine` needs `num_samples` of 2 or more, got 1"),
    "other than the mean": (lambda p: {"combine": "median", "num_samples": 2, "target": "none"}, ValueError, r"`combine` must be one of \('mean',\)"),
    "guided samples": (lambda p: {"num_samples": 2}, ValueError, r"`num_samples` must be 1 for target='both'"),
    "voxel": (lambda p: {"voxel_size_mm": (1.0, 1.0)}, ValueError, r"`voxel_size_mm` must be three positive"),
    "generators": (lambda p: {"generator": [seeded()] * 3}, ValueError, r"`generator` .*each of 2 slices, got 3"),
    "latents shape": (lambda p: {"latents": torch.zeros(1, 2, *SIZE)}, ValueError, r"`latents` must be .*\(2, 2, 16, 12\)"),
    "latents NaN": (lambda p: {"latents": torch.full((2, 2, *SIZE), float("nan"))}, ValueError, r"`latents` .*NaN"),
    "equal samples": (lambda p: {"latents": torch.zeros(2, 2, *SIZE), "eta": 0.0, "num_samples": 2, "target": "none"}, ValueError, r"`latents` with `eta=0` make all"),
    "callback inputs": (lambda p: {"callback_on_step_end_tensor_inputs": ["x"]}, ValueError, r"`callback_on_step_end_tensor_inputs` must be a list of names among .*got \['x'\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused_before_the_prior_is_called(case):
    change, error, message = BAD_CALLS[case]
    problem = draw_problem()
    pipe = build(unet=build_unet(FailingUNet))
    with pytest.raises(error) as caught:
        call(pipe, {**problem, **change(problem)})
    assert re.search(message, str(caught.value)), str(caught.value)


def drop_class(model):
    model.class_names = ("bright",)
    return model


BAD_PIPES = {
    "unet in": (lambda: build(unet=build_unet(FailingUNet, in_channels=1)), ValueError, r"`unet` must have 2 input channels .* got 1 in and 2 out"),
    "unet out": (lambda: build(unet=build_unet(FailingUNet, out_channels=3)), ValueError, r"`unet` must have .*got 2 in and 3 out"),
    "class count": (lambda: build(drop_class(BrightOrNever())), ValueError, r"`segmentation_model` must return one channel .*\('bright',\), got 3 channels"),
    "no background": (lambda: build(nn.Conv2d(1, 1, 1)), ValueError, r"`segmentation_model` must return .*at least one class, got 1 channels"),
    "other size": (lambda: build(nn.MaxPool2d(2)), ValueError, r"`segmentation_model` must return logits .* of its input's size"),
    "no model": (lambda: build(None), ValueError, r"`segmentation_model` is needed for target='both'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PIPES)
def test_networks_that_do_not_fit_are_refused(case):
    make, error, message = BAD_PIPES[case]
    pipe = make()
    if "unet" not in case:
        pipe.register_modules(unet=build_unet(FailingUNet))
    with pytest.raises(error, match=message):
        call(pipe)


@pytest.mark.parametrize("name", ["unet", "segmentation_model"])
def test_training_mode_is_refused(name):
    pipe = build("unet", build_unet(FailingUNet))
    getattr(pipe, name).train()
    with pytest.raises(ValueError, match=rf"`{name}` must be in evaluation mode.*pipe.{name}.eval\(\)"):
        call(pipe)


BAD_SCHEDULERS = [
    (lambda: EulerDiscreteScheduler(), ValueError, "prediction_type='epsilon', but the prior predicts 'v_prediction'"),
    (lambda: EDMEulerScheduler(), TypeError, "EDMEulerScheduler is not supported"),
    (lambda: DDIMScheduler(prediction_type="v_prediction"), ValueError, "clip_sample=False"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_SCHEDULERS)
def test_schedulers_that_do_not_fit_are_refused_when_they_are_set(make, error, message):
    pipe = build(unet=build_unet(FailingUNet))
    good = pipe.scheduler
    with pytest.raises(error, match=message):
        pipe.scheduler = make()
    with pytest.raises(error, match=message):
        pipe.register_modules(scheduler=make())
    assert pipe.scheduler is good


@pytest.mark.parametrize(("make", "error", "message"), BAD_SCHEDULERS[1:])
def test_and_at_the_call_if_they_came_with_the_checkpoint(make, error, message):
    with pytest.raises(error, match=message):
        call(build(unet=build_unet(FailingUNet), scheduler=make()))


def test_a_checkpoint_whose_scheduler_clips_can_be_mended():
    pipe = build(scheduler=DDIMScheduler(prediction_type="v_prediction"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    assert call(pipe).images.isfinite().all()


def test_the_gradient_of_the_magnitude_is_zero_at_zero():
    pipe = build("unet")
    images = torch.zeros(1, *SIZE, dtype=torch.complex64, requires_grad=True)
    gradient = torch.autograd.grad(pipe.segment(images).sum(), images)[0]
    assert torch.count_nonzero(torch.view_as_real(gradient)) == 0
