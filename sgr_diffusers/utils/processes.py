"""Lets a worker process end together with the process that started it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from threading import Thread

__all__ = ["end_with_parent", "signal_at_end_of_parent"]

_PR_SET_PDEATHSIG = 1
_SECONDS = 1.0


def end_with_parent() -> None:
    """End this process at once when the one that started it ends, however that happens.

    A worker whose parent was killed would otherwise wait for work for ever, or go on writing beside the next run.
    To be called once, by the worker: as `initializer` of a pool, or first thing in a process of its own.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        signal_at_end_of_parent()
    Thread(target=_watch, args=(os.getppid(), None if parent is None else parent.sentinel), daemon=True).start()


def signal_at_end_of_parent(signal_number: int = signal.SIGKILL) -> None:
    """Have Linux send a signal to this process when its parent ends; elsewhere nothing happens.

    Args:
        signal_number: signal to send. With `signal.SIGTERM` this is a `preexec_fn` of `subprocess.Popen` for programs
            that end their own children when they are asked to end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


def _watch(parent_id: int, sentinel: int | None) -> None:
    """Wait for the end of the parent, and end this process without any clean-up that could wait for others."""
    if sentinel is not None:
        wait([sentinel])
    while sentinel is None and os.getppid() == parent_id:
        time.sleep(_SECONDS)
    os._exit(1)
