"""Small real components and the calls that the tests of the pipeline share."""

from dataclasses import fields

import torch
from diffusers import UNet2DModel
from torch import nn

from sgr_diffusers import SegmentationUNet, SenseOperator, SGRMRIPipeline, create_scheduler
from sgr_diffusers.pipeline.output import SGRMRIPipelineOutput

SIZE = (16, 12)
FIELDS = tuple(field.name for field in fields(SGRMRIPipelineOutput))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build_unet(unet_class=UNet2DModel, **overrides):
    config = {
        "sample_size": SIZE,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet_class(**{**config, **overrides}).eval()


def build_segmentation_unet():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SegmentationUNet(class_names=("one", "two"), channels=(4, 8), strides=(2,), num_res_units=1).eval()


class BrightOrNever(nn.Module):
    """Class 1 where the image is bright, class 2 nowhere; without parameters."""

    class_names = ("bright", "never")

    def forward(self, magnitude):
        bright = 8 * (magnitude - 0.5)
        return torch.cat([torch.zeros_like(bright), bright, torch.full_like(bright, -20.0)], dim=1)


class FailingUNet(UNet2DModel):
    def forward(self, *args, **kwargs):
        raise AssertionError("the prior was called")


def build(segmentation_model="bright", unet=None, scheduler=None, **kwargs):
    models = {"bright": BrightOrNever, "unet": build_segmentation_unet, None: lambda: None}
    model = models[segmentation_model]() if segmentation_model in models else segmentation_model
    model = model.eval() if model is not None else None
    pipe = SGRMRIPipeline(unet or build_unet(), scheduler or create_scheduler("v_prediction"), model, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_problem(n_slices=2, n_coils=3, size=SIZE, share=0.4):
    generator = seeded(5)
    maps = torch.randn(n_slices, n_coils, *size, dtype=torch.complex64, generator=generator)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    mask = torch.rand(size, generator=generator) < share
    image = torch.randn(n_slices, *size, dtype=torch.complex64, generator=generator)
    return {"kspace": SenseOperator(maps, mask).forward(image), "mask": mask, "coil_maps": maps}


def call(pipe, problem=None, seed=0, **kwargs):
    kwargs = {"num_inference_steps": 4, "generator": seeded(seed), **kwargs}
    return pipe(**{**kwargs, **(problem or draw_problem())})


def assert_same(a, b, **tolerance):
    assert (a.classes, a.targets) == (b.classes, b.targets)
    for name in [name for name in FIELDS if name not in ("classes", "targets")]:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **tolerance)


def count_backward(pipe):
    """List of (images in a forward pass, has a graph), list of images in a backward pass of the prior."""
    forward, backward = [], []
    pipe.unet.register_forward_hook(
        lambda module, args, output: forward.append((len(args[0]), output[0].requires_grad))
    )
    pipe.unet.register_full_backward_hook(lambda module, grad_input, grad_output: backward.append(len(grad_output[0])))
    return forward, backward
