from itertools import islice

import numpy as np
import pytest

from sgr_diffusers.data.sampling import SliceSampler

FOREGROUND = np.arange(20) >= 15


def draws(n, **arguments):
    return list(islice(SliceSampler(20, **arguments), n))


def test_each_item_comes_once_before_any_comes_again():
    indices = draws(60, seed=0)
    for epoch in range(3):
        assert sorted(indices[20 * epoch : 20 * epoch + 20]) == list(range(20))
    assert indices[:20] != indices[20:40]
    assert indices != draws(60, seed=1)


@pytest.mark.parametrize("fraction", [0.0, 0.33, 0.4, 1.0])
def test_share_of_foreground(fraction):
    indices = np.array(draws(3000, seed=0, foreground=FOREGROUND, foreground_fraction=fraction))
    # what is not drawn from the foreground comes from all slices, a quarter of which are foreground here
    assert abs(FOREGROUND[indices].mean() - (fraction + (1 - fraction) / 4)) < 0.01


def test_a_late_start_continues_the_same_sequence():
    arguments = {"seed": 5, "foreground": FOREGROUND, "foreground_fraction": 0.4}
    assert draws(100, **arguments)[37:] == draws(63, start=37, **arguments)


def test_processes_share_out_the_common_batches():
    whole = draws(24, seed=2)
    parts = [draws(12, seed=2, start=3 * rank, stride=(3, 6)) for rank in range(2)]
    assert [index for k in range(4) for part in parts for index in part[3 * k : 3 * k + 3]] == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_items": 0}, "`n_items`"),
        ({"n_items": 20, "foreground_fraction": 1.2}, "`foreground_fraction`"),
        ({"n_items": 20, "foreground_fraction": 0.4}, "no slice shows any tissue"),
        ({"n_items": 2, "foreground": np.zeros(2, bool), "foreground_fraction": 0.4}, "no slice shows any tissue"),
    ],
)
def test_names_a_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        SliceSampler(seed=0, **arguments)
