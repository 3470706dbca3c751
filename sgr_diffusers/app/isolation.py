"""Calls a function in a process of its own, which is killed when it takes too long or too much memory, or is stopped.

Uploads are read there, and runs are made there. HDF5 can loop for ever on a damaged file, and nothing inside a process
can stop that, nor an estimate of coil maps.
"""

import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ..utils.processes import end_with_parent
from .limits import RunStopped

__all__ = ["call_isolated", "start_isolation"]

_SECONDS_TO_START = 300  # the first process waits for the imports of all
_SECONDS_TO_STOP = 0.1


def start_isolation() -> None:
    """Start the server that the processes are forked from, so that the first visitor need not wait for it."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing.forkserver import ensure_running

        _context()
        ensure_running()


def call_isolated(
    function: Callable[..., Any],
    *arguments: Any,
    seconds: int | float,
    memory_mb: int | float | None,
    on_report: Callable[..., None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Any:
    """Call a function of a module with arguments that can be pickled, within limits.

    Args:
        function: function to call.
        *arguments: arguments of the function.
        seconds: duration of the call in seconds after which it is killed.
        memory_mb: memory that it may take beyond that of the imports, in MB; it is limited on Linux alone. `None` for
            no limit, as CUDA needs.
        on_report: function that is called here with what the function there reports; the latter then has one more
            argument, the function to report by. `None` for a function without reports.
        is_stopped: function asked a few times a second whether to kill the call.

    Returns:
        What the function returns.

    Raises:
        TimeoutError: the call took too long.
        MemoryError: the call took too much memory.
        ChildProcessError: the process ended by itself.
        RunStopped: `is_stopped` returned true.
        Exception: what the function raises.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    reports = on_report is not None
    process = context.Process(target=_answer, args=(sender, function, arguments, reports, memory_mb), daemon=True)
    process.start()
    sender.close()
    try:
        _receive(receiver, time.monotonic() + _SECONDS_TO_START, is_stopped)  # it has started
        end = time.monotonic() + seconds
        while True:
            kind, content = _receive(receiver, end, is_stopped)
            if kind != "report":
                break
            if on_report is not None:
                on_report(*content)
    except EOFError:
        raise ChildProcessError("The process ended by itself.") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if kind == "error":
        raise content
    return content


def _receive(receiver: Connection, end: float, is_stopped: Callable[[], bool]) -> tuple[str, Any]:
    """Wait for the next message, up to a time of the monotonic clock."""
    while not is_stopped():
        if receiver.poll(max(min(_SECONDS_TO_STOP, end - time.monotonic()), 0)):
            return pickle.loads(receiver.recv_bytes())
        if time.monotonic() >= end:
            raise TimeoutError("The call takes too long.")
    raise RunStopped


def _context() -> Any:
    """Processes are forked from a server without threads; where there is none, they start from nothing."""
    is_available = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if is_available else "spawn")
    context.set_forkserver_preload(["sgr_diffusers.app.runs", "diffusers.guiders", "monai.networks.nets"])
    return context


def _answer(
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    reports: bool,
    memory_mb: int | float | None,
) -> None:
    """Call the function, and send what it reports, returns or raises."""
    end_with_parent()
    if sys.platform == "linux" and memory_mb is not None:
        _limit_memory(memory_mb)

    def report(*content: Any) -> None:
        sender.send_bytes(pickle.dumps(("report", content)))

    sender.send_bytes(pickle.dumps(("start", None)))
    try:
        answer = pickle.dumps(("result", function(*arguments, *([report] if reports else []))))
    except Exception as error:
        if isinstance(error, RuntimeError) and "allocate memory" in str(error):  # of torch
            error = MemoryError(str(error))
        try:
            answer = pickle.dumps(("error", error))
            pickle.loads(answer)
        except Exception:  # an error that cannot be sent
            answer = pickle.dumps(("error", ValueError(str(error))))
    sender.send_bytes(answer)


def _limit_memory(memory_mb: int | float) -> None:
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(memory_mb * 1e6), resource.getrlimit(resource.RLIMIT_AS)[1]))
