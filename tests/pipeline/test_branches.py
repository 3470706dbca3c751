"""Numbering of the images of a call."""

import torch

from sgr_diffusers.pipeline.branches import Branches

BRANCHES = Branches(n_slices=2, class_numbers=(3, 1), targets=("lower", "upper"))


def test_the_target_varies_fastest_and_the_slice_slowest():
    every = range(len(BRANCHES))
    assert len(BRANCHES) == 8
    assert BRANCHES.slice_of(every) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert BRANCHES.labels(every).tolist() == [3, 3, 1, 1] * 2
    assert BRANCHES.is_upper(every).tolist() == [False, True] * 4
    assert BRANCHES.first_of_slices == [0, 4]


def test_axes_agree_with_the_numbering():
    numbers = BRANCHES.unflatten(torch.arange(8)[:, None].expand(8, 3))
    assert numbers.shape == (2, 2, 2, 3)
    assert BRANCHES.slice_of([int(numbers[1, 0, 0, 0])]) == [1]
    assert BRANCHES.labels(numbers[:, 1].flatten().tolist()).unique().tolist() == [1]
    assert BRANCHES.is_upper(numbers[:, :, 1].flatten().tolist()).all()


def test_images_of_a_slice_are_equal_after_they_are_expanded():
    images = BRANCHES.expand(torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (8, 2, 4, 3) and BRANCHES.are_equal(images)
    images[5] += 1
    assert not BRANCHES.are_equal(images)
