"""Starts worker processes, and lets them end together with the process that started them."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from threading import Thread

__all__ = [
    "check_numbers",
    "end_with_launcher",
    "end_with_parent",
    "helpers",
    "is_helper",
    "local_rank",
    "signal_at_end_of_parent",
]

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


def check_numbers(n_processes: int, n_threads: int) -> None:
    """Check numbers of processes and threads.

    Raises:
        ValueError: they are not from 1 to four times the number of processors.
    """
    most = 4 * (os.cpu_count() or 1)
    if not 1 <= n_threads <= most or not 1 <= n_processes <= most:
        raise ValueError(
            f"`num_threads` and `num_processes` must be from 1 to {most}, four times the number of processors, got "
            f"{n_threads} and {n_processes}."
        )


def is_helper() -> bool:
    """Return whether `helpers`, `torchrun` or `accelerate launch` started this process beside a first one."""
    return os.environ.get("RANK", "0") != "0"


def end_with_launcher() -> None:
    """End this process together with the one that has started it beside others."""
    if "RANK" in os.environ:
        end_with_parent()


def local_rank() -> int:
    """Number of this process among those on this machine, from 0, which chooses its device."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


@contextmanager
def helpers(arguments: Sequence[str], n_processes: int, n_threads: int) -> Iterator[None]:
    """Run the same `sgr` command in further processes, which share the work of this one by claims.

    At the end of the context their ends are waited for; after an error they are ended.

    Args:
        arguments: arguments of `sgr`.
        n_processes: number of processes, this one included. None is started where this is one of several already.
        n_threads: number of threads of each.
    """
    command = [sys.executable, "-m", "sgr_diffusers.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=signal_at_end_of_parent if sys.platform == "linux" else None,
        )
        for rank in range(1, 1 if "RANK" in os.environ else n_processes)
    ]
    try:
        yield
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    for code in filter(None, codes):
        warnings.warn(f"a process ended with code {code}; the others have done its work.", stacklevel=3)


def _watch(parent_id: int, sentinel: int | None) -> None:
    """Wait for the end of the parent, and end this process without any clean-up that could wait for others."""
    if sentinel is not None:
        wait([sentinel])
    while sentinel is None and os.getppid() == parent_id:
        time.sleep(_SECONDS)
    os._exit(1)
