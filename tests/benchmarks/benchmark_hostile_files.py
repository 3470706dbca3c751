"""Measures the memory and the time that damaged and hostile raw files take before they are refused.

    PYTHONPATH=. python tests/benchmarks/benchmark_hostile_files.py

The files are those of the tests of readers: sizes that are declared and not there, members that unpack to much, groups
nested deep, headers beyond any scanner. Memory is what a file adds to the peak of the process that reads it (Linux).
Prints a row for each file, the greediest first, and the largest values.
"""

import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import pandas as pd

from sgr_diffusers.io.raw_file import read_raw, stored_choices
from sgr_diffusers.utils.options import OptionParser, ScriptHelp
from tests.io.test_hdf5_file import nested
from tests.io.test_ismrmrd_contradictions import REFUSED
from tests.io.test_malformed_files import FILES


def wide(path: Path) -> None:
    """Write an HDF5 file of many links."""
    with h5py.File(path, "w") as file:
        for number in range(20_001):
            file[str(number)] = h5py.SoftLink("/kspace")


def files() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """File name and writer of each hostile file."""
    content = {name: (file, lambda path, data=data: path.write_bytes(data)) for name, (file, data, _) in FILES.items()}
    contradictions = {
        f"ISMRMRD: {name}": ("scan.h5", lambda path, scan=scan: scan.write(path))
        for name, (scan, _) in REFUSED.items()
    }
    made = {
        "groups nested 800 deep": ("scan.h5", lambda path: nested(path, 800)),
        "20001 links": ("scan.h5", wide),
    }
    return content | contradictions | made


def peak() -> int:
    """Largest resident memory in bytes since `/proc/self/clear_refs` was written to."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(path: Path) -> dict[str, object]:
    """Read a file; returns memory, time and the first words of the refusal."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = peak(), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored_choices(path)
            read_raw(path)
        outcome = "read"
    except (ValueError, OSError) as error:
        outcome = str(error).replace(str(path), path.name)[:60]
    return {"MB": (peak() - before) / 1e6, "seconds": time.perf_counter() - start, "outcome": outcome}


def main() -> None:
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (file, write)) in enumerate(files().items()):
            path = Path(folder, str(number), file)
            path.parent.mkdir()
            write(path)
            rows.append({"file": name, "size in MB": path.stat().st_size / 1e6, **measure(path)})
    table = pd.DataFrame(rows).sort_values("MB", ascending=False)
    print(table.to_string(index=False, float_format="{:.2f}".format))
    print(f"{len(table)} files: at most {table['MB'].max():.0f} MB and {table['seconds'].max():.2f} s")


if __name__ == "__main__":
    main()
