"""Shards: what is written is read, what is damaged is named, what is half written is never taken for whole."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from sgr_diffusers.evaluation.plan import Unit
from sgr_diffusers.evaluation.store import (
    SCHEMA,
    DamagedShard,
    pack_labels,
    pack_magnitude,
    read_shard,
    remove_partial_shards,
    shard_path,
    unpack_labels,
    unpack_magnitude,
    write_shard,
)

UNIT = Unit("RR", "MTR/005", 7, 8.0, None, 16, 2)


def row():
    image = {"class_number": 0, "target": "sample", "sample": 16, "labels": b"abc", "ssim": 0.1 + 0.2, "residual": 0.0}
    image |= {"second_labels": None, "magnitude": None, "squared_error": 1e-17, "squared_error_noise_free": None}
    return {"images": [image, {**image, "sample": 17}], "seed": 2**63 + 1, "peak": 1 / 3, "findings": "[]"}


def test_round_trip_is_exact(tmp_path):
    path = write_shard(tmp_path, UNIT, row(), {"torch": "1.2"})
    assert path == shard_path(tmp_path, UNIT) and path.parent.name == "MTR%2F005"
    found = read_shard(tmp_path, UNIT)
    assert set(found) == set(SCHEMA.names)
    assert {key: found[key] for key in row()} == row()
    assert (found["scan_id"], found["slice"], found["first_sample"], found["strength"]) == ("MTR/005", 7, 16, None)
    assert pq.read_schema(path).metadata[b"sgr_versions"] == b'{"torch": "1.2"}'
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_same_row_gives_the_same_bytes(tmp_path):
    one, two = (write_shard(tmp_path / name, UNIT, row(), {"b": "1", "a": "2"}).read_bytes() for name in "xy")
    assert one == two


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "text"])
def test_damage_is_named(tmp_path, damage):
    path = write_shard(tmp_path, UNIT, {**row(), "manual": bytes(range(256)) * 40}, {})
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 0xFF
    path.write_bytes({"truncate": content[:-20], "empty": b"", "flip": content, "text": b"hello"}[damage])
    with pytest.raises(DamagedShard, match=r"0007-RR-8x-16\+2.parquet is damaged"):
        read_shard(tmp_path, UNIT)


def test_a_shard_under_the_name_of_another_is_damaged(tmp_path):
    other = Unit("RR", "MTR/005", 8, 8.0, None, 16, 2)
    write_shard(tmp_path, UNIT, row(), {}).rename(shard_path(tmp_path, other))
    with pytest.raises(DamagedShard, match="another unit"):
        read_shard(tmp_path, other)
    with pytest.raises(FileNotFoundError, match="not done yet"):
        read_shard(tmp_path, UNIT)


def test_half_written_shards_are_removed_and_whole_ones_stay(tmp_path):
    path = write_shard(tmp_path, UNIT, row(), {})
    path.with_name(f".{path.name}.123.partial").write_bytes(b"half")
    remove_partial_shards(tmp_path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_packing():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (9, 7)).astype(np.uint8)
    assert (unpack_labels(pack_labels(labels), (9, 7)) == labels).all()
    magnitude = rng.random((9, 7)) * 3
    found = unpack_magnitude(pack_magnitude(magnitude, 2.0), (9, 7))
    assert np.abs(found - np.minimum(magnitude / 2, 1)).max() <= 0.5 / 255 + 1e-6
