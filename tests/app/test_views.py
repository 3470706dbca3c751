import base64
import io
import re

import numpy as np
from PIL import Image

from sgr_diffusers.app.views import _coloured, _Frame, _panel, example_view
from sgr_diffusers.figures.bounds import AGREES, COLOURS, VIOLATES


def frame(shape):
    return _Frame((slice(0, shape[0]), slice(0, shape[1])), 1.0, (1.0, 1.0), None)


def test_violations_are_marked_by_more_than_a_colour():
    labels = np.array([[AGREES, VIOLATES]], np.uint8)
    data = re.search(r"base64,([^\"]+)", _coloured(labels, frame(labels.shape)))[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    agrees, violates = np.split(pixels, 2, axis=1)
    assert len(np.unique(agrees.reshape(-1, 4), axis=0)) == 1
    is_white = (violates == 255).all(axis=-1)
    assert is_white.diagonal().all() and is_white[:, ::-1].diagonal().all() and not is_white.all()
    assert violates[0, 1, :3].tolist() == [round(255 * part) for part in COLOURS[VIOLATES][0]]


def test_colours_lie_over_the_outline():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    html = _panel("boundary", np.ones((8, 8), np.float32), frame(mask.shape), mask.astype(np.uint8), mask)
    assert html.index("<svg") < html.rindex("<img")


def test_example_is_described():
    assert re.search(r'<img[^>]* alt="[^"]{50,}"', example_view())
