import os
import time

import pytest

from sgr_diffusers.app.isolation import call_isolated

LIMITS = {"seconds": 60, "memory_mb": 500}


def test_what_the_function_returns_or_raises_comes_back():
    assert call_isolated(os.getpid, **LIMITS) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        call_isolated(divmod, 1, 0, **LIMITS)
    with pytest.raises(TypeError, match="cannot pickle"):
        call_isolated(compile, "1", "code", "eval", **LIMITS)


def test_what_takes_too_long_is_killed():
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"longer to read than the 0\.2 seconds"):
        call_isolated(time.sleep, 600, seconds=0.2, memory_mb=500)
    assert time.monotonic() - started < 300


def test_what_takes_too_much_memory_or_crashes_leaves_this_process_alone():
    with pytest.raises(ValueError, match="more memory to read than the 500 MB"):
        call_isolated(bytearray, 10**9, **LIMITS)
    with pytest.raises(ValueError, match="it is damaged"):
        call_isolated(os.abort, **LIMITS)
