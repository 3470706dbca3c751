"""The contact sheet shows every slice, and the labels over a second copy of each."""

import numpy as np

from sgr_diffusers.figures.contact_sheet import contact_sheet


def test_sheet_has_each_slice_once_and_once_more_with_its_labels(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((5, 12, 10))
    labels = np.zeros((5, 12, 10), np.uint8)
    labels[2, 3:5] = 4
    figure = contact_sheet(images, labels, [f"slice {k}" for k in range(5)], n_columns=3)
    drawn = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 2 * 2 * 3 and len(drawn) == 10
    assert [ax.get_title() for ax in drawn if ax.get_title()] == [f"slice {k}" for k in range(5)]
    overlay = drawn[5].images[1].get_array()  # first row: 3 slices, 3 overlays; the third overlay belongs to slice 2
    assert (overlay.filled(0) == labels[2]).all()
    figure.savefig(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_legend_names_the_colours_of_the_labels():
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[1, 2:4] = 2
    figure = contact_sheet(np.ones((2, 8, 8)), labels, n_columns=2, class_names=["bone", "cartilage"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bone", "cartilage"]
    overlay = figure.axes[3].images[1]
    assert legend.get_patches()[1].get_facecolor()[:3] == tuple(overlay.cmap(overlay.norm(2)))[:3]


def test_without_labels_nothing_is_drawn_twice():
    figure = contact_sheet(np.ones((4, 8, 8)), n_columns=4)
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1]
