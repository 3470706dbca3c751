"""A `datasets` feature that stores references to slices and reads their arrays when a row is read.

A reference holds scan, slice, echo and acceleration.

Importing this module registers the feature, which `datasets.load_from_disk` needs for data sets saved with it, lets
`map` and `filter` write references rather than arrays, and lets the torch format share its arrays.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import formatting
from datasets.features.features import _FEATURE_TYPES, register_feature
from datasets.formatting.formatting import LazyBatch, LazyDict, LazyRow

from . import scan_files
from .scan_labels import file_labels
from .skm_tea import CLASS_NAMES, merge_labels

__all__ = ["CONTENTS", "LazySlice", "ReferenceFormatter", "SharingTorchFormatter"]

CONTENTS = ("kspace", "coil_maps", "target", "mask", "labels", "file_labels")


@dataclass
class LazySlice:
    """Feature of `datasets` whose Arrow storage is a reference of some 20 bytes, decoded to a numpy array on access.

    Attributes:
        root: folder or URL of the data set, in the SKM-TEA layout.
        content: name of the array, out of `CONTENTS`.
        class_names: names of the classes of "labels", from 1.
        decode: `False` gives the references themselves.
        id: unused, as in the features of `datasets`.
    """

    root: str
    content: str
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES), repr=False)
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

    def flatten(self) -> "LazySlice":
        """Keep references in one column when `datasets` flattens nested ones."""
        return self

    def encode_example(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return references as they are, for Arrow."""
        return value

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Convert references of narrower or wider numbers to `pa_type`."""
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
            labels = file_labels(scan, path, scan_files.array_shape(scan, kspace, "kspace")[:3])[index]
            return merge_labels(labels, self.class_names) if self.content == "labels" else labels
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


class _References(LazyDict):
    """What `map` and `filter` give to a function: a lazy column that was read is still written as its reference.

    Its arrays are read-only, since a change of them could not be written.
    """

    def __getitem__(self, key: str) -> Any:
        is_reference = key in self.keys_to_format and isinstance(self.formatter.features[key], LazySlice)
        if is_reference and self.data[key] is not None:
            return self.data[key]
        value = super().__getitem__(key)
        if is_reference:
            self.keys_to_format.add(key)
        return value

    def __repr__(self) -> str:
        return repr(dict(self))


class _ReferenceRow(_References, LazyRow):
    def format(self, key: str) -> Any:
        value = super().format(key)
        return _read_only(value) if isinstance(self.formatter.features[key], LazySlice) else value


class _ReferenceBatch(_References, LazyBatch):
    def format(self, key: str) -> Any:
        feature = self.formatter.features[key]
        return _Arrays(feature, self.pa_table[key]) if isinstance(feature, LazySlice) else super().format(key)


class _Arrays(Sequence):
    """Arrays of a lazy column of a batch, each read when it is asked for: a batch may have a thousand slices."""

    def __init__(self, feature: LazySlice, references: pa.ChunkedArray) -> None:
        self._feature, self._references = feature, references

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return _read_only(self._feature.decode_example(self._references[index].as_py()))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class ReferenceFormatter(formatting.PythonFormatter):
    """Rows without a format, but what `map` writes of lazy columns are their references.

    Arrow has no complex numbers, so the arrays themselves cannot be written.
    """

    def format_row(self, pa_table: pa.Table) -> Any:
        """Return the row as `datasets` gives it, or, inside of `map` and `filter`, one that keeps its references."""
        return _ReferenceRow(pa_table, self) if self._keeps_references else super().format_row(pa_table)

    def format_batch(self, pa_table: pa.Table) -> Any:
        """Return several rows likewise."""
        return _ReferenceBatch(pa_table, self) if self._keeps_references else super().format_batch(pa_table)

    @property
    def _keeps_references(self) -> bool:
        return self.lazy and _has_lazy_columns(self.features)


class SharingTorchFormatter(formatting.TorchFormatter):
    """The torch format of `datasets`, but tensors of lazy columns take over the memory of their arrays.

    `datasets` copies each array, which costs a third of the time to read a slice. Those of lazy columns are made anew
    for each row and belong to nobody else. Data sets without lazy columns, and formats with options such as `device`,
    get what they always got.
    """

    def __init__(self, features: Any = None, **arguments: Any) -> None:
        """`features` decide whether memory is shared."""
        super().__init__(features=features, **arguments)
        self.shares = _has_lazy_columns(features) and not self.torch_tensor_kwargs

    def _tensorize(self, value: Any) -> Any:
        # Views, such as those of values in Arrow, are left alone; integers and real numbers still become int64 and
        # float32, as users of the torch format expect.
        own = isinstance(value, np.ndarray) and value.flags.owndata and value.flags.writeable
        if self.shares and own and value.dtype.kind in "cb":
            return torch.from_numpy(value)
        return super()._tensorize(value)


def _has_lazy_columns(features: Any) -> bool:
    return any(isinstance(feature, LazySlice) for feature in (features or {}).values())


if "LazySlice" not in _FEATURE_TYPES:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'register_feature' is experimental")
        register_feature(LazySlice, "LazySlice")
    formatting._FORMAT_TYPES[None] = ReferenceFormatter
    formatting._FORMAT_TYPES["torch"] = SharingTorchFormatter
