"""Which guidance pushes when, and how much."""

import pytest

from sgr_diffusers import SegmentationGuidance
from sgr_diffusers.guidance.plan import guidance_plan, scale_guidance

DEFAULTS, HAS_SET_IN = [0.1, 0.2, 0.3, 0.4], [False, True, True, True]


@pytest.mark.parametrize(
    ("guidance", "strength", "expected"),
    [
        (SegmentationGuidance(), None, [None, 0.2, 0.3, None]),
        (SegmentationGuidance(), 0.7, [None, 0.7, 0.7, None]),
        (SegmentationGuidance(strength=0.5), 0.7, [None, 0.5, 0.5, None]),
        (SegmentationGuidance(start=0.0), None, [0.1, 0.2, 0.3, None]),
        (SegmentationGuidance(start=0.0, stop=0.5), None, [0.1, 0.2, None, None]),
        (SegmentationGuidance(start=0.75), None, [None, None, None, None]),
    ],
)
def test_windows_and_strengths(guidance, strength, expected):
    plan = guidance_plan([guidance], DEFAULTS, HAS_SET_IN, strength)
    assert plan == [[] if own is None else [(guidance, own)] for own in expected]


def test_several_push_in_their_order():
    early, late = SegmentationGuidance(start=0.0, strength=1.0), SegmentationGuidance(strength=2.0)
    plan = guidance_plan([early, late], DEFAULTS, HAS_SET_IN)
    assert plan == [[(early, 1.0)], [(early, 1.0), (late, 2.0)], [(early, 1.0), (late, 2.0)], []]


def test_guidance_of_no_strength_is_left_out():
    one, other = SegmentationGuidance(), SegmentationGuidance()
    assert scale_guidance([(one, 0.5), (other, 0.0)], 2.0) == [(one, 1.0)]
    assert scale_guidance([(one, 0.5)], 0.0) == []
