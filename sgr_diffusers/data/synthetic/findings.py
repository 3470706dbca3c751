"""Computes the labels that the knee of a synthetic scan file would have without its rare findings.

A finding takes tissue away (a defect, thinning, a tear). What it took is known only by comparison with the knee that
the same seed draws without it.
"""

import json
import os
import re
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ..skm_tea import SkmTeaScan, merge_labels
from .knee import SyntheticKneeConfig, SyntheticScan

__all__ = ["labels_without_findings"]


def labels_without_findings(scan: SkmTeaScan, index: int) -> UInt8[np.ndarray, "y x"] | None:
    """Return the merged labels of a slice of a synthetic scan, had its knee no finding.

    Returns:
        0 background, 1..4 as `CLASS_NAMES`; `None` if the scan has no finding, or was not synthesised here.
    """
    if not scan.findings:
        return None
    knee = _without_findings(os.fspath(scan.kspace_file), scan.scan_id)
    return None if knee is None else merge_labels(knee.labels(index))


@lru_cache(maxsize=32)
def _without_findings(path: str, scan_id: str) -> SyntheticScan | None:
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("config")
    match = re.fullmatch(r"SYN_(train|val|test|calibration)_(\d+)", scan_id)
    if text is None or match is None:
        return None
    stored: dict[str, Any] = json.loads(text)
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
    scan = SyntheticScan(SyntheticKneeConfig(**settings), match[1], int(match[2]))
    scan.knee.findings = []  # drawn last, and looked at only when a slice is painted
    return scan
