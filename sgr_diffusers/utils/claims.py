"""Hands out units of work to any number of processes and machines that share a folder.

A process that does a unit holds a claim on it, a small file in the folder, and touches the file from time to time. A
claim that was not touched for `LEASE_SECONDS`, or whose process has ended on this machine, is stale: another process
takes the unit over. Claims on one unit are numbered, and a unit is taken over by making the file of the next number,
which only one process can do. All that this needs is a folder in which a file can be made once; times are compared by
the clock of the folder.
"""

import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from .files import lock_path

__all__ = ["CLAIMS_FOLDER", "Part", "exclusive", "hand_out", "remove_claims"]

CLAIMS_FOLDER = ".claims"
LEASE_SECONDS = 300.0
_BEATS_A_LEASE = 10
_SECONDS_TO_WRITE = 10.0  # after which a claim is still empty if its process was killed
_SECONDS_TO_WAIT = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The k-th of n parts of the units, which a process begins with.

    Attributes:
        number: number of the part, from 1.
        count: number of parts.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: there is no such part.
        """
        if not 1 <= self.number <= self.count:
            raise ValueError(f"`part` must be K/N with K from 1 to N, got {self.number}/{self.count}.")

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read a part such as "2/8".

        Raises:
            ValueError: the text is no part.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise ValueError(f"`part` must be K/N with K from 1 to N, for example 2/8, got {text!r}.")
        return cls(int(number), int(count))

    @classmethod
    def of_array(cls, environment: Mapping[str, str] = os.environ) -> "Part | None":
        """Find the part of this task of a SLURM array; `None` outside of one."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")
        try:
            task, least, most, step = (int(environment[name]) for name in names)
        except (KeyError, ValueError):
            return None
        return cls((task - least) // step + 1, (most - least) // step + 1)

    def first(self, units: list[T]) -> list[T]:
        """Put the units of this part, every `count`-th one, before the others."""
        own = range(self.number - 1, len(units), self.count)
        return [units[k] for k in own] + [unit for k, unit in enumerate(units) if k not in own]


def hand_out(
    units: Iterable[T],
    folder: str | os.PathLike,
    name: Callable[[T], str],
    is_done: Callable[[T], bool],
    part: Part | None = None,
) -> Generator[T, None, None]:
    """Give the units that are not done, each to one of the processes that call this function.

    A unit is the caller's until it asks for the next one. Once only units of others are left, their ends are waited
    for, and the unit of a process that was killed is given here.

    Args:
        units: all units of work, in the order in which they should be done.
        folder: folder that all processes share; the claims lie in it until `remove_claims`.
        name: function that returns a different name for each unit.
        is_done: function that tells whether the result of a unit is there. Results must appear as a whole.
        part: part of the units to begin with; `None` for the order as it is.

    Yields:
        Units whose results are to be made.

    Raises:
        OSError: the folder cannot be written.
    """
    left = list(units) if part is None else part.first(list(units))
    while left:
        of_others = []
        for unit in left:
            if is_done(unit):
                continue
            with _claim(Path(folder) / CLAIMS_FOLDER, name(unit)) as is_claimed:
                if not is_claimed:
                    of_others.append(unit)
                elif not is_done(unit):  # again: it may have been done just before it was claimed
                    yield unit
        if len(of_others) == len(left):
            time.sleep(_SECONDS_TO_WAIT)
        left = of_others


@contextmanager
def exclusive(folder: str | os.PathLike, name: str) -> Iterator[None]:
    """Within this context no other process can enter it for the same folder and name; others wait.

    Args:
        folder: folder that all processes share.
        name: name of what is done, different from those of units.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    while True:
        with _claim(Path(folder) / CLAIMS_FOLDER, name) as is_claimed:
            if is_claimed:
                yield
                return
        time.sleep(_SECONDS_TO_WAIT)


def remove_claims(folder: str | os.PathLike) -> None:
    """Remove the claims of a folder, unless a process that is at work holds one of them."""
    claims = Path(folder) / CLAIMS_FOLDER
    files = _files(claims)
    if all(map(_is_stale, files)):
        for file in files:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or somebody has just claimed something
            claims.rmdir()


def _files(claims: Path) -> list[Path]:
    """List the files of claims; none where the folder is not there."""
    try:
        return [claims / name for name in os.listdir(claims)]
    except FileNotFoundError:
        return []


@contextmanager
def _claim(claims: Path, name: str) -> Iterator[bool]:
    """Claim a unit for the duration of the context, and say whether that succeeded."""
    key = hashlib.sha256(name.encode()).hexdigest()[:32]
    numbers = sorted(int(file.suffix[1:]) for file in _files(claims) if file.stem == key)
    if numbers and not _is_stale(claims / f"{key}.{numbers[-1]}"):
        yield False
        return
    number = numbers[-1] + 1 if numbers else 0
    path = claims / f"{key}.{number}"
    lock, ended = None, Event()
    heartbeat = Thread(target=_beat, args=(path, ended), daemon=True)
    try:
        claims.mkdir(exist_ok=True)
        path.touch(exist_ok=False)
    except (FileExistsError, FileNotFoundError):  # another process was faster, or has removed the folder
        yield False
        return
    try:  # right after the file is made, so that an interruption does not leave it
        lock = lock_path(path, waits=False)
        # Who holds the claim is written once it is locked: only then may others try the lock.
        path.write_text(json.dumps({"unit": name, "machine": socket.gethostname(), "process": os.getpid()}))
        heartbeat.start()
        yield True
    finally:
        try:
            ended.set()
            if heartbeat.ident is not None:
                heartbeat.join()
        finally:  # an interruption while the thread ends does not leave the file either
            for taken_over in (*numbers, number):
                (claims / f"{key}.{taken_over}").unlink(missing_ok=True)
            if lock is not None:
                os.close(lock)


def _beat(path: Path, ended: Event) -> None:
    """Touch a claim from time to time."""
    while not ended.wait(LEASE_SECONDS / _BEATS_A_LEASE):
        with suppress(OSError):  # another process has taken it over
            os.utime(path)


def _is_stale(path: Path) -> bool:
    """Whether nobody holds a claim any more."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as now:
            age = os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
        content = path.read_text()
    except OSError:  # its unit is done
        return False
    if age > LEASE_SECONDS or not content:
        return age > _SECONDS_TO_WRITE
    if json.loads(content)["machine"] != socket.gethostname():
        return False
    lock = lock_path(path, waits=False)
    if lock is None:
        return False
    os.close(lock)
    return True
