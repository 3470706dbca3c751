import io

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from sgr_diffusers.figures.bounds import (
    AGREES,
    DEVIATES,
    UNCERTAIN,
    VIOLATES,
    BoundPanels,
    Panel,
    PanelRow,
    bound_row,
    compare_bound,
    draw_rows,
    joint_window,
)


def pixels(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


def test_colours_are_those_of_the_papers_figure_3():
    reference, bound = pixels("##.."), pixels("#.#.")
    # lower: leaving out a part of S_f is allowed, holding what is not in S_f is not
    assert compare_bound(bound, reference, is_upper=False).tolist() == [[AGREES, DEVIATES, VIOLATES, 0]]
    # upper: the other way round
    assert compare_bound(bound, reference, is_upper=True).tolist() == [[AGREES, VIOLATES, DEVIATES, 0]]
    assert compare_bound(bound, None, is_upper=True).tolist() == [[AGREES, 0, AGREES, 0]]


def test_window_is_square_holds_the_masks_and_stays_inside():
    one, other = np.zeros((96, 80), bool), np.zeros((96, 80), bool)
    one[2:5, 30:40] = True
    other[10:12, 60:76] = True
    rows, columns = joint_window([one, other], min_size=30, margin=4)
    assert rows.stop - rows.start == columns.stop - columns.start == 46 + 8
    assert 0 <= rows.start <= 2 and 12 <= rows.stop <= 96
    assert 0 <= columns.start <= 30 and 76 <= columns.stop <= 80


def test_window_of_nothing_is_the_middle_and_of_a_small_image_all_of_it():
    rows, columns = joint_window([np.zeros((96, 80), bool)])
    assert (rows, columns) == (slice(33, 63), slice(25, 55))
    assert joint_window([np.zeros((12, 10), bool)]) == (slice(0, 12), slice(0, 10))


@pytest.fixture
def view():
    rng = np.random.default_rng(0)
    image = rng.random((40, 40)).astype(np.float32)
    lower, reference, upper = (np.zeros((40, 40), bool) for _ in range(3))
    lower[18:20, 10:20] = True
    reference[17:21, 10:20] = True
    upper[16:22, 9:20] = True
    return BoundPanels(image, image, lower, image, upper, image, reference)


def test_row_of_a_bound(view):
    row = bound_row(view, "meniscus", joint_window(view.masks), {"lower": "20 mm"})
    titles = [panel.title for panel in row.panels]
    assert titles == [
        "fully sampled",
        "zero-filled",
        "lower reconstruction",
        "lower bound",
        "upper reconstruction",
        "upper bound",
        "uncertainty boundary",
    ]
    boundary = row.panels[-1].overlay == UNCERTAIN
    assert np.array_equal(boundary, view.upper & ~view.lower)
    assert row.panels[titles.index("lower bound")].caption == "20 mm"


def test_row_without_reference_and_lower_bound(view):
    row = bound_row(
        BoundPanels(view.zero_filled, upper_image=view.upper_image, upper=view.upper), "", (slice(0, 40),) * 2
    )
    assert [panel.title for panel in row.panels] == ["zero-filled", "upper reconstruction", "upper bound"]
    assert set(np.unique(row.panels[-1].overlay)) == {0, AGREES}


def test_figure_shows_every_colour_and_touches_no_global_state(view):
    backend = matplotlib.get_backend(auto_select=False)
    wrong = np.zeros((40, 40), bool)
    wrong[15, 12:18] = True
    violated = BoundPanels(
        view.zero_filled, view.lower_image, view.lower | wrong, view.upper_image, view.upper, view.fully_sampled,
        view.reference,
    )  # fmt: skip
    figure = draw_rows([bound_row(violated, "meniscus", joint_window(view.masks))], "title")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    drawn = imread(file)[..., :3]
    hues = {
        "blue": (drawn[..., 2] > drawn[..., 0] + 0.2) & (drawn[..., 2] > drawn[..., 1] + 0.1),
        "yellow": (drawn[..., 0] > drawn[..., 2] + 0.2) & (drawn[..., 1] > drawn[..., 2] + 0.2),
        "vermilion": (drawn[..., 0] > drawn[..., 1] + 0.3) & (drawn[..., 0] > drawn[..., 2] + 0.3),
    }
    assert all(hue.sum() > 50 for hue in hues.values()), {name: int(hue.sum()) for name, hue in hues.items()}
    assert matplotlib.get_backend(auto_select=False) == backend
    with pytest.raises(ValueError, match="at least one row"):
        draw_rows([])


@pytest.mark.parametrize("n_panels", [2, 5, 7])
def test_the_legend_fits_into_the_figure(n_panels):
    labels = np.arange(36, dtype=np.uint8).reshape(6, 6) % 5
    view = slice(0, 6), slice(0, 6)
    panels = [Panel("panel", np.ones((6, 6)), overlay=labels, outline=labels > 2)] * n_panels
    figure = draw_rows([PanelRow("tissue", panels, view, 1.0)], "title")
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 5
    assert legend.get_window_extent().width <= figure.bbox.width
