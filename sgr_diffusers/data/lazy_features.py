"""References to slices (scan, slice, echo, acceleration) enter a `datasets` column; arrays leave when a row is read.

Importing this module registers the feature, which `datasets.load_from_disk` needs for data sets saved with it.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets.features.features import _FEATURE_TYPES, register_feature

from sgr_diffusers.data import scan_files
from sgr_diffusers.data.scan_labels import N_FILE_LABELS, file_labels
from sgr_diffusers.data.skm_tea import merge_labels

__all__ = ["CONTENTS", "LazySlice"]

_MERGED = merge_labels(np.arange(N_FILE_LABELS))
CONTENTS = ("kspace", "coil_maps", "target", "mask", "labels", "file_labels")


@dataclass
class LazySlice:
    """Feature of `datasets` whose Arrow storage is a reference of some 20 bytes, decoded to a numpy array on access.

    Attributes:
        root: folder or URL of the data set, in the SKM-TEA layout.
        content: which array, out of `CONTENTS`.
        decode: `False` gives the references themselves.
        id: unused, as in the features of `datasets`.
    """

    root: str
    content: str
    decode: bool = field(default=True, repr=False)
    id: str | None = field(default=None, repr=False)
    pa_type: ClassVar[Any] = pa.struct(
        {"scan": pa.string(), "slice": pa.int16(), "echo": pa.int8(), "acceleration": pa.float32()}
    )
    dtype: ClassVar[str] = "dict"
    _type: str = field(default="LazySlice", init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the content."""
        if self.content not in CONTENTS:
            raise ValueError(f"`content` must be one of {CONTENTS}, got {self.content!r}.")

    def __call__(self) -> pa.DataType:
        """Arrow type of the references."""
        return self.pa_type

    def encode_example(self, value: dict[str, Any]) -> dict[str, Any]:
        """References go into Arrow as they are."""
        return value

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """References of narrower or wider numbers to `pa_type`."""
        from datasets.table import array_cast

        return array_cast(storage, self.pa_type)

    def decode_example(self, value: dict[str, Any], token_per_repo_id: Any = None) -> np.ndarray:
        """Read the array.

        Raises:
            DataFault: the file is missing or damaged, or holds values that cannot be.
        """
        scan, index, acceleration = value["scan"], value["slice"], value["acceleration"]
        if self.content.endswith("labels"):
            path = scan_files.labels_path(self.root, scan)
            kspace = scan_files.kspace_path(self.root, scan)
            labels = file_labels(scan, path, scan_files.matrix_shape(scan, kspace))[index]
            return _MERGED[labels] if self.content == "labels" else labels
        path = scan_files.kspace_path(self.root, scan)
        if self.content == "coil_maps":
            return scan_files.read_coil_maps(scan, path, index)
        if self.content == "target":
            return scan_files.read_target(scan, path, index, value["echo"])
        mask = None if acceleration is None else scan_files.read_mask(scan, path, acceleration)
        if self.content == "kspace":
            return scan_files.read_kspace(scan, path, index, value["echo"], mask)
        if mask is None:  # as in `read_skm_tea`: what was acquired is not zero
            return (scan_files.read_kspace(scan, path, index, value["echo"]) != 0).any(axis=0)
        return mask.copy()


if "LazySlice" not in _FEATURE_TYPES:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'register_feature' is experimental")
        register_feature(LazySlice, "LazySlice")
