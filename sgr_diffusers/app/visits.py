"""Keeps, for each visitor, the flag that stops a run and the folder of results, which is deleted when they leave."""

import shutil
import tempfile
import threading
from pathlib import Path

__all__ = ["Visits"]


class Visits:
    """Flags and result folders of all open pages.

    Args:
        folder: folder of the results; a folder of its own for each visitor is made in it.
    """

    def __init__(self, folder: Path):
        """Begin without visitors."""
        self._folder = folder
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}
        self._results: dict[str, Path] = {}

    def begin_run(self, visitor: str) -> threading.Event:
        """Return the flag of a new run, which `stop` sets."""
        with self._lock:
            self._stops[visitor] = threading.Event()
            return self._stops[visitor]

    def stop(self, visitor: str) -> None:
        """Stop the visitor's run, if there is one."""
        with self._lock:
            flag = self._stops.pop(visitor, None)
        if flag is not None:
            flag.set()

    def new_folder(self, visitor: str) -> Path:
        """Make an empty folder for the results of a run; that of the run before is deleted."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        with self._lock:
            previous, self._results[visitor] = self._results.get(visitor), folder
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)
        return folder

    def leave(self, visitor: str) -> None:
        """Stop the run and delete the results of a visitor whose page was closed."""
        self.stop(visitor)
        with self._lock:
            folder = self._results.pop(visitor, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
