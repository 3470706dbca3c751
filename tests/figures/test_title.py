"""What the title over the figure of a reconstruction says."""

import pytest

from sgr_diffusers.reconstruction.results import figure_title
from sgr_diffusers.reconstruction.settings import SamplingSettings


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"target": "none"}, "Reconstruction without guidance"),
        ({"target": "both"}, "Lower and upper bound of each tissue; volumes of the slice shown"),
        ({"target": "upper"}, "Upper bound of each tissue; volumes of the slice shown"),
        ({"target": "both", "coverage": 0.9}, "Images at the ends of 90% intervals"),
    ],
)
def test_the_title_says_what_the_images_are(settings, title):
    assert figure_title(SamplingSettings(**settings)).startswith(title)
