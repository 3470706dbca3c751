import pytest
import torch

from sgr_diffusers.pipeline.volume_search import MOST_SCALE, scale_to_goals


def bright_pixels(images):
    return (images.real > 0.5).sum(dim=(0, -2, -1)).float()


@pytest.fixture
def ramp():
    """Unguided and guided images of two slices; the brighter, the more pixels exceed one half."""
    plain = torch.linspace(0, 1, 80).reshape(1, 8, 10).repeat(2, 1, 1).to(torch.complex64)
    change = torch.tensor([-0.2, 0.2]).reshape(1, 1, 2, 1, 1)
    return plain[:, None, None] + change, plain


def test_volumes_of_all_slices_together_come_to_the_goals(ramp):
    goals = torch.tensor([[70.0, 96.0]])  # of 80 pixels without guidance, 48 and 112 with it
    images = scale_to_goals(*ramp, bright_pixels, goals)
    torch.testing.assert_close(bright_pixels(images), goals, rtol=0, atol=1)


def test_beyond_the_guided_images_there_is_little_to_find(ramp):
    images = scale_to_goals(*ramp, bright_pixels, torch.tensor([[0.0, 160.0]]))
    guided, plain = ramp
    scales = ((images - plain[:, None, None]) / (guided - plain[:, None, None])).real
    assert (scales > 1).all() and (scales <= MOST_SCALE).all()


def test_a_goal_on_the_other_side_of_the_unguided_volume_gives_the_unguided_images(ramp):
    _, plain = ramp
    images = scale_to_goals(*ramp, bright_pixels, torch.tensor([[84.0, 76.0]]))  # away from what guidance changed
    assert torch.equal(images, plain[:, None, None].expand_as(images))


def test_images_that_guidance_did_not_change_stay(ramp):
    _, plain = ramp
    same = plain[:, None, None].repeat(1, 1, 2, 1, 1)
    assert torch.equal(scale_to_goals(same, plain, bright_pixels, torch.tensor([[10.0, 150.0]])), same)
