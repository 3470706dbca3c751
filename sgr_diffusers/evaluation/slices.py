"""Choose the scans and slices to evaluate from a data folder by a protocol; record what identifies the data."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from ..data.scan_files import check_kspace_file, read_annotations
from ..data.scan_labels import check_labels_file, file_labels
from ..data.selection import PAPER, SliceSelection, parse_selection
from ..data.skm_tea import SKM_TEA, SkmTeaScan, known_data, list_scans, merge_labels
from ..data.synthetic.findings import labels_without_findings

__all__ = ["EvaluationData", "choose_data", "choose_examples", "manual_labels", "parse_protocol"]

_LIST = re.compile(r"\d+(,\d+)*")
_RANGE = re.compile(r"(\d*):(\d*)(?::(\d+))?")


@dataclass(frozen=True)
class EvaluationData:
    """What is evaluated.

    Attributes:
        name: name of the data: "SKM-TEA", or what the annotations say of themselves.
        scans: scans to evaluate, in the order of the annotations.
        slices: slices of each scan, upward.
        finding_slices: further slices of scans with a rare finding that show it; they are scored by themselves.
        fingerprint: fingerprint of the annotations and sizes of the files of each scan.
    """

    name: str
    scans: dict[str, SkmTeaScan]
    slices: dict[str, tuple[int, ...]]
    finding_slices: dict[str, tuple[int, ...]]
    fingerprint: dict[str, str]


def parse_protocol(text: str, min_foreground: int = 20) -> SliceSelection | tuple[int, ...]:
    """Parse the slices that an option names.

    Args:
        text: "relevant" (slices with at least `min_foreground` labelled pixels), "paper" (every 8th of those with 82,
            counted through all scans), "all", a number n for every n-th slice of each scan, "START:STOP" or
            "START:STOP:STEP", or numbers of slices with commas between them.
        min_foreground: least number of labelled pixels of a slice, for "relevant".

    Raises:
        ValueError: it is none of these.
    """
    if text == "relevant":
        return SliceSelection(min_foreground=min_foreground)
    if text.isdigit() and int(text) > 0:
        return parse_selection(int(text))
    if _LIST.fullmatch(text) and "," in text:
        return tuple(sorted({int(part) for part in text.split(",")}))
    match = _RANGE.fullmatch(text)
    if match and match[3] != "0":
        start, stop, step = (int(part) if part else None for part in match.groups())
        return SliceSelection(every=step or 1, start=start or 0, stop=stop)
    if text in ("all", "paper"):
        return parse_selection(text)
    raise ValueError(
        f"`slices` must be 'relevant', 'paper', 'all', n for every n-th, START:STOP[:STEP], or numbers like 20,24,30, "
        f"got {text!r}."
    )


def choose_data(
    data_dir: str | os.PathLike,
    split: str,
    protocol: SliceSelection | tuple[int, ...],
    accelerations: Sequence[float],
    n_slices_per_scan: int | None = None,
    max_scans: int | None = None,
    n_finding_slices: int = 0,
    echo: int = 1,
    with_labels: bool = True,
) -> EvaluationData:
    """Choose slices and check that their files can be used, before anything is computed.

    Args:
        data_dir: folder in the SKM-TEA layout.
        split: name of the split.
        protocol: protocol from `parse_protocol`.
        accelerations: accelerations whose masks every scan must have.
        n_slices_per_scan: number of slices of each scan, evenly spread over those that the protocol leaves; `None` for
            all.
        max_scans: largest number of scans; the first ones are taken.
        n_finding_slices: number of further slices of each scan with a rare finding, those with most of the finding.
        echo: number of the echo, 1 or 2; the paper uses 1.
        with_labels: whether every scan must have a segmentation.

    Raises:
        FileNotFoundError: there is no such folder or split.
        ValueError: no slice is left, or a file is damaged or lacks a mask; scan and file are named.
    """
    for name, value in (("n_slices_per_scan", n_slices_per_scan), ("max_scans", max_scans)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if n_finding_slices < 0:
        raise ValueError(f"`finding_slices` must be 0 or larger, got {n_finding_slices}.")
    root = os.path.abspath(os.fspath(data_dir))
    listed = list_scans(root, split)
    chosen = listed[:max_scans]
    for scan in chosen:
        for acceleration in accelerations:
            check_kspace_file(scan.scan_id, str(scan.kspace_file), scan.matrix_shape, echo, acceleration)
        if with_labels:
            check_labels_file(scan.scan_id, str(scan.labels_file), scan.matrix_shape)
    allowed = _select(listed if protocol == PAPER else chosen, protocol)
    slices = {scan.scan_id: _spread(allowed[scan.scan_id], n_slices_per_scan) for scan in chosen}
    slices = {scan_id: numbers for scan_id, numbers in slices.items() if numbers}
    if not slices:
        raise ValueError(
            f"no slice is left to evaluate: {len(chosen)} scans in the split {split!r} of {data_dir}, slices "
            f"{protocol}. Choose other `slices`, or a smaller `min_foreground`."
        )
    scans = {scan.scan_id: scan for scan in chosen if scan.scan_id in slices}
    name, fingerprint = _name(root, split, scans.values()), _fingerprint(root, split, scans.values())
    findings = {}
    if with_labels and n_finding_slices > 0:
        findings = {scan_id: _finding_slices(scan, n_finding_slices) for scan_id, scan in scans.items()}
    return EvaluationData(
        name, scans, slices, {scan_id: of_scan for scan_id, of_scan in findings.items() if of_scan}, fingerprint
    )


def _select(
    scans: Iterable[SkmTeaScan], protocol: SliceSelection | tuple[int, ...]
) -> dict[str, Integer[np.ndarray, " slice"]]:
    """Return the slices of each scan that the protocol allows, of which `_spread` takes some."""
    selected, n_before = {}, 0
    for scan in scans:
        if isinstance(protocol, tuple):
            selected[scan.scan_id] = np.array([n for n in protocol if n < scan.n_slices], dtype=np.int64)
            continue
        counts = None
        if protocol.needs_labels:
            counts = file_labels(scan.scan_id, str(scan.labels_file), scan.matrix_shape).counts
        candidates = protocol.candidates(scan.n_slices, counts, scan.class_names)
        offset = -n_before % protocol.every if protocol.pooled else 0
        n_before += len(candidates)
        selected[scan.scan_id] = candidates[offset :: protocol.every]
    return selected


def _spread(numbers: Integer[np.ndarray, " slice"], n: int | None) -> tuple[int, ...]:
    """Return the middles of `n` equal parts of a list of slices; all of them where there are no more."""
    if n is None or len(numbers) <= n:
        return tuple(numbers.tolist())
    return tuple(numbers[((np.arange(n) + 0.5) * len(numbers) / n).astype(int)].tolist())


def _name(root: str, split: str, scans: Iterable[SkmTeaScan]) -> str:
    """Return the name of the data; reports show the numbers of the paper beside those of SKM-TEA only."""
    if known_data(scans) == SKM_TEA:
        return SKM_TEA
    content = json.loads(Path(root, "annotations/v1.0.0", f"{split}.json").read_text())
    return str((content.get("info") or {}).get("description") or "data in the SKM-TEA layout")


def _fingerprint(root: str, split: str, scans: Iterable[SkmTeaScan]) -> dict[str, str]:
    """Hash the annotation and the sizes of the files of each scan: files may be moved, but not changed."""
    entries = {entry["scan_id"]: entry for entry in read_annotations(root, split)}
    digests = {}
    for scan in scans:
        sizes = [os.path.getsize(path) if path.exists() else None for path in (scan.kspace_file, scan.labels_file)]
        text = json.dumps([entries[scan.scan_id], sizes], sort_keys=True, default=str)
        digests[scan.scan_id] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests


def _finding_slices(scan: SkmTeaScan, n: int) -> tuple[int, ...]:
    """Return the slices from which the scan's findings took most tissue, where that is known."""
    counts = file_labels(scan.scan_id, str(scan.labels_file), scan.matrix_shape).counts[:, 1:].sum(axis=1)
    taken = {}
    for index in np.flatnonzero(counts).tolist() if scan.findings else ():
        without = labels_without_findings(scan, index)
        if without is None:
            return ()
        taken[index] = int(((without > 0) & (without != manual_labels(scan, index))).sum())
    most = sorted((index for index in taken if taken[index]), key=lambda index: (-taken[index], index))
    return tuple(sorted(most[:n]))


def manual_labels(scan: SkmTeaScan, index: int) -> UInt8[np.ndarray, "y x"]:
    """Read the merged manual labels of a slice.

    Raises:
        DataFault: there is no segmentation, or it is damaged.
    """
    labels = file_labels(scan.scan_id, str(scan.labels_file), scan.matrix_shape)[index]
    return merge_labels(labels, scan.class_names)


def choose_examples(data: EvaluationData, with_labels: bool = True) -> list[tuple[str, int]]:
    """Choose slices to keep images of, for the figures: for each class the evaluated slice in which it is largest.

    A slice is chosen once and a scan before it is chosen again, so that the figures show several knees. Without
    labels: the middle slices of the first scans.
    """
    pairs = [(scan_id, index) for scan_id, numbers in data.slices.items() for index in numbers]
    n_classes = len(next(iter(data.scans.values())).class_names)
    if not with_labels:
        middles = [(scan_id, numbers[len(numbers) // 2]) for scan_id, numbers in data.slices.items()]
        return middles[:n_classes]
    areas = {
        (scan_id, index): np.bincount(manual_labels(data.scans[scan_id], index).ravel(), minlength=n_classes + 1)
        for scan_id, index in pairs
    }
    chosen: list[tuple[str, int]] = []
    for label in range(1, n_classes + 1):
        fresh = [pair for pair in pairs if pair[0] not in {scan_id for scan_id, _ in chosen}] or pairs
        best = max(fresh, key=lambda pair: areas[pair][label])
        if areas[best][label] and best not in chosen:
            chosen.append(best)
    return chosen or pairs[:1]
