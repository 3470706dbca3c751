"""Calls a function in a process of its own, which is killed when it takes too long or too much memory.

Uploads are read there. HDF5 can loop for ever on a damaged file, and nothing inside a process can stop it.
"""

import multiprocessing
import pickle
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ..utils.processes import end_with_parent

__all__ = ["call_isolated", "start_isolation"]

_SECONDS_TO_START = 300  # the first process waits for the imports of all


def start_isolation() -> None:
    """Start the server that the processes are forked from, so that the first visitor need not wait for it."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing.forkserver import ensure_running

        _context()
        ensure_running()


def call_isolated(function: Callable[..., Any], *arguments: Any, seconds: int | float, memory_mb: int | float) -> Any:
    """Call a function of a module with arguments that can be pickled, within limits.

    Args:
        function: function to call.
        *arguments: arguments of the function.
        seconds: duration of the call in seconds after which it is killed.
        memory_mb: memory that it may take beyond that of the imports, in MB; it is limited on Linux alone.

    Returns:
        What the function returns.

    Raises:
        ValueError: a limit is passed, or the process ended by itself; the text can be shown.
        Exception: what the function raises.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments, memory_mb), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(_SECONDS_TO_START):
            raise ValueError("The file could not be read now: this machine is busy. Try again later.")
        receiver.recv_bytes()  # it has started
        if not receiver.poll(seconds):
            raise ValueError(
                f"The file takes longer to read than the {seconds:g} seconds that are allowed here. It may be "
                "damaged: write it again, or cut out the slices of interest."
            )
        is_result, answer = pickle.loads(receiver.recv_bytes())
    except EOFError:
        raise ValueError("The file cannot be read: it is damaged. Write it again.") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(answer, MemoryError):
        raise ValueError(
            f"The file takes more memory to read than the {memory_mb:g} MB that are allowed here. Cut out the slices "
            "of interest."
        ) from answer
    if not is_result:
        raise answer
    return answer


def _context() -> Any:
    """Processes are forked from a server without threads; where there is none, they start from nothing."""
    is_available = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if is_available else "spawn")
    context.set_forkserver_preload(["sgr_diffusers.app.runs"])
    return context


def _answer(
    sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], memory_mb: int | float
) -> None:
    """Call the function and send what it returns or raises."""
    end_with_parent()
    if sys.platform == "linux":
        _limit_memory(memory_mb)
    sender.send_bytes(b"started")
    try:
        answer = pickle.dumps((True, function(*arguments)))
    except Exception as error:
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)
        except Exception:  # an error that cannot be sent
            answer = pickle.dumps((False, ValueError(str(error))))
    sender.send_bytes(answer)


def _limit_memory(memory_mb: int | float) -> None:
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(memory_mb * 1e6), resource.getrlimit(resource.RLIMIT_AS)[1]))
