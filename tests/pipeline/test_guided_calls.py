"""Guidance inside the pipeline: what it does, what it costs, what it leaves alone."""

import pytest
import torch

from sgr_diffusers import SegmentationGuidance
from sgr_diffusers.guidance.strength import default_strength
from tests.helpers.pipeline_parts import (
    SIZE,
    BrightOrNever,
    assert_same,
    build,
    call,
    count_backward,
    draw_problem,
    seeded,
)


def test_bounds_are_ordered_about_the_plain_reconstruction():
    pipe, problem, settings = build(), draw_problem(share=0.1), {"num_inference_steps": 8, "guidance_strength": 0.1}
    both = call(pipe, problem, **settings, classes=["bright"])
    plain = call(pipe, problem, **settings, target="none", classes=["bright"])
    lower, upper = both.volumes_mm3[:, 0].unbind(dim=1)
    assert (lower < plain.volumes_mm3[:, 0, 0]).all() and (plain.volumes_mm3[:, 0, 0] < upper).all()


def test_strength_zero_is_the_plain_reconstruction():
    plain = call(build(), target="none")
    for target in ("lower", "upper"):
        out = call(build(), target=target, guidance_strength=0.0)
        torch.testing.assert_close(out.images, plain.images.expand(-1, 2, -1, -1, -1))


def test_default_strength_depends_on_the_number_of_steps():
    default = call(build(), num_inference_steps=5)
    explicit = call(build(), num_inference_steps=5, guidance_strength=default_strength(1 / 5))
    assert_same(default, explicit, rtol=0, atol=0)


def test_the_scale_multiplies_every_strength():
    settings = {"num_inference_steps": 5, "guidance": [SegmentationGuidance(), SegmentationGuidance(strength=0.1)]}
    scaled = call(build(), **settings, guidance_scale=3.0)
    by_hand = [SegmentationGuidance(strength=3 * default_strength(1 / 5)), SegmentationGuidance(strength=3 * 0.1)]
    assert_same(scaled, call(build(), num_inference_steps=5, guidance=by_hand), rtol=0, atol=0)
    assert_same(call(build(), guidance_scale=0.0), call(build(), guidance_strength=0.0), rtol=0, atol=0)


def test_targets_together_are_the_targets_alone():
    both = call(build())
    for k, target in enumerate(("lower", "upper")):
        torch.testing.assert_close(call(build(), target=target).images[:, :, 0], both.images[:, :, k])


def test_nothing_to_push_costs_no_graph_and_no_backward_pass():
    pipe = build()
    forward, backward = count_backward(pipe)
    out = call(pipe, target="lower", classes=["never"], num_inference_steps=5)
    assert forward == [(2, False)] * 5 and backward == []
    torch.testing.assert_close(out.images, call(pipe, target="none", num_inference_steps=5).images)


def test_only_branches_with_something_to_push_go_backward():
    pipe = build()
    forward, backward = count_backward(pipe)
    call(pipe, num_inference_steps=5)  # a slice has lower bright, upper bright, lower never, upper never
    steps = 4
    # the lower bright branches join after a look in the first step; the last step, fully consistent, is not guided
    assert backward == [4, 2] + [6] * (steps - 1)
    assert forward == [(4, False), (4, True), (2, True)] + [(2, False), (6, True)] * (steps - 1) + [(8, False)]


def test_a_class_that_vanishes_stops_being_pushed():
    class Vanishing(BrightOrNever):
        n_calls = 0

        def forward(self, magnitude):
            self.n_calls += 1  # the probe, a look and a guided step come first; then the class is gone
            logits = super().forward(magnitude)
            return logits if self.n_calls <= 3 else logits - torch.tensor([0.0, 1e3, 0.0])[:, None, None]

    pipe = build(Vanishing())
    forward, backward = count_backward(pipe)
    out = call(pipe, target="lower", classes=["bright"], num_inference_steps=5)
    assert backward == [2, 2]  # that the class is gone is known in the step after
    assert forward == [(2, False), (2, True), (2, True), (2, False), (2, False), (2, False)]
    assert torch.isfinite(torch.view_as_real(out.images)).all()


def test_plain_reconstruction_has_no_graph():
    pipe = build()
    forward, backward = count_backward(pipe)
    call(pipe, target="none")
    assert forward == [(2, False)] * 4 and backward == []


def test_no_gradient_is_left_on_the_networks():
    pipe = build("unet")
    call(pipe)
    for network in (pipe.unet, pipe.segmentation_model):
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_works_inside_inference_mode():
    expected = call(build("unet"))
    pipe = build("unet")
    with torch.inference_mode():
        problem = draw_problem()
        latents = torch.randn(2, 2, *SIZE, generator=seeded(3))
        out = call(pipe, problem)
        call(pipe, problem, latents=latents, eta=0.0)
    assert_same(out, expected, rtol=0, atol=0)
    assert not out.images.is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_prior_with_single_precision_physics(dtype):
    expected = call(build("unet"))
    pipe = build("unet")
    pipe.unet.to(dtype)
    out = call(pipe)
    assert pipe.dtype == dtype and out.images.dtype == torch.complex64
    error = (out.images - expected.images).abs().square().mean().sqrt() / expected.images.abs().square().mean().sqrt()
    assert 0 < error < 0.1
    call(build("unet").to(dtype))  # and of the segmentation model
