"""Guidance objects: composed, windowed, serialised, written by users; the recorder after the step."""

import diffusers
import pytest
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from sgr_diffusers import create_scheduler
from sgr_diffusers.guidance.guiders import Guidance, SegmentationGuidance, check_guidance
from sgr_diffusers.guidance.losses import guidance_loss, has_pixels_to_push
from tests.helpers.pipeline_parts import assert_same, build, call, count_backward, draw_problem

SETTINGS = {"num_inference_steps": 8, "guidance_strength": 0.1}


def bright_volume(out):
    """Pixels of class 1 in the first branch of each slice."""
    return (out.segmentations[:, 0, 0] == 1).sum(dim=(-2, -1))


# --- the paper's guidance as an object ------------------------------------------------------------------------------


def test_by_default_each_branch_is_pushed_as_the_paper_says():
    assert_same(call(build(), guidance=SegmentationGuidance()), call(build()), rtol=0, atol=0)
    assert_same(call(build(), guidance=[]), call(build(), guidance_strength=0.0), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["upper", "lower"])
def test_one_class_in_a_plain_reconstruction(target):
    """Target "none" with an explicit guidance is the branch of that class and direction."""
    guidance = SegmentationGuidance(target=target, classes=["bright"])
    out = call(build(), target="none", guidance=guidance, **SETTINGS)
    branch = call(build(), target=target, classes=["bright"], **SETTINGS)
    torch.testing.assert_close(out.images[:, 0, 0], branch.images[:, 0, 0])
    assert out.classes == ("all",) and out.targets == ("none",)


def test_strength_of_the_object_goes_before_that_of_the_call():
    own = call(build(), guidance=SegmentationGuidance(strength=0.1), guidance_strength=0.7)
    assert_same(own, call(build(), guidance_strength=0.1), rtol=0, atol=0)


def test_soft_volume_pushes_in_the_same_direction():
    pipe, problem = build(), draw_problem(share=0.1)
    plain = bright_volume(call(pipe, problem, target="none", **SETTINGS))
    for target, sign in (("upper", 1), ("lower", -1)):
        guidance = SegmentationGuidance(target, "bright", objective="volume")
        pushed = bright_volume(call(pipe, problem, target="none", guidance=guidance, **SETTINGS))
        assert (sign * (pushed - plain) > 0).all()


def test_several_classes_count_as_one_tissue():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator)
    tissue = torch.tensor([[False, True, False, True]] * 2)
    p = logits.softmax(1)[:, [1, 3]].sum(1)
    inside = logits[:, [1, 3]].amax(1) > logits[:, [0, 2]].amax(1)
    up, low = torch.tensor([True, True]), torch.tensor([False, False])
    torch.testing.assert_close(guidance_loss(logits, tissue, up), -(~inside * torch.log(1 - p)).sum((1, 2)))
    torch.testing.assert_close(guidance_loss(logits, tissue, low), -(inside * torch.log(p)).sum((1, 2)))
    assert has_pixels_to_push(logits, tissue, up).all()
    one = torch.tensor([[False, True, False, False]] * 2)
    torch.testing.assert_close(guidance_loss(logits, one, up), guidance_loss(logits, torch.tensor([1, 1]), up))


# --- a volume to reach ----------------------------------------------------------------------------------------------


def reached(goal, **kwargs):
    """Volumes (class, target) of the slices together, guided to a goal, and the output."""
    kwargs = {"classes": ["bright"], "target": "both", "num_inference_steps": 12, "guidance_strength": 0.2, **kwargs}
    out = call(build(), draw_problem(share=0.1), guidance=SegmentationGuidance(target_volume_mm3=goal), **kwargs)
    return out.volumes_mm3.sum(dim=0), out


def test_volumes_of_the_slices_together_are_brought_to_their_goals():
    problem = draw_problem(share=0.1)
    plain = bright_volume(call(build(), problem, target="none", num_inference_steps=12)).sum().item()
    volumes, out = reached({"bright": (0.95 * plain, 1.05 * plain)})
    torch.testing.assert_close(volumes, out.target_volumes_mm3, rtol=0.02, atol=0)
    torch.testing.assert_close(out.target_volumes_mm3, torch.tensor([[0.95 * plain, 1.05 * plain]]))
    assert out.attained.tolist() == [[True, True]]
    volumes, _ = reached(0.95 * plain)  # from either side, whatever the name of the target
    assert volumes[0, 0] == volumes[0, 1]


def test_a_goal_beyond_what_the_data_allow_is_not_attained_and_its_volume_says_how_far_it_came():
    volumes, out = reached(700.0)  # twice the volume
    assert (300 < volumes).all() and (volumes < 500).all()
    assert not out.attained.any()


def test_goals_count_in_mm3_where_the_voxel_size_is_known():
    in_voxels, _ = reached(100.0)
    in_mm3, out = reached(600.0, voxel_size_mm=(1.0, 2.0, 3.0))
    assert torch.equal(6 * in_voxels, in_mm3)
    assert out.target_volumes_mm3.tolist() == [[600.0, 600.0]]


def test_an_image_that_cannot_be_found_is_said_not_to_be_attained():
    _, out = reached({"never": 50.0}, classes=["never"])
    assert out.attained.tolist() == [[False, False]] and out.volumes_mm3.sum() == 0
    assert call(build()).attained is None


def test_slices_share_a_goal_whatever_the_size_of_the_batches():
    whole, _ = reached({"bright": (90.0, 130.0)})
    single, _ = reached({"bright": (90.0, 130.0)}, batch_size=1)
    torch.testing.assert_close(whole, single, rtol=0, atol=1)


def test_a_class_without_a_goal_is_not_pushed():
    plain = call(build(), draw_problem(share=0.1), target="none", num_inference_steps=12)
    _, out = reached({"never": 50.0})
    torch.testing.assert_close(out.images[:, 0, 1], plain.images[:, 0, 0])
    assert out.target_volumes_mm3.isnan().all() and not out.attained.any()


def test_a_goal_needs_a_class_and_its_classes_are_those_of_the_call():
    with pytest.raises(ValueError, match=r"`target_volume_mm3` needs a class .* got target='none'"):
        reached(50.0, target="none")
    with pytest.raises(ValueError, match="`classes` and `target_volume_mm3` cannot be given together"):
        SegmentationGuidance(classes="bright", target_volume_mm3=50.0)


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop", "steps"), [(0.0, 1.0, 9), (0.5, 1.0, 4), (0.0, 0.3, 3), (0.2, 0.4, 2)])
def test_a_window_skips_backward_passes_outside(start, stop, steps):
    pipe = build()
    forward, backward = count_backward(pipe)
    guidance = SegmentationGuidance(start=start, stop=stop)
    call(pipe, target="upper", classes=["bright"], num_inference_steps=10, guidance=guidance)
    assert len(backward) == steps  # the last step of all is never guided
    assert sum(has_graph for _, has_graph in forward) == steps


@pytest.mark.parametrize(("start", "steps"), [(None, 1), (0.0, 9), (0.5, 4)])
def test_guidance_sets_in_where_the_checkpoint_says_unless_it_has_a_start_of_its_own(start, steps):
    pipe = build(guidance_from=0.2)  # 10 steps are at t = 900, 800, ..., 0 of 1000
    _, backward = count_backward(pipe)
    guidance = SegmentationGuidance(start=start)
    call(pipe, target="upper", classes=["bright"], num_inference_steps=10, guidance=guidance)
    assert len(backward) == steps


def test_branches_are_computed_once_until_one_is_pushed():
    pipe, batches = build(guidance_from=0.5), []
    handle = pipe.unet.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    call(pipe, target="both", classes=["bright"], num_inference_steps=10)  # of 2 slices
    handle.remove()
    # 900 to 500; at 400 the lower branches are looked at before they get a graph; then 300 to 0
    assert batches == [2] * 5 + [2, 2, 2] + [4] * 4


def test_a_callback_that_sets_branches_apart_is_heeded():
    def apart(pipe, step, timestep, tensors):
        if step == 0:
            return {"latents": tensors["latents"] + torch.arange(4.0)[:, None, None, None]}

    settings = {"target": "both", "classes": ["bright"], "num_inference_steps": 4, "guidance": []}
    images = call(build(), callback_on_step_end=apart, **settings).images
    assert not torch.allclose(images[:, :, 0], images[:, :, 1])


def test_too_few_steps_for_a_late_window_are_refused():
    pipe = build(guidance_from=0.2)  # 5 steps are at t = 800, 600, 400, 200, 0, of which the last is never pushed
    with pytest.raises(ValueError, match=r"`num_inference_steps` must leave a step before the last below 0.2"):
        call(pipe, target="upper", num_inference_steps=5)
    call(pipe, target="upper", num_inference_steps=5, guidance=SegmentationGuidance(start=0.0))
    call(pipe, target="none", num_inference_steps=5)


def test_two_windows_are_one_whole():
    """Guidance in the first and in the second half, as two objects, is guidance throughout."""
    halves = [SegmentationGuidance(stop=0.5), SegmentationGuidance(start=0.5)]
    assert_same(call(build(), guidance=halves, **SETTINGS), call(build(), **SETTINGS), rtol=0, atol=0)


# --- composition and users' own -------------------------------------------------------------------------------------


def test_pushes_add_up():
    """A guidance and its opposite of the same strength cancel where both push alike; unequal ones do not."""

    class Up(Guidance):
        def score(self, x0_consistent):
            return x0_consistent.sum(dim=(1, 2, 3))

    class Down(Up):
        def score(self, x0_consistent):
            return -super().score(x0_consistent)

    plain = call(build(), target="none")
    cancelled = call(build(), target="none", guidance=[Up(strength=0.05), Down(strength=0.05)])
    torch.testing.assert_close(cancelled.images, plain.images, rtol=1e-4, atol=1e-4)
    pushed = call(build(), target="none", guidance=[Up(strength=0.05), Down(strength=0.02)])
    assert (pushed.images - plain.images).norm() > 1e-3 * plain.images.norm()


class RegionVolume(Guidance):
    """Volume of a class inside a region of interest: what a user may write, with a config of its own."""

    tensor_inputs = ["logits", "slice_number"]  # noqa: RUF012

    @register_to_config
    def __init__(self, top: int, label: int = 1, strength: float | None = None, start: float = 0.0, stop: float = 1.0):
        super().__init__(strength, start, stop)

    def score(self, logits, slice_number):
        assert slice_number.max() < 2
        return logits.softmax(1)[:, self.config.label, : self.config.top].sum(dim=(-2, -1))


def test_volume_of_a_region_grows_there():
    pipe, problem = build(), draw_problem(share=0.1)
    plain = call(pipe, problem, target="none", **SETTINGS)
    pushed = call(pipe, problem, target="none", guidance=RegionVolume(top=6), **SETTINGS)
    change = (pushed.segmentations == 1).float() - (plain.segmentations == 1).float()
    inside, outside = change[..., :6, :].mean(), change[..., 6:, :].mean()
    assert inside > 0.02 and inside > 3 * outside.abs()


class Thickness(Guidance):
    """Mean thickness of a class in pixels: twice its area over its perimeter."""

    tensor_inputs = ["logits"]  # noqa: RUF012

    @staticmethod
    def of(tissue):
        down, right = torch.diff(tissue[:, :, :-1], dim=1), torch.diff(tissue[:, :-1], dim=2)
        return 2 * tissue.sum(dim=(-2, -1)) / (down**2 + right**2 + 1e-6).sqrt().sum(dim=(-2, -1))

    def score(self, logits):
        return self.of(logits.softmax(1)[:, 1])


def test_a_tissue_can_be_made_thicker():
    pipe, problem = build(), draw_problem(share=0.1)
    plain = call(pipe, problem, target="none", **SETTINGS)
    pushed = call(pipe, problem, target="none", guidance=Thickness(), **SETTINGS)
    before, after = (Thickness.of((out.segmentations[:, 0, 0] == 1).float()) for out in (plain, pushed))
    assert (after > 1.02 * before).all()


def test_a_classifier_needs_no_segmentation_model():
    class Classifier(nn.Module):
        def forward(self, magnitude):
            return (magnitude[..., :6] - magnitude[..., 6:]).mean(dim=(1, 2, 3))

    classifier = Classifier()

    class ClassifierGuidance(Guidance):
        def score(self, x0_consistent):
            return classifier(x0_consistent.square().sum(1, keepdim=True).add(1e-12).sqrt())

    pipe, problem = build(None), draw_problem(share=0.1)
    plain = call(pipe, problem, target="none", **SETTINGS)
    pushed = call(pipe, problem, target="none", guidance=ClassifierGuidance(), **SETTINGS)
    scores = [classifier(out.images.abs()[:, 0]) for out in (plain, pushed)]
    assert (scores[1] > scores[0]).all()


def test_objects_survive_saving(tmp_path):
    for guidance in (
        SegmentationGuidance("upper", ["bright"], strength=0.02, start=0.1, stop=0.9, objective="volume"),
        RegionVolume(top=5, stop=0.5),
    ):
        folder = tmp_path / type(guidance).__name__
        guidance.save_config(folder)
        loaded = type(guidance).from_config(type(guidance).load_config(folder))
        settings = {"target": "none", "num_inference_steps": 5, "guidance_strength": 0.1}
        assert_same(
            call(build(), guidance=loaded, **settings), call(build(), guidance=guidance, **settings), rtol=0, atol=0
        )


# --- after the step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDIMScheduler", {"set_alpha_to_one": False}),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ],
)
def test_no_noise_is_left_at_the_end_whatever_the_scheduler_ends_with(name, settings):
    scheduler = getattr(diffusers, name).from_config(create_scheduler("v_prediction").config, **settings)
    noise_left = []

    def note(pipe, step, timestep, tensors):
        noise_left.append(not torch.equal(tensors["latents"], tensors["x0"]))
        return {}

    names = ["latents", "x0"]
    call(build(scheduler=scheduler), callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)
    assert noise_left[-2:] == [True, False]


# --- bad input ------------------------------------------------------------------------------------------------------


class Greedy(Guidance):
    tensor_inputs = ["weights"]  # noqa: RUF012


@pytest.mark.parametrize(
    ("model", "guidance", "message"),
    [
        ("bright", [Greedy()], r"Greedy has unknown `tensor_inputs` \['weights'\]"),
        ("bright", SegmentationGuidance("upper", ["bone"]), "`classes` must name classes"),
        (None, SegmentationGuidance("upper", [1]), "asks for logits, but `segmentation_model` is None"),
    ],
)
def test_guidance_that_cannot_work_is_refused(model, guidance, message):
    with pytest.raises(ValueError, match=message):
        call(build(model), target="none", guidance=guidance)


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"`guidance` must be a `sgr_diffusers.Guidance`.* got str"):
        check_guidance(["upper"], ["logits"], ("bright",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "both"}, "`target` must be"),
        ({"objective": "dice"}, "`objective` must be one of"),
        ({"strength": -1.0}, "`strength` must be 0 or larger"),
        ({"start": 0.5, "stop": 0.5}, "`start` and `stop` must be shares"),
        ({"stop": 1.5}, "`start` and `stop` must be shares"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationGuidance(**arguments)


def test_score_has_to_be_written():
    with pytest.raises(NotImplementedError, match="Guidance must define `score`"):
        call(build(), target="none", guidance=Guidance())
