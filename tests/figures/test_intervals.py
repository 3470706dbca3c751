import numpy as np
import pytest
from matplotlib.figure import Figure

from sgr_diffusers.figures.bounds import PanelRow, draw_rows
from sgr_diffusers.figures.intervals import Intervals, draw_intervals

CALIBRATED = Intervals(
    "interval",
    ["4x", "8x"],
    lower=[90.0, 60.0],
    upper=[110.0, 150.0],
    known=100.0,
    points=[98.0, 105.0],
    images=[(90.0, 110.0), (80.0, 149.0)],
    attained=[(True, True), (False, True)],
)


def drawn(chart):
    axes = Figure().subplots()
    draw_intervals(axes, chart)
    return axes


def marks(axes, marker):
    """Volume and fill of each mark of a kind."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [(float(np.squeeze(line.get_xdata())), line.get_markerfacecolor()) for line in lines]


def test_bars_are_the_intervals_and_dots_the_images_at_their_ends():
    axes = drawn(CALIBRATED)
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(90.0, 20.0), (60.0, 90.0)]
    assert marks(axes, "o") == [(90.0, "black"), (110.0, "black"), (80.0, "white"), (149.0, "black")]
    assert [volume for volume, _ in marks(axes, "D")] == [98.0, 105.0]


def test_bounds_without_calibration_have_no_marks():
    axes = drawn(Intervals("lower to upper", ["4x"], [1.0], [2.0], known=1.5))
    assert not marks(axes, "o") and not marks(axes, "D") and len(axes.patches) == 1


def test_everything_drawn_lies_within_the_axis():
    axes = drawn(Intervals("interval", ["4x"], [10.0], [20.0], 50.0, [15.0], [(5.0, 80.0)], [(False, False)]))
    low, high = axes.get_xlim()
    assert low < 0 and high > 80


@pytest.mark.parametrize(
    ("chart", "texts"),
    [
        (
            CALIBRATED,
            {
                "calibrated interval",
                "point estimate",
                "image at its end",
                "image short of its end",
                "volume in the fully sampled image",
            },
        ),
        (Intervals("lower to upper", ["4x"], [1.0], [2.0], known=1.5), {"volume in the fully sampled image"}),
        (Intervals("lower to upper", ["4x"], [1.0], [2.0]), set()),
    ],
)
def test_the_legend_explains_what_occurs(chart, texts):
    row = PanelRow("tissue", [chart], (slice(0, 1), slice(0, 1)), 1.0)
    legends = draw_rows([row], "title").legends
    assert texts == {text.get_text() for legend in legends for text in legend.get_texts()}
    assert bool(legends) == bool(texts)
