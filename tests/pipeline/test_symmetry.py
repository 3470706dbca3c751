"""Symmetries by which an equivariant prior sees the images of each step."""

import torch
from diffusers import UNet2DModel

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.pipeline.symmetry import Symmetry
from tests.helpers.pipeline_parts import SIZE, build, build_unet, call, seeded

STEPS = range(16)


def test_each_symmetry_is_undone():
    images = torch.randn(2, 2, *SIZE, generator=seeded())
    for symmetry in map(Symmetry.of_step, STEPS):
        torch.testing.assert_close(symmetry.undo(symmetry.apply(images)), images)


def test_eight_steps_see_all_orientations_and_sixteen_both_signs_of_the_phase():
    image = torch.zeros(1, 2, 3, 3)
    image[0, 0, 0, 1] = 1
    image[0, 0, 0, 0] = 2
    seen = [Symmetry.of_step(number).apply(image).norm(dim=1) for number in range(8)]
    assert len({tuple(magnitude.round().flatten().tolist()) for magnitude in seen}) == 8
    assert [Symmetry.of_step(number).is_conjugated for number in STEPS] == 8 * [False] + 8 * [True]
    phases = torch.polar(torch.ones(16), torch.tensor([Symmetry.of_step(number).phase for number in STEPS]))
    assert phases.mean().abs() < 0.1


class Scaling(UNet2DModel):
    """A prior to which orientation and phase mean nothing."""

    def forward(self, sample, timestep, return_dict=True):
        return (0.1 * sample * (1 + 0.1 * sample.square().sum(dim=1, keepdim=True)),)


def images_of(is_equivariant, unet, **settings):
    return call(build(unet=unet, is_equivariant=is_equivariant), num_inference_steps=9, **settings).images


def test_an_equivariant_network_gives_the_same_bounds():
    expected = images_of(False, build_unet(Scaling))
    torch.testing.assert_close(images_of(True, build_unet(Scaling)), expected, rtol=1e-3, atol=1e-3)


def test_another_network_gives_others_whatever_the_batch_size():
    images = images_of(True, build_unet())
    assert not torch.allclose(images, images_of(False, build_unet()), rtol=1e-3)
    torch.testing.assert_close(images_of(True, build_unet(), batch_size=1), images, rtol=1e-3, atol=1e-4)


def test_the_checkpoint_keeps_the_setting(tmp_path):
    build("unet", is_equivariant=True).save_pretrained(tmp_path)
    assert SGRMRIPipeline.from_pretrained(tmp_path).config.is_equivariant
