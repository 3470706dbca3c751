import math

import pytest
import torch

from sgr_diffusers.bounds import (
    bounds_from_samples,
    bounds_from_segmentations,
    extreme_samples,
    tissue_masks,
    uncertain_share,
    volume_mm3,
)


def labels_of(*rows):
    return torch.tensor(rows, dtype=torch.uint8)


@pytest.fixture
def segmentations():
    # (batch 1, class 2, target 2, y 1, x 4): class 1 and class 3, lower and upper
    class_1 = labels_of([[1, 0, 0, 2]], [[1, 1, 1, 2]])
    class_3 = labels_of([[0, 3, 0, 0]], [[3, 0, 1, 3]])
    return torch.stack([class_1, class_3])[None]


def test_bounds_of_each_class_come_from_its_own_reconstructions(segmentations):
    bounds = bounds_from_segmentations(segmentations, class_indices=(1, 3), voxel_size_mm=(1.0, 2.0, 0.5))
    assert bounds.lower[0].tolist() == [[[True, False, False, False]], [[False, True, False, False]]]
    assert bounds.upper[0].tolist() == [[[True, True, True, False]], [[True, False, False, True]]]
    assert bounds.boundary[0].tolist() == [[[False, True, True, False]], [[True, False, False, True]]]
    assert bounds.lower_volume_mm3.tolist() == [[1.0, 1.0]]
    assert bounds.upper_volume_mm3.tolist() == [[3.0, 2.0]]
    assert bounds.uncertain_volume_mm3.tolist() == [[2.0, 1.0]]
    assert bounds.uncertain_share.tolist() == [[pytest.approx(2 / 3), 0.5]]


def test_order_of_targets_is_respected(segmentations):
    swapped = bounds_from_segmentations(segmentations.flip(2), (1, 3), targets=("upper", "lower"))
    straight = bounds_from_segmentations(segmentations, (1, 3))
    assert torch.equal(swapped.lower, straight.lower) and torch.equal(swapped.upper, straight.upper)


def test_absent_tissue_has_no_share():
    empty = torch.zeros(1, 1, 2, 3, 3, dtype=torch.uint8)
    bounds = bounds_from_segmentations(empty, (4,))
    assert bounds.uncertain_volume_mm3.item() == 0.0 and math.isnan(bounds.uncertain_share.item())


def test_repeated_reconstruction_picks_the_extremes_of_each_class_and_slice():
    slice_0 = labels_of([[1, 0, 2]], [[1, 1, 0]], [[0, 2, 2]])
    slice_1 = labels_of([[2, 2, 2]], [[1, 1, 1]], [[1, 0, 0]])
    bounds = bounds_from_samples(torch.stack([slice_0, slice_1]), class_indices=(1, 2))
    assert bounds.lower_volume_mm3.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert bounds.upper_volume_mm3.tolist() == [[2.0, 2.0], [3.0, 3.0]]
    assert bounds.upper[0].tolist() == [[[True, True, False]], [[False, True, True]]]
    assert bounds.upper.sum(dim=(-2, -1)).tolist() == bounds.upper_volume_mm3.int().tolist()
    assert bounds.lower.sum().item() == 0


def test_wrong_axes_are_named(segmentations):
    with pytest.raises(ValueError, match="`class_indices` must name the 2 entries"):
        bounds_from_segmentations(segmentations, (1,))
    with pytest.raises(ValueError, match=r"`targets` must name the 2 entries.*target='both'"):
        bounds_from_segmentations(segmentations, (1, 3), targets=("upper",))


def test_volumes_and_shares_are_the_same_for_tensors_and_arrays(segmentations):
    for convert in (lambda array: array, lambda array: array.numpy()):
        masks = tissue_masks(convert(segmentations), (1, 3))
        volumes = volume_mm3(masks, (1.0, 2.0, 0.5))
        assert volumes.tolist() == [[[1.0, 3.0], [1.0, 2.0]]]
        assert volume_mm3(masks, (0.5, 2.0, 3.0), axes=(0, -2, -1)).tolist() == [[3.0, 9.0], [3.0, 6.0]]
        assert uncertain_share(*volumes[0].T).tolist() == pytest.approx([2 / 3, 1 / 2])
        assert [number.tolist() for number in extreme_samples(volumes)] == [[[0, 0]], [[1, 1]]]


def test_one_reconstruction_serves_all_classes(segmentations):
    plain = segmentations[:, :1, :1]  # target="none": the class axis has length 1
    assert tissue_masks(plain, (1, 2, 3))[0, :, 0, 0].int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


LABELS = torch.zeros(1, 2, 2, 4, 4, dtype=torch.uint8)
NAN = float("nan")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"voxel_size_mm": (-1, 1, 1)}, "`voxel_size_mm` must be three positive edge lengths"),
        ({"voxel_size_mm": (1, NAN, 1)}, "`voxel_size_mm` must be three positive edge lengths"),
        ({"voxel_size_mm": (1, 1, 1e300)}, "`voxel_size_mm` must be three positive edge lengths"),
        ({"voxel_size_mm": 1.0}, "`voxel_size_mm` must be three positive edge lengths .*got 1.0"),
        ({"voxel_size_mm": "abc"}, "`voxel_size_mm` must be three positive edge lengths .*got 'abc'"),
        ({"voxel_size_mm": (1, 1)}, "`voxel_size_mm` must be three positive edge lengths"),
        ({"segmentations": LABELS.float()}, "`segmentations` must be .* whole numbers, uint8, got torch.float32"),
        ({"segmentations": LABELS.numpy()}, "`segmentations` must be a torch tensor .*got ndarray"),
        ({"segmentations": LABELS[0]}, r"`segmentations` must be \(batch, class, target, y, x\).*\(2, 2, 4, 4\)"),
        ({"class_indices": (0, 1)}, r"`class_indices` must be label numbers from 1 to 255, got \(0, 1\)"),
        ({"class_indices": (1, 300)}, "`class_indices` must be label numbers from 1 to 255"),
        ({"class_indices": (1.5, 1)}, "`class_indices` must be label numbers from 1 to 255"),
        ({"class_indices": 1}, "`class_indices` must be label numbers from 1 to 255, got 1"),
        ({"class_indices": (1,)}, "`class_indices` must name the 2 entries"),
        ({"targets": None}, "`targets` must name the 2 entries"),
    ],
)
def test_malformed_arguments(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        bounds_from_segmentations(**{"segmentations": LABELS, "class_indices": (1, 2), **arguments})
    if set(arguments) <= {"voxel_size_mm"}:
        with pytest.raises(ValueError, match=words):
            bounds_from_samples(LABELS[0], (1,), **arguments)


@pytest.mark.usefixtures("unchecked_types")
def test_samples_that_cannot_be_bounded():
    for labels, indices, words in (
        (LABELS[0, :, :0], (1,), r"`segmentations` must be \(batch, sample, y, x\), not empty"),
        (LABELS[0], (), "`class_indices` must be label numbers"),
        (LABELS[0].float(), (1,), "`segmentations` must be .* whole numbers"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            bounds_from_samples(labels, indices)
