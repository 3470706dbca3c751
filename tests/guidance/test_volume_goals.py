import math

import pytest
import torch

from sgr_diffusers.guidance.volume_goals import VolumeGoals, are_attained, push_shares

CLASSES = ("cartilage", "meniscus")


@pytest.mark.parametrize(
    ("goals", "expected"),
    [
        (5.0, [[5.0, 5.0], [5.0, 5.0]]),
        ({"meniscus": 7}, [[math.nan, math.nan], [7.0, 7.0]]),
        ({"cartilage": (2, 3), 2: 4.0}, [[2.0, 3.0], [4.0, 4.0]]),
    ],
)
def test_goals_of_all_classes_or_of_each(goals, expected):
    table = VolumeGoals(goals, CLASSES).table((1, 2), ("lower", "upper"))
    torch.testing.assert_close(table, torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize("goals", [-1.0, math.nan, "5", {"cartilage": (1, 2, 3)}, {"cartilage": (1, "2")}])
def test_what_is_no_volume_is_refused(goals):
    with pytest.raises(ValueError, match="`target_volume_mm3` must be a volume of 0 or larger"):
        VolumeGoals(goals, CLASSES)


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="'bone'"):
        VolumeGoals({"bone": 1.0}, CLASSES)


def test_a_push_weakens_near_the_goal_and_turns_round_beyond_it():
    goals = torch.full((1, 5), 1000.0)
    volumes = torch.tensor([[500.0, 990.0, 1000.0, 1010.0, 2000.0]])
    shares = push_shares(volumes, goals, 1.0)[0].tolist()
    assert shares[0] == 1 and 0 < shares[1] < 1 and shares[2] == 0
    assert shares[3:] == [-shares[1], -1]


def test_without_a_goal_nothing_is_pushed_or_attained():
    volumes, goals = torch.tensor([[3.0]]), torch.tensor([[math.nan]])
    assert push_shares(volumes, goals, 1.0).item() == 0
    assert not are_attained(volumes, goals, 1.0).item()


def test_attained_is_within_5_percent_or_a_voxel():
    volumes, goals = torch.tensor([[104.0, 106.0, 3.0, 0.0]]), torch.tensor([[100.0, 100.0, 1.0, 0.0]])
    assert are_attained(volumes, goals, 1.0).tolist() == [[True, False, False, True]]
    assert are_attained(volumes, goals, 2.0).tolist() == [[True, False, True, True]]
