"""Spoils files at random, and reads them in a process that is killed when it hangs."""

import multiprocessing
import resource
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from sgr_diffusers.io.raw_file import read_raw, stored_choices

SECONDS, MEMORY_BYTES = 5.0, 2 * 10**9


def spoil(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a file in one of the ways in which disks, transfers and attackers do; half of them near its start."""
    start = int(rng.integers(min(len(content), 1000) if rng.random() < 0.5 else len(content)))
    stop = start + int(rng.integers(1, 65))
    before, part, after = content[:start], content[start:stop], content[stop:]
    noise = rng.integers(0, 256, stop - start, dtype=np.uint8).tobytes()
    extreme = bytes([int(rng.choice([0, 1, 127, 128, 255]))])
    kind = int(rng.integers(7))
    if kind == 0:  # truncated
        return before
    if kind == 1:  # one bit
        return before + bytes([part[0] ^ 1 << int(rng.integers(8))]) + part[1:] + after
    if kind == 2:  # one extreme byte
        return before + extreme + part[1:] + after
    changed = (extreme * len(part), noise[: len(part)], b"", noise + part)[kind - 3]
    return before + changed + after


def read_until_killed(paths: list[Path]) -> dict[str, str]:
    """Read files in a process with a limit of memory; one that takes too long for a file is killed.

    Returns:
        What is wrong with the reading of a file, by its name: a hang, a crash, or an error that is none of ours.
    """
    context = multiprocessing.get_context("spawn")
    wrong = {}
    paths = list(paths)
    while paths:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_read_all, args=(sender, paths))
        process.start()
        sender.close()
        try:
            receiver.recv()  # it has started
            while paths:
                problem = receiver.recv() if receiver.poll(SECONDS) else f"takes more than {SECONDS:g} s"
                name = paths.pop(0).name
                if problem is not None:
                    wrong[name] = problem
                if problem is not None and problem.startswith("takes"):
                    break
        except EOFError:
            wrong[paths.pop(0).name] = "ends the process that reads it"
        finally:
            process.kill()
            process.join()
            receiver.close()
    return wrong


def _read_all(sender: Connection, paths: list[Path]) -> None:
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))
    warnings.simplefilter("ignore")
    sender.send(None)
    for path in paths:
        sender.send(_problem(path))


def _problem(path: Path) -> str | None:
    """Read a file; return what is wrong with the way in which that ended, if anything."""
    try:
        stored_choices(path)
        read_raw(path)
    except (ValueError, OSError) as error:
        if path.stem not in str(error):
            return f"the message does not name the file: {error}"
    except BaseException:
        return traceback.format_exc()
    return None
