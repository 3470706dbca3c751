"""Reads the labels of a scan slice by slice from its segmentation file, given by a path or a URL."""

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from .scan_files import DataFault, file_state, open_bytes

__all__ = ["N_FILE_LABELS", "FileLabels", "check_labels_file", "file_labels"]

N_FILE_LABELS = 7  # 0 background, 1..6 tissues
_MOST_EXTENSIONS = 1 << 20  # bytes between the header of a NIfTI file and its array


@dataclass(frozen=True)
class FileLabels:
    """The segmentation of a scan, compressed slice by slice: some 100 KB where the array takes 40 MB.

    Attributes:
        shape: shape (slice, y, x) of the labels.
        counts: number of pixels of each file label 0..6 in each slice.
        slices: zlib streams of uint8 `(y, x)`; empty where there is nothing but background.
    """

    shape: tuple[int, ...]
    counts: Integer[np.ndarray, "slice 7"]
    slices: tuple[bytes, ...]

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "y x"]:
        """File labels 0..6 of a slice."""
        if not self.slices[index]:
            return np.zeros(self.shape[1:], np.uint8)
        return np.frombuffer(zlib.decompress(self.slices[index]), np.uint8).reshape(self.shape[1:]).copy()


def file_labels(scan_id: str, path: str, matrix_shape: Sequence[int]) -> FileLabels:
    """Read the labels of a scan as the file has them, once in a process (a third of a second at full size).

    Args:
        scan_id: name of the scan, for messages.
        path: path or URL of the NIfTI file.
        matrix_shape: matrix size (slice, y, x) that the annotations state.

    Raises:
        DataFault: the file is missing or damaged, has another shape or labels outside 0..6.
    """
    try:
        state = file_state(path)
    except FileNotFoundError:
        raise _missing(scan_id, path) from None
    return _labels_in_process(scan_id, path, tuple(matrix_shape), state)


def check_labels_file(scan_id: str, path: str, matrix_shape: Sequence[int]) -> None:
    """Check that the labels of a scan are there and have this shape, by the head of their file; else a DataFault."""
    _nifti(scan_id, path, tuple(matrix_shape), header_only=True)


def _missing(scan_id: str, path: str) -> DataFault:
    return DataFault(
        scan_id, path, "the scan has no segmentation. Fetch it, or load with `classes=None`, without labels."
    )


def _nifti(scan_id: str, path: str, matrix_shape: tuple[int, ...], header_only: bool = False) -> Any:
    import nibabel

    try:
        with open_bytes(path) as raw, gzip.GzipFile(fileobj=raw) as file:
            # A header promises a size; no more than that is ever unpacked.
            head = file.read(352)
            header = nibabel.Nifti1Header(head[:348])
            shape = header.get_data_shape()
            if shape != matrix_shape:
                raise DataFault(
                    scan_id, path, f"the segmentation has shape {shape}, the annotations say {matrix_shape}."
                )
            if header_only:
                return None
            n_bytes = int(np.prod(shape)) * header.get_data_dtype().itemsize
            extensions = min(max(int(header["vox_offset"]) - len(head), 0), _MOST_EXTENSIONS)
            content = head + file.read(extensions + n_bytes)
        image = nibabel.Nifti1Image.from_stream(io.BytesIO(content))
        return np.asanyarray(image.dataobj)
    except FileNotFoundError:
        raise _missing(scan_id, path) from None
    except DataFault:
        raise
    except Exception as error:  # nibabel, gzip and zlib raise a dozen kinds
        raise DataFault(
            scan_id, path, f"not a readable segmentation, truncated or of another format ({error}). Fetch it again."
        ) from error


@lru_cache(maxsize=256)
def _labels_in_process(scan_id: str, path: str, matrix_shape: tuple[int, ...], state: tuple[int, ...]) -> FileLabels:
    labels = _nifti(scan_id, path, matrix_shape)
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high < N_FILE_LABELS) or (labels.dtype.kind == "f" and (labels % 1).any()):
        raise DataFault(
            scan_id,
            path,
            f"labels must be whole numbers in 0..{N_FILE_LABELS - 1}, got {low} to {high}: not a segmentation of the "
            "SKM-TEA raw-data track.",
        )
    labels = labels.astype(np.uint8, copy=False)
    counts = np.zeros((len(labels), N_FILE_LABELS), np.int64)
    counts[:, 0] = labels[0].size
    packed = [b""] * len(labels)
    occupied = np.flatnonzero(labels.any(axis=(1, 2)))
    if occupied.size:
        first, last = occupied[0], occupied[-1] + 1
        slices = np.empty((last - first, *labels.shape[1:]), np.uint8)
        for row in range(labels.shape[1]):  # NIfTI has slices innermost: a copy as a whole jumps through all of memory
            slices[:, row] = labels[first:last, row]
        for index in occupied:
            counts[index] = np.bincount(slices[index - first].ravel(), minlength=N_FILE_LABELS)
            packed[index] = zlib.compress(slices[index - first], 1)
    counts.flags.writeable = False
    return FileLabels(matrix_shape, counts, tuple(packed))
