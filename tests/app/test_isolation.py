import os
import time

import pytest

from sgr_diffusers.app.isolation import call_isolated
from sgr_diffusers.app.limits import AppLimits, RunStopped
from sgr_diffusers.app.runs import read_isolated

LIMITS = {"seconds": 60, "memory_mb": 500}


def report_and_sleep(seconds, report):
    report("process", os.getpid())
    time.sleep(seconds)
    return "slept"


def test_what_the_function_reports_returns_or_raises_comes_back():
    reports = []
    assert call_isolated(report_and_sleep, 0, on_report=lambda *content: reports.append(content), **LIMITS) == "slept"
    assert reports[0][0] == "process" and reports[0][1] != os.getpid()
    with pytest.raises(ZeroDivisionError):
        call_isolated(divmod, 1, 0, **LIMITS)
    with pytest.raises(TypeError, match="cannot pickle"):
        call_isolated(compile, "1", "code", "eval", **LIMITS)


def test_what_takes_too_long_or_is_stopped_is_killed():
    started, reports = time.monotonic(), []
    with pytest.raises(TimeoutError):
        call_isolated(time.sleep, 600, seconds=0.2, memory_mb=None)
    with pytest.raises(RunStopped):
        call_isolated(
            report_and_sleep,
            600,
            on_report=lambda *content: reports.append(content),
            is_stopped=lambda: reports,
            **LIMITS,
        )
    assert time.monotonic() - started < 300
    with pytest.raises(ProcessLookupError):
        os.kill(reports[0][1], 0)


def test_what_takes_too_much_memory_or_crashes_leaves_this_process_alone():
    with pytest.raises(MemoryError):
        call_isolated(bytearray, 10**9, **LIMITS)
    with pytest.raises(ChildProcessError):
        call_isolated(os.abort, **LIMITS)


def test_a_visitor_is_told_which_limit_a_file_passes():
    limits = AppLimits(max_reading_seconds=0.2, max_reading_mb=500)
    with pytest.raises(ValueError, match=r"longer to read than the 0\.2 seconds"):
        read_isolated(time.sleep, 600, limits=limits)
    with pytest.raises(ValueError, match="more memory to read than the 500 MB"):
        read_isolated(bytearray, 10**9, limits=AppLimits(max_reading_mb=500))
    with pytest.raises(ValueError, match="it is damaged"):
        read_isolated(os.abort, limits=AppLimits())
