"""Draw slices of a scan and their labels as a figure, to look at before anything is trained on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer

from .colours import class_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["contact_sheet"]


def contact_sheet(
    images: Float[np.ndarray, "slice y x"],
    labels: Integer[np.ndarray, "slice y x"] | None = None,
    titles: list[str] | None = None,
    n_columns: int = 8,
    class_names: Sequence[str] = (),
) -> "Figure":
    """Draw slices row by row; with labels, each row stands again below itself with the labels over it.

    Args:
        images: magnitudes `(slice, y, x)`; each slice is shown from 0 to 1.1 times its own 0.99 quantile.
        labels: label maps `(slice, y, x)`, 0 for what stays uncoloured.
        titles: titles of the slices, one for each.
        n_columns: number of slices in a row.
        class_names: names of labels 1, 2, ..., for a legend.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    n_labels = 0 if labels is None else int(labels.max())
    colours = ListedColormap([class_colour(label) for label in range(max(n_labels, len(class_names), 1) + 1)])
    layers = 1 if labels is None else 2
    n_rows = -(-len(images) // n_columns) * layers
    aspect = images.shape[1] / images.shape[2]
    figure = Figure(figsize=(1.5 * n_columns, 1.5 * aspect * n_rows + 0.2 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for number, image in enumerate(images):
        row, column = divmod(number, n_columns)
        for layer in range(layers):
            ax = axes[row * layers + layer, column]
            ax.imshow(image, cmap="gray", vmin=0, vmax=1.1 * np.quantile(image, 0.99))
            if layer and labels is not None:
                overlay = np.ma.masked_equal(labels[number], 0)
                ax.imshow(overlay, cmap=colours, vmin=0, vmax=colours.N - 1, alpha=0.75, interpolation="nearest")
            elif titles:
                ax.set_title(titles[number], fontsize=7)
    if class_names:
        handles = [Patch(color=class_colour(label), label=name) for label, name in enumerate(class_names, start=1)]
        figure.legend(handles=handles, loc="outside upper center", ncol=len(handles), fontsize=8, frameon=False)
    return figure
