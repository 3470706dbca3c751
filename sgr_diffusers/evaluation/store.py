"""Write the result of a unit, a dictionary, as a Parquet shard, and read it back.

A shard holds one row, the unit, with its images as a list. It is written under a temporary name and renamed: under its
own name it is whole, whenever the process was killed. Label maps and magnitudes are packed by zlib.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8

from ..utils.files import recover_all, whole_file
from .plan import Unit

__all__ = [
    "SCHEMA",
    "DamagedShard",
    "pack_labels",
    "pack_magnitude",
    "read_shard",
    "remove_partial_shards",
    "shard_path",
    "unpack_labels",
    "unpack_magnitude",
    "write_shard",
]

SCHEMA_VERSION = 1

IMAGE = pa.struct(
    [
        ("class_number", pa.int16()),  # whose bound it is, from 1; 0 for an unguided sample
        ("target", pa.string()),  # "lower", "upper", or "sample"
        ("sample", pa.int32()),  # number of an unguided sample, else 0
        ("labels", pa.binary()),  # of the segmentation model, packed
        ("second_labels", pa.binary()),  # of the second segmentation model, if there is one
        ("magnitude", pa.binary()),  # 8 bit, in example slices only
        ("ssim", pa.float64()),  # of this slice, with the data range of the volume
        ("squared_error", pa.float64()),  # of the magnitude, summed over pixels, in units of `peak` squared
        ("squared_error_noise_free", pa.float64()),  # to the image without noise; null where that is not known
        ("residual", pa.float64()),  # ||A x - y|| / ||y||
    ]
)

SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("kind", pa.string()),
        ("scan_id", pa.string()),
        ("slice", pa.int32()),
        ("acceleration", pa.float64()),
        ("strength", pa.float64()),  # asked for; null for the default
        ("strength_used", pa.float64()),
        ("first_sample", pa.int32()),
        ("n_samples", pa.int32()),
        ("seed", pa.uint64()),  # of the generator that the pipeline was given
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("peak", pa.float64()),  # largest magnitude of the fully sampled volume, in the scanner's unit
        ("data_hash", pa.string()),  # of the arrays that this unit has read
        ("weights_hash", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("zero_filled", pa.binary()),  # magnitude, 8 bit, in example slices only
        # of a reference alone
        ("voxel_size_mm", pa.list_(pa.float64())),
        ("findings", pa.string()),  # json, as the annotations have them
        ("manual", pa.binary()),  # labels, packed; null where there are none
        ("fully_sampled", pa.binary()),  # labels of the segmentation model for the fully sampled image
        ("second_fully_sampled", pa.binary()),
        ("without_finding", pa.binary()),  # labels that the same anatomy would have without its rare finding
        ("target_magnitude", pa.binary()),  # 8 bit, in example slices only
        # what it cost
        ("n_forward", pa.int64()),  # images that the prior's forward passes saw
        ("n_backward", pa.int64()),
        ("seconds", pa.float64()),
        ("seconds_unet_forward", pa.float64()),
        ("seconds_unet_backward", pa.float64()),
        ("seconds_segmentation", pa.float64()),
        ("seconds_physics", pa.float64()),
        ("n_threads", pa.int32()),
    ]
)

_VERSIONS = b"sgr_versions"


class DamagedShard(ValueError):
    """A shard cannot be read, or is not what its name says."""


def shard_path(folder: str | os.PathLike, unit: Unit) -> Path:
    """Return the path of a unit's shard in a results folder."""
    return Path(folder) / "units" / quote(unit.scan_id, safe="") / f"{unit.name}.parquet"


def write_shard(folder: str | os.PathLike, unit: Unit, row: Mapping[str, Any], versions: Mapping[str, str]) -> Path:
    """Write the result of a unit; fields of `SCHEMA` that `row` leaves out are null.

    Args:
        folder: results folder.
        unit: unit of work, which fills its own fields.
        row: values of the other fields.
        versions: versions of the libraries, kept with the file.
    """
    path = shard_path(folder, unit)
    key = {name: getattr(unit, name) for name in ("kind", "scan_id", "slice", "acceleration", "strength")}
    key |= {"first_sample": unit.first_sample, "n_samples": unit.n_samples, "schema_version": SCHEMA_VERSION}
    schema = SCHEMA.with_metadata({_VERSIONS: json.dumps(dict(versions), sort_keys=True)})
    table = pa.Table.from_pylist([{**row, **key}], schema=schema)
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
    return path


def read_shard(folder: str | os.PathLike, unit: Unit) -> dict[str, Any]:
    """Read the result of a unit.

    Raises:
        FileNotFoundError: it is not done yet.
        DamagedShard: the file is truncated, altered or of another unit; the message names it.
    """
    path = shard_path(folder, unit)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: this unit is not done yet.")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = file.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedShard(f"{path} is damaged ({' '.join(str(error).split())}).") from error
    if len(rows) != 1 or rows[0].get("schema_version") != SCHEMA_VERSION:
        raise DamagedShard(f"{path} is damaged (not one row of schema version {SCHEMA_VERSION}).")
    row = rows[0]
    wanted = (unit.kind, unit.scan_id, unit.slice, unit.acceleration, unit.strength, unit.first_sample, unit.n_samples)
    names = ("kind", "scan_id", "slice", "acceleration", "strength", "first_sample", "n_samples")
    if tuple(row.get(name) for name in names) != wanted:
        raise DamagedShard(f"{path} is damaged (holds another unit than its name says).")
    return row


def remove_partial_shards(folder: str | os.PathLike) -> None:
    """Delete what killed processes left half written."""
    for scan in Path(folder).glob("units/*/"):
        recover_all(scan)


def pack_labels(labels: UInt8[np.ndarray, "y x"]) -> bytes:
    """Compress a label map."""
    return zlib.compress(np.ascontiguousarray(labels).tobytes(), 9)


def unpack_labels(packed: bytes, shape: tuple[int, int]) -> UInt8[np.ndarray, "y x"]:
    """Unpack the labels that `pack_labels` packed."""
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)


def pack_magnitude(magnitude: Float[np.ndarray, "y x"], peak: float) -> bytes:
    """Pack a magnitude for looking at: 8 bit, black at 0, white at `peak` and above."""
    return zlib.compress(np.round(np.clip(magnitude / peak, 0.0, 1.0) * 255).astype(np.uint8).tobytes(), 6)


def unpack_magnitude(packed: bytes, shape: tuple[int, int]) -> Float[np.ndarray, "y x"]:
    """Unpack a magnitude, from 0 to 1 in units of the peak."""
    return unpack_labels(packed, shape).astype(np.float32) / 255
