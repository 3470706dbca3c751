"""The pipeline as a user and as diffusers see it: what comes out, noise and batching, the contract of diffusers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.callbacks import PipelineCallback

from sgr_diffusers import SenseOperator, SGRMRIPipeline, SGRMRIPipelineOutput
from sgr_diffusers.pipeline.networks import fastest_batch_size
from tests.helpers.pipeline_parts import (
    FIELDS,
    SIZE,
    BrightOrNever,
    assert_same,
    build,
    build_unet,
    call,
    draw_problem,
    seeded,
)

# --- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "classes", "targets"),
    [
        ({"target": "upper"}, ("bright", "never"), ("upper",)),
        ({"target": "both", "classes": ["bright"]}, ("bright",), ("lower", "upper")),
        ({"target": "lower", "classes": [2, "bright"]}, ("never", "bright"), ("lower",)),
        ({"target": "none"}, ("all",), ("none",)),
        ({"target": "none", "classes": "never", "num_samples": 3}, ("never",), ("sample_0", "sample_1", "sample_2")),
    ],
)
def test_shapes_types_and_names(kwargs, classes, targets):
    out = call(build(), **kwargs)
    shape = (2, len(classes), len(targets))
    assert isinstance(out, SGRMRIPipelineOutput)
    assert (out.classes, out.targets) == (classes, targets)
    assert (out.images.shape, out.images.dtype) == ((*shape, *SIZE), torch.complex64)
    assert (out.segmentations.shape, out.segmentations.dtype) == ((*shape, *SIZE), torch.uint8)
    assert (out.volumes_mm3.shape, out.volumes_mm3.dtype) == (shape, torch.float32)
    assert (out.data_residual.shape, out.data_residual.dtype) == (shape, torch.float32)
    assert torch.isfinite(torch.view_as_real(out.images)).all()
    assert not out.images.requires_grad


def test_volumes_are_those_of_the_class_in_its_own_reconstruction():
    out = call(build("unet"), voxel_size_mm=(0.5, 2.0, 3.0))
    for k, label in enumerate((1, 2)):
        expected = 3.0 * (out.segmentations[:, k] == label).sum(dim=(-2, -1))
        assert torch.equal(out.volumes_mm3[:, k], expected)
    plain = call(build("unet"), target="none")
    assert torch.equal(plain.volumes_mm3, (plain.segmentations > 0).sum(dim=(-2, -1)).float())


def test_tuple_has_the_fields_in_order_and_numpy_is_the_same():
    out = call(build())
    as_tuple = call(build(), return_dict=False)
    as_numpy = call(build(), output_type="np")
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(FIELDS)
    for name, value in zip(FIELDS, as_tuple, strict=True):
        if name in ("classes", "targets") or value is None:
            assert value == getattr(out, name) == getattr(as_numpy, name)
        else:
            assert torch.equal(value, getattr(out, name))
            assert isinstance(getattr(as_numpy, name), np.ndarray)
            assert np.array_equal(getattr(as_numpy, name), value.numpy())


def test_numpy_comes_in_as_torch_does():
    problem = draw_problem()
    arrays = {name: value.numpy() for name, value in problem.items()}
    arrays["kspace"].setflags(write=False)
    assert_same(call(build(), arrays), call(build(), problem), rtol=0, atol=0)


@pytest.mark.parametrize("share_mask", [True, False])
def test_axes_that_may_be_left_out(share_mask):
    problem = draw_problem(n_slices=1)
    short = {name: value[0] for name, value in problem.items() if name != "mask"}
    short["mask"] = problem["mask"] if share_mask else problem["mask"][None]
    assert_same(call(build(), short), call(build(), problem), rtol=0, atol=0)


def test_single_coil_needs_no_maps():
    kspace = draw_problem(n_slices=1, n_coils=1)["kspace"][0, 0]
    mask = kspace != 0
    out = call(build(), {"kspace": kspace, "mask": mask})
    given = call(build(), {"kspace": kspace, "mask": mask, "coil_maps": torch.ones(1, *SIZE, dtype=torch.complex64)})
    assert_same(out, given, rtol=0, atol=0)
    assert out.data_residual.max() < 1e-5  # with one coil, replacing k-space is exact


def test_maps_are_estimated_from_the_calibration_region():
    size = (32, 24)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    coils = torch.stack([torch.exp(-((y - a) ** 2) - (x - b) ** 2) for a, b in ((-1, 0), (1, 0), (0, 1))])
    maps = torch.complex(coils, 0.2 * coils)
    mask = torch.rand(size, generator=seeded()) < 0.5
    mask[8:24, 4:20] = True
    image = (y**2 + x**2 < 0.7).to(torch.complex64)
    kspace = SenseOperator(maps, mask).forward(image)
    out = call(build(), {"kspace": kspace, "mask": mask}, target="none")
    assert out.images.shape == (1, 1, 1, *size) and out.data_residual.item() < 0.5


@pytest.mark.parametrize("size", [(15, 13), (30, 46), (7, 64)])
def test_any_size(size):
    pipe = build("unet", build_unet(block_out_channels=(4, 8, 8), down_block_types=("DownBlock2D",) * 3,
                                    up_block_types=("UpBlock2D",) * 3))  # fmt: skip
    out = call(pipe, draw_problem(size=size), num_inference_steps=3)
    assert out.images.shape[-2:] == out.segmentations.shape[-2:] == size
    assert torch.isfinite(torch.view_as_real(out.images)).all()


def test_padding_leaves_sizes_that_fit_alone_and_is_cropped_about_the_centre():
    pipe = build("unet")
    seen = []
    pipe.unet.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[-2:])))
    call(pipe, draw_problem(size=(16, 12)), target="none", num_inference_steps=2)
    call(pipe, draw_problem(size=(15, 13)), target="none", num_inference_steps=2)
    assert seen == [(16, 12)] * 2 + [(16, 14)] * 2
    images = torch.randn(1, 15, 13, dtype=torch.complex64, generator=seeded())
    torch.testing.assert_close(pipe.segment(images), pipe.segmentation_model(images.abs()[:, None]))


def test_unit_of_the_kspace_does_not_matter_and_is_kept():
    problem = draw_problem()
    scaled = {**problem, "kspace": 1e6 * problem["kspace"]}
    out, other = call(build(), problem), call(build(), scaled)
    torch.testing.assert_close(other.images / 1e6, out.images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.data_residual, out.data_residual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("correction", [1.0, 2.0])
def test_scale_is_the_quantile_of_the_zero_filled_image(correction):
    problem = draw_problem(n_slices=1)
    seen = []

    class Recorder(BrightOrNever):
        def forward(self, magnitude):
            seen.append(magnitude)
            return super().forward(magnitude)

    pipe = build(Recorder(), scale_quantile=0.9, scale_correction=correction)
    out = call(pipe, problem, target="none")
    zero_filled = SenseOperator(problem["coil_maps"], problem["mask"]).adjoint(problem["kspace"])
    scale = correction * torch.quantile(zero_filled.abs(), 0.9)
    torch.testing.assert_close(seen[-1][0, 0], (out.images[0, 0, 0] / scale).abs())


@pytest.mark.parametrize("name", ["replace", "regularized", "least_squares"])
def test_final_consistency_and_its_residual(name):
    problem = draw_problem()
    out = call(build(), problem, final_consistency=name, classes=["bright"])
    operator = SenseOperator(problem["coil_maps"], problem["mask"])
    for k in range(2):
        residual = operator.forward(out.images[:, 0, k]) - problem["kspace"]
        expected = residual.flatten(1).norm(dim=1) / problem["kspace"].flatten(1).norm(dim=1)
        torch.testing.assert_close(out.data_residual[:, 0, k], expected, rtol=1e-3, atol=1e-5)
    limits = {"replace": 0.9, "regularized": 0.2, "least_squares": 1e-4}
    assert out.data_residual.max() < limits[name]


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["both", "none"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_split_gives_the_same_result(target, eta):
    num_samples = 3 if target == "none" else 1
    outs = [
        call(build("unet"), draw_problem(3), target=target, eta=eta, num_samples=num_samples, batch_size=batch_size)
        for batch_size in (None, 1, 2, 5)
    ]
    for out in outs[1:]:
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-4, atol=1e-4)


def test_batch_size_bounds_every_network_call():
    pipe = build("unet")
    sizes = []
    for network in (pipe.unet, pipe.segmentation_model):
        network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    call(pipe, batch_size=3)
    assert max(sizes) == 3


def test_a_cpu_gets_as_many_images_as_its_cache_holds(monkeypatch):
    """Without a bound by the user, and with one that is larger."""
    pipe, sizes = build("unet"), []
    pipe.unet.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    expected = call(pipe)
    bytes_of_an_image = 4 * pipe.unet.config.block_out_channels[0] * expected.images.shape[-2:].numel()
    monkeypatch.setattr("sgr_diffusers.pipeline.networks._CPU_FEATURE_BYTES", 2 * bytes_of_an_image + 1)
    for batch_size in (None, 3):
        sizes.clear()
        out = call(pipe, batch_size=batch_size)
        assert max(sizes) == 2
        torch.testing.assert_close(out.images, expected.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "size", "device", "expected"),
    [
        ((128, 256), (512, 160), "cpu", 1),  # the paper's prior
        ((128, 256), (256, 64), "cpu", 2),
        ((32, 64), (192, 192), "cpu", 4),  # `general`
        ((128, 256), (512, 160), "cuda", None),
        (None, (512, 160), "cpu", None),  # a prior that does not say
        ((None,), (512, 160), "cpu", None),  # an adapter around one
    ],
)
def test_large_feature_maps_get_small_batches_on_a_cpu(channels, size, device, expected):
    unet = torch.nn.Identity()
    unet.config = SimpleNamespace(block_out_channels=channels)
    assert fastest_batch_size(unet, size, torch.device(device)) == expected


@pytest.mark.parametrize("target", ["both", "none"])
def test_a_batch_is_its_slices_one_by_one(target):
    problem = draw_problem(3)
    pipe = build("unet")
    batch = pipe(**problem, target=target, num_inference_steps=4, generator=[seeded(k) for k in range(3)])
    for k in range(3):
        single = {"kspace": problem["kspace"][k], "mask": problem["mask"], "coil_maps": problem["coil_maps"][k]}
        for generator in (seeded(k), [seeded(k)]):
            out = pipe(**single, target=target, num_inference_steps=4, generator=generator)
            torch.testing.assert_close(out.images[0], batch.images[k], rtol=1e-4, atol=1e-4)


def test_branches_share_their_noise_and_samples_do_not():
    latents = []

    def callback(pipe, step, timestep, tensors):
        latents.append(tensors["latents"])

    call(build(), target="both", guidance_strength=0.0, num_inference_steps=3, callback_on_step_end=callback)
    assert all(torch.allclose(tensor[:4], tensor[:1].expand_as(tensor[:4]), atol=1e-5) for tensor in latents)
    out = call(build(), target="none", num_samples=3)
    assert (out.images[:, :, 0] - out.images[:, :, 1]).abs().mean() > 0.01


def test_samples_are_combined_to_their_mean_and_deviation():
    pipe = build()
    out = call(pipe, target="none", num_samples=3, combine="mean")
    assert out.targets == ("mean",) and out.images.shape[:3] == out.segmentations.shape[:3] == (2, 1, 1)
    assert out.standard_deviation.shape == (2, 1, *SIZE) and (out.standard_deviation > 0).all()
    assert out.volumes_mm3.shape == out.data_residual.shape == (2, 1, 1)
    again = call(pipe, target="none", num_samples=3, combine="mean", batch_size=1)
    torch.testing.assert_close(again.standard_deviation, out.standard_deviation, rtol=1e-3, atol=1e-4)
    assert call(pipe, target="none", num_samples=3).standard_deviation is None


class Listening(UNet2DModel):
    """A prior that keeps the timesteps that it was given."""

    def forward(self, sample, timestep, return_dict=True):
        self.heard.append(float(timestep))
        return super().forward(sample, timestep, return_dict=return_dict)


@pytest.mark.parametrize(("combine", "factor"), [("mean", 0.75), (None, 1.0)])
def test_only_for_a_mean_the_prior_is_told_of_less_noise_than_there_is(tmp_path, combine, factor):
    build("unet", timestep_of_mean=0.75).save_pretrained(tmp_path)
    pipe = SGRMRIPipeline.from_pretrained(tmp_path)
    pipe.register_modules(unet=build_unet(Listening))
    pipe.unet.heard = []
    call(pipe, target="none", num_samples=2, combine=combine, num_inference_steps=4)
    assert pipe.unet.heard == [factor * float(t) for t in pipe.scheduler.timesteps]


def test_latents_without_fresh_noise_are_deterministic():
    latents = torch.randn(2, 2, *SIZE, generator=seeded(1))
    outs = [
        call(build(), latents=latents, eta=0.0, generator=generator, batch_size=batch_size)
        for generator, batch_size in ((None, None), (seeded(2), 3), ([seeded(3), seeded(4)], 1))
    ]
    for out in outs[1:]:
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-4, atol=1e-4)
    other = call(build(), latents=latents.flip(0), eta=0.0)
    assert not torch.allclose(other.images, outs[0].images, rtol=1e-2, atol=1e-2)


def test_seeds_decide_and_global_state_is_neither_read_nor_moved():
    outs = []
    for global_seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
            outs.append(call(build("unet"), seed=3))
            call(build(), generator=None)
            assert torch.equal(torch.get_rng_state(), before)
            assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert_same(*outs, rtol=0, atol=0)
    assert not torch.allclose(call(build("unet"), seed=4).images, outs[0].images, rtol=1e-2, atol=1e-2)
    fresh = [call(build(), generator=None).images for _ in range(2)]
    assert not torch.allclose(*fresh, rtol=1e-2, atol=1e-2)


# --- noise of the measurement ---------------------------------------------------------------------------------------


def test_noise_that_is_known_decides_how_closely_noise_aware_consistency_follows_the_data():
    settings = {"target": "none", "consistency": "noise_aware", "final_consistency": "regularized"}
    images = {std: call(build(), noise_std=std, **settings).images for std in (0.02, 1e3)}
    assert not torch.allclose(images[0.02], images[1e3], rtol=0.1, atol=0.1)
    assert_same(call(build(), noise_std=np.full(3, 0.02), **settings), call(build(), noise_std=0.02, **settings))
    ignored = call(build(), noise_std=1e3, cg_iterations=0, **settings).images
    torch.testing.assert_close(images[1e3], ignored, rtol=1e-2, atol=1e-2)


def test_unit_of_the_kspace_does_not_matter_to_the_noise():
    problem = draw_problem()
    scaled = {**problem, "kspace": 1e5 * problem["kspace"]}
    out, of_scaled = (call(build(), one, target="none", consistency="noise_aware") for one in (problem, scaled))
    torch.testing.assert_close(of_scaled.images, 1e5 * out.images, rtol=1e-3, atol=1.0)
    torch.testing.assert_close(of_scaled.noise_residual, out.noise_residual)


def test_residual_far_above_the_noise_is_warned_of():
    problem = draw_problem()
    out = call(build(), problem, noise_std=0.1)
    assert out.noise_residual.shape == (2,)
    with pytest.warns(UserWarning, match=r"misses the measured `kspace` of slices \[0, 1\].*`coil_maps`"):
        out = call(build(), {**problem, "coil_maps": problem["coil_maps"].flip(1)}, noise_std=0.01)
    assert (out.data_residual.amax(dim=(1, 2)) > 3 * out.noise_residual).all()


# --- the contract of a diffusers pipeline ---------------------------------------------------------------------------


def test_callback_sees_and_changes_latents():
    seen = []

    def callback(pipe, step, timestep, tensors):
        assert isinstance(pipe, SGRMRIPipeline)
        assert set(tensors) == set(SGRMRIPipeline._callback_tensor_inputs)
        assert all(tensor.shape == (8, 2, *SIZE) for tensor in tensors.values())
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    names = SGRMRIPipeline._callback_tensor_inputs
    problem = draw_problem()
    out = call(build(), problem, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen == [(0, 750), (1, 500), (2, 250), (3, 0)]
    zero_filled = SenseOperator(problem["coil_maps"], problem["mask"]).adjoint(problem["kspace"])
    torch.testing.assert_close(out.images, zero_filled[:, None, None].expand_as(out.images), rtol=1e-4, atol=1e-5)


def test_callback_objects_bring_their_own_tensor_inputs():
    class Recorder(PipelineCallback):
        tensor_inputs = ("latents", "x0")
        seen = ()

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen += (tuple(callback_kwargs),)
            return callback_kwargs

    recorder = Recorder()
    assert_same(call(build(), callback_on_step_end=recorder), call(build()), rtol=0, atol=0)
    assert recorder.seen == (("latents", "x0"),) * 4


def test_progress_bar_can_be_switched_off_and_on(capsys):
    call(build())
    assert capsys.readouterr().err == ""
    pipe = build()
    pipe.set_progress_bar_config(disable=False)
    call(pipe)
    assert "4/4" in capsys.readouterr().err


def test_learned_sigma_is_not_used():
    pipe = build(unet=build_unet(out_channels=4))
    expected = call(pipe)
    with torch.no_grad():
        pipe.unet.conv_out.weight[2:] += 1.0
    assert_same(call(pipe), expected, rtol=0, atol=0)
