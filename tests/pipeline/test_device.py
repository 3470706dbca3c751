"""The pipeline on the device that the environment variable SGR_TEST_DEVICE names; by default the CPU."""

import os

import pytest
import torch

from tests.helpers.pipeline_parts import assert_same, build, build_unet, call, draw_problem

DEVICE = os.environ.get("SGR_TEST_DEVICE", "cpu")
needs_accelerator = pytest.mark.skipif(DEVICE == "cpu", reason="SGR_TEST_DEVICE names no accelerator")


def on_device(device=DEVICE, dtype=torch.float32):
    pipe = build("unet", unet=build_unet()).to(device)
    pipe.unet.to(dtype)
    return pipe


def on_cpu(out):
    for name, value in vars(out).items():
        if isinstance(value, torch.Tensor):
            setattr(out, name, value.cpu())
    return out


def test_two_calls_give_the_same_bits():
    assert_same(call(on_device()), call(on_device()), rtol=0, atol=0)


def test_results_stay_on_the_device():
    out = call(on_device(), draw_problem())
    assert out.images.device.type == out.segmentations.device.type == torch.device(DEVICE).type


@needs_accelerator
def test_images_are_those_of_the_cpu():
    images = call(on_device()).images.cpu()
    torch.testing.assert_close(images, call(on_device("cpu")).images, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single_precision(dtype):
    images, half = (call(on_device(dtype=kind), target="none").images for kind in (torch.float32, dtype))
    assert (half - images).norm() < 0.05 * images.norm()


@needs_accelerator
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_weights_give_the_same_bounds(offload):
    pipe = build("unet", unet=build_unet())
    getattr(pipe, offload)(device=DEVICE)
    assert_same(on_cpu(call(pipe)), on_cpu(call(on_device())), rtol=1e-4, atol=1e-4)
