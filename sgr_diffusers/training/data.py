"""Read and check the training and validation slices that a command line asks for, before the first step."""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from ..data.load import resolve_root
from ..data.selection import SliceSelection, parse_selection, select_slices
from ..data.skm_tea import SkmTeaScan, SkmTeaSlices, list_scans
from .memory import GIB, available_memory

__all__ = [
    "add_data_arguments",
    "check_shift",
    "describe_data",
    "read_ahead",
    "read_selection",
    "scans_of",
    "slices_of",
    "whole_number_from",
]

Item = TypeVar("Item")


def whole_number_from(least: int) -> Callable[[str], int]:
    """Return a type for `argparse`: whole numbers of at least `least`."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return whole_number


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the data is, which slices are taken, how large they are and how far displaced."""
    from_0, from_1 = whole_number_from(0), whole_number_from(1)
    parser.add_argument("--data-dir", required=True, help="folder in the SKM-TEA layout, or a repository of tarballs")
    parser.add_argument("--size", type=from_1, nargs=2, help="crop or pad slices to (y, x); needed where scans differ")
    parser.add_argument("--echo", type=from_1, default=1, help="number of the echo to train on")
    parser.add_argument(
        "--slices", default="all", help="slices to train on: all, paper, n for every n-th, or start:stop:step"
    )
    parser.add_argument(
        "--min-foreground", type=from_0, default=0, help="least number of pixels of tissue in a training slice"
    )
    parser.add_argument("--no-preload", action="store_true", help="read slices from disk instead of holding them all")
    parser.add_argument(
        "--max-shift",
        type=from_0,
        nargs=2,
        default=(0, 0),
        help="largest random displacement (y, x) in pixels (default: none)",
    )


def check_shift(max_shift: Sequence[int], size: Sequence[int]) -> None:
    """Raise ValueError where slices of a size (y, x) could be displaced out of themselves."""
    if any(shift >= length for shift, length in zip(max_shift, size, strict=True)):
        raise ValueError(f"`max_shift` {tuple(max_shift)} leaves nothing of slices of {tuple(size)} pixels. Lower it.")


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items in the same order, while a thread makes the next item.

    For data that is read without worker processes. What making an item raises comes when that item is asked for.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def read_selection(slices: str, min_foreground: int = 0) -> SliceSelection:
    """Parse a selection of slices from a command line.

    Args:
        slices: slices to take: "all", "paper", a number n for every n-th slice of a scan, or "start:stop" or
            "start:stop:step".
        min_foreground: least number of pixels of any tissue.

    Raises:
        ValueError: it cannot be understood.
    """
    if slices == "paper":
        if min_foreground:
            raise ValueError("`slices` paper has its own conditions: pass no `min_foreground`.")
        return parse_selection("paper")
    try:
        parts = [int(part) if part else None for part in slices.split(":")] if slices != "all" else [1]
        if len(parts) > 3:
            raise ValueError("more than two colons")
        known = parse_selection(parts[0] if len(parts) == 1 else slice(*parts))
    except ValueError as error:
        raise ValueError(
            f"`slices` must be all, paper, a number, or start:stop:step, got {slices!r} ({error})."
        ) from error
    return SliceSelection(known.every, known.start, known.stop, min_foreground=min_foreground)


def scans_of(data_dir: str | os.PathLike, split: str) -> list[SkmTeaScan]:
    """List the scans of a split of a folder in the SKM-TEA layout, or of a repository of tarballs, which is fetched.

    Raises:
        FileNotFoundError: there is no such folder or split.
        ValueError: the split lists no scan, or the data is not on a disk.
    """
    root = resolve_root(data_dir)
    if "://" in root:
        raise ValueError(f"`data_dir` {data_dir}: training reads every slice many times. Fetch the files first.")
    scans = list_scans(root, split)
    if not scans:
        raise ValueError(f"`data_dir` {data_dir}: the annotations of the split {split!r} list no scan.")
    return scans


def slices_of(
    data_dir: str | os.PathLike,
    split: str,
    selection: SliceSelection | None = None,
    skip_memory_check: bool = False,
    **settings: Any,
) -> SkmTeaSlices:
    """Open the slices of a split, after a look at the file of every scan, so that none is found missing after hours.

    Args:
        data_dir: folder in the SKM-TEA layout, or repository.
        split: name of the split, "train" or "val".
        selection: selection of slices; all of them if not given.
        skip_memory_check: whether to hold preloaded slices even if they seem not to fit.
        **settings: settings of `SkmTeaSlices`.

    Raises:
        FileNotFoundError: a split or the file of a scan is missing.
        IndexError: a scan does not have the echo.
        MemoryError: slices to be preloaded, by every process of this machine, would not fit.
        ValueError: a file is damaged, sizes differ, or no slice is left.
    """
    scans = scans_of(data_dir, split)
    chosen = None if selection is None else select_slices(scans, selection)
    if chosen is not None and not any(len(rows) for rows in chosen):
        raise ValueError(
            f"No slice of the {len(scans)} scans of the split {split!r} is left by the selection {selection}. Lower "
            "its conditions."
        )
    for scan in scans:
        scan.target(0, settings.get("echo", 1))
        if settings.get("with_labels", True) and not scan.labels_file.exists():
            raise FileNotFoundError(f"{scan.labels_file} is missing: scan {scan.scan_id} has no segmentation.")
    if settings.get("preload") and not skip_memory_check:
        n_slices = sum(map(len, chosen)) if chosen is not None else sum(scan.n_slices for scan in scans)
        _check_memory(n_slices, settings.get("size") or max(scan.matrix_shape[1:] for scan in scans), split)
    return SkmTeaSlices(scans, chosen=chosen, **settings)


def _check_memory(n_slices: int, size: Sequence[int], split: str) -> None:
    """Raise MemoryError where the slices of a split cannot be held by every process of this machine."""
    needed = 8 * n_slices * math.prod(size) * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    available = available_memory(torch.device("cpu"))
    if available is not None and needed > available:
        raise MemoryError(
            f"{n_slices} slices of {size[0]} x {size[1]} of the split {split!r} take {needed / GIB:.1f} GiB and "
            f"{available / GIB:.1f} GiB are available. Read them from disk by --no-preload (and "
            "--dataloader-num-workers 2), take fewer by --slices, or try nevertheless by --skip-memory-check."
        )


def describe_data(dataset: SkmTeaSlices) -> dict[str, Any]:
    """Describe the data that a resumed run must find again."""
    return {
        "scans": [scan.scan_id for scan in dataset.scans],
        "slices": len(dataset),
        "size": list(dataset.size),
        "echo": dataset.echo,
        "quantile": dataset.quantile,
    }
