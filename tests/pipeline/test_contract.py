"""The contract of a diffusers pipeline: callbacks, wrapped and missing components, weights that move, lists of slices.

These are the checks of diffusers' `PipelineTesterMixin` that apply, written for inputs that are k-space, together with
those in `test_pipeline_sgr_mri.py`. `NOT_APPLICABLE` lists the others.
"""

import inspect

import accelerate
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from torch.nn import DataParallel

from sgr_diffusers import SGRMRIPipeline
from tests.helpers.pipeline_parts import (
    BrightOrNever,
    assert_same,
    build,
    build_segmentation_unet,
    build_unet,
    call,
    draw_problem,
)

# Checks of diffusers' mixins that do not apply, each with the reason.
NOT_APPLICABLE = {
    "test_num_images_per_prompt": "there are no prompts; `num_samples` is checked in test_pipeline_sgr_mri.py",
    "test_cfg": "guidance has no unconditional branch; `guidance_scale` is a factor on its strength",
    "test_callback_cfg": "as above; a callback that changes `_guidance_scale` is checked here",
    "test_encode_prompt_works_in_isolation": "there is no text encoder",
    "test_StableDiffusionMixin_component": "there is no VAE",
    "test_freeu": "FreeU is defined for UNet2DConditionModel",
    "test_fused_qkv_projections": "as above",
    "test_ip_adapter": "there is no cross-attention",
    "test_attention_slicing_forward_pass": "UNet2DModel of diffusers has no attention slicing",
    "test_xformers_attention_forwardGenerator_pass": "needs a GPU",
    "test_to_device": "needs a GPU; `to` is checked on the CPU in test_pipeline_sgr_mri.py",
    "test_pipeline_with_accelerator_device_map": "needs a GPU",
    "test_save_load_dduf": "DDUF files cannot hold the code that a repository of this pipeline carries",
    "safe_serialization=False": "weights are written as safetensors only, with a warning (tests/hub)",
    "output_type='pil'": "complex images are no pictures; 'pt' and 'np' are checked in test_pipeline_sgr_mri.py",
}


def test_the_signature_of_the_call_has_the_names_of_diffusers():
    parameters = inspect.signature(SGRMRIPipeline.__call__).parameters
    expected = {"num_inference_steps", "generator", "latents", "output_type", "return_dict", "eta", "guidance_scale"}
    assert expected | {"callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= set(parameters)
    optional = {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    assert set(parameters) - optional == {"self", "kspace", "mask"}


# --- callbacks ------------------------------------------------------------------------------------------------------


def test_no_tensors_for_a_callback():
    seen = []
    settings = {"callback_on_step_end_tensor_inputs": None}
    out = call(build(), callback_on_step_end=lambda pipe, step, t, tensors: seen.append(tensors), **settings)
    assert seen == [{}] * 4
    assert_same(out, call(build(), **settings), rtol=0, atol=0)


class Cutoff(PipelineCallback):
    """Switches guidance off after a share of the steps, as diffusers' callbacks for classifier-free guidance do."""

    tensor_inputs = ("latents",)

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio):
            pipeline._guidance_scale = 0.0
        return callback_kwargs


def test_a_callback_changes_the_guidance_scale():
    pipe = build()
    forward, scales = [], []
    pipe.unet.register_forward_hook(lambda module, args, output: forward.append(output[0].requires_grad))
    out = call(pipe, target="upper", num_inference_steps=6, callback_on_step_end=Cutoff(cutoff_step_ratio=0.5))
    assert forward == [True] * 4 + [False] * 2
    assert (pipe.num_timesteps, pipe.guidance_scale) == (6, 0.0)
    assert not torch.allclose(out.images, call(build(), target="upper", num_inference_steps=6).images)
    call(pipe, guidance_scale=2.0, callback_on_step_end=lambda pipe, *_: scales.append(pipe.guidance_scale) or {})
    assert scales == [2.0] * 4


@pytest.mark.parametrize("step", [1, 3])
def test_a_callback_interrupts(step):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append(tensors["x0"])
        pipe._interrupt = index == step

    pipe = build()
    names = ["latents", "x0"]
    out = call(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert len(seen) == step + 1 and pipe.interrupt
    last = call(build(), callback_on_step_end=lambda *_: {"latents": seen[-1]})  # only the last step's latents count
    assert_same(out, last, rtol=0, atol=0)
    call(pipe)
    assert not pipe.interrupt


# --- wrapped and missing components ---------------------------------------------------------------------------------

WRAPPERS = {
    "parallel": DataParallel,
    "compiled": torch.compile,
    "both": lambda network: torch.compile(DataParallel(network)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inside torch.compile
@torch.compiler.set_stance("force_eager")  # wrapped as by the compiler, which would take half a minute
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_networks(tmp_path, name):
    expected = call(build("unet"))
    pipe = build("unet")
    pipe.unet, pipe.segmentation_model = WRAPPERS[name](pipe.unet), WRAPPERS[name](pipe.segmentation_model)
    wrapped = pipe.unet, pipe.segmentation_model
    assert pipe.to("cpu", torch.float32) is pipe and (pipe.unet, pipe.segmentation_model) == wrapped
    assert pipe.class_names == ("one", "two") and (pipe.device.type, pipe.dtype) == ("cpu", torch.float32)
    assert_same(call(pipe), expected, rtol=1e-5, atol=1e-5)
    pipe.save_pretrained(tmp_path)
    assert (pipe.unet, pipe.segmentation_model) == wrapped
    loaded = SGRMRIPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert_same(call(loaded), expected, rtol=0, atol=0)


def test_a_wrapped_plain_module():
    expected = call(build())
    assert_same(call(build(DataParallel(BrightOrNever()))), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_a_pipeline_without_a_needed_component(tmp_path, name, unchecked_types):
    build("unet").save_pretrained(tmp_path)
    pipe = SGRMRIPipeline.from_pretrained(tmp_path, **{name: None})
    assert (pipe.device.type, pipe.dtype) == ("cpu", torch.float32) and pipe.to("cpu") is pipe
    with pytest.raises(ValueError, match=rf"`{name}` is needed to reconstruct, but it is None.*register_modules"):
        call(pipe)
    pipe.register_modules(**{name: getattr(build("unet"), name)})
    pipe.set_progress_bar_config(disable=True)
    assert_same(call(pipe), call(build("unet")), rtol=0, atol=0)


# --- weights that move or change between forward and backward pass --------------------------------------------------


def overwrite_in_place(network):
    """Fill the weights with NaN after each layer's forward pass, and put them back before it."""
    for module in network.modules():
        kept = {name: value.detach().clone() for name, value in module.named_parameters(recurse=False)}

        def restore(module, args, kept=kept):
            for name, value in kept.items():
                getattr(module, name).data.copy_(value)

        def overwrite(module, args, output, kept=kept):
            for name in kept:
                getattr(module, name).data.fill_(float("nan"))

        module.register_forward_pre_hook(restore)
        module.register_forward_hook(overwrite)


def swap(network):
    """The same with other tensors in place of the weights."""
    for module in network.modules():
        kept = {name: value.detach().clone() for name, value in module.named_parameters(recurse=False)}

        def restore(module, args, kept=kept):
            for name, value in kept.items():
                getattr(module, name).data = value

        def exchange(module, args, output, kept=kept):
            for name, value in kept.items():
                getattr(module, name).data = torch.full_like(value, float("nan"))

        module.register_forward_pre_hook(restore)
        module.register_forward_hook(exchange)


CPU = torch.device("cpu")
MOVES = {
    "overwritten in place": overwrite_in_place,
    "swapped": swap,
    "model offload": lambda network: accelerate.cpu_offload_with_hook(network, execution_device=CPU),
    "sequential offload": lambda network: accelerate.cpu_offload(network, execution_device=CPU),
    "group offload of leaves": lambda network: network.enable_group_offload(CPU, CPU, offload_type="leaf_level"),
    "group offload of blocks": lambda network: network.enable_group_offload(CPU, CPU, num_blocks_per_group=1),
}


@pytest.mark.parametrize("name", MOVES)
def test_guidance_with_weights_that_move(name):
    expected = call(build("unet"), target="upper")
    pipe = build("unet")
    for network in (pipe.unet, pipe.segmentation_model):
        MOVES[name](network)
    assert_same(call(pipe, target="upper"), expected, rtol=1e-5, atol=1e-5)


def test_guidance_with_layerwise_casting():
    cast = build_unet(), build_segmentation_unet()
    rounded = build_unet(), build_segmentation_unet()
    for network, reference in zip(cast, rounded, strict=True):
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        reference.load_state_dict(network.state_dict())
    outs = [call(build(model, unet), target="upper") for unet, model in (cast, rounded)]
    assert_same(*outs, rtol=1e-5, atol=1e-5)


def test_networks_without_a_gradient_are_refused():
    class Frozen(BrightOrNever):
        @torch.no_grad()
        def forward(self, magnitude):
            return super().forward(magnitude)

    pipe = build(Frozen())
    with pytest.raises(ValueError, match=r"`segmentation_model` must give a gradient .*target='none'"):
        call(pipe)
    assert call(pipe, target="none").images.isfinite().all()
    pipe = build()
    pipe.unet.forward = torch.no_grad()(pipe.unet.forward)
    with pytest.raises(ValueError, match=r"`unet` must give a gradient .*target='none'"):
        call(pipe, target="upper")
    assert call(pipe, target="none").images.isfinite().all()


# --- lists of slices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("as_numpy", [True, False])
def test_lists_of_slices(kind, as_numpy):
    problem = draw_problem()
    expected = call(build(), problem)
    listed = {
        "kspace": problem["kspace"],
        "mask": problem["mask"].expand(2, -1, -1),
        "coil_maps": problem["coil_maps"],
    }
    listed = {name: kind(one.numpy() if as_numpy else one for one in value) for name, value in listed.items()}
    assert_same(call(build(), listed), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kspace": []}, ValueError, r"`kspace` must not be an empty list"),
        ({"kspace": [torch.ones(3, 16, 12), 1]}, TypeError, r"`kspace` must be .*list of them, .*got a list with int"),
        ({"kspace": [torch.ones(3, 16, 12), torch.ones(3, 16, 10)]}, ValueError, r"`kspace` .*one shape.*16, 10"),
        ({"mask": [torch.ones(16, 12)] * 3}, ValueError, r"`mask` must have the shape .*got \(3, 16, 12\)"),
    ],
)
def test_lists_that_do_not_fit(change, error, message, unchecked_types):
    with pytest.raises(error, match=message):
        call(build(), {**draw_problem(), **change})
