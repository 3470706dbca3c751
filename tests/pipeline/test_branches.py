"""Numbering of the images of a call."""

import torch

from sgr_diffusers.pipeline.branches import Branches

BRANCHES = Branches(n_slices=2, class_numbers=(3, 1), targets=("lower", "upper"))


CPU = torch.device("cpu")


def test_the_target_varies_fastest_and_the_slice_slowest():
    every = BRANCHES.select(range(len(BRANCHES)), CPU)
    assert len(BRANCHES) == 8
    assert every.slice_number.tolist() == every.slices.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert every.class_number.tolist() == [3, 3, 1, 1] * 2
    assert every.is_upper.tolist() == [False, True] * 4
    assert BRANCHES.first_of_slices == [0, 4]


def test_axes_agree_with_the_numbering():
    numbers = BRANCHES.unflatten(torch.arange(8)[:, None].expand(8, 3))
    assert numbers.shape == (2, 2, 2, 3)
    assert BRANCHES.select([int(numbers[1, 0, 0, 0])], CPU).slice_number.tolist() == [1]
    assert BRANCHES.select(numbers[:, 1].flatten().tolist(), CPU).class_number.unique().tolist() == [1]
    assert BRANCHES.select(numbers[:, :, 1].flatten().tolist(), CPU).is_upper.all()


def test_images_in_a_row_and_images_of_one_slice_are_selected_without_a_copy():
    in_a_row, apart = BRANCHES.select([4, 5, 6], CPU), BRANCHES.select([1, 4], CPU)
    assert (in_a_row.index, in_a_row.slices) == (slice(4, 7), slice(1, 2))
    assert apart.index.tolist() == [1, 4] and apart.slices == slice(0, 2)


def test_branches_start_from_the_same_noise_and_samples_do_not():
    images = BRANCHES.expand(torch.arange(2.0))
    assert images.tolist() == [0.0] * 4 + [1.0] * 4
    assert BRANCHES.share_noise and not Branches(2, (0,), ("sample_0", "sample_1")).share_noise
