"""Every scheduler class of the installed diffusers is in exactly one of the tables."""

import inspect

import diffusers

from sgr_diffusers.schedulers.support import NATIVE_TYPES, NOISE_LEVEL, REFUSED


def scheduler_classes():
    names = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")]
    return [name for name in names if inspect.isclass(getattr(diffusers.schedulers, name))]


def test_every_scheduler_of_diffusers_is_in_one_table():
    found = set(scheduler_classes())
    tables = set(NOISE_LEVEL) | set(REFUSED)
    assert found - tables == set(), "decide for each: NOISE_LEVEL or REFUSED in sgr_diffusers/schedulers/support.py"
    assert not set(NOISE_LEVEL) & set(REFUSED)
    assert set(NOISE_LEVEL) == set(NATIVE_TYPES)
    assert len(found) > 40  # the listing itself works
