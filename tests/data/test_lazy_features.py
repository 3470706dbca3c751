"""Lazy columns in the formats of `datasets`, and in its `map` and `filter`."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset

from sgr_diffusers.data.lazy_features import LazySlice
from tests.helpers.layout_fixture import TINY_SHAPE

N_SLICES = TINY_SHAPE[0]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_formats(load, name, streaming):
    kind = torch.Tensor if name == "torch" else np.ndarray
    plain = next(iter(load(acceleration=8)))
    row = next(iter(load(acceleration=8, streaming=streaming).with_format(name)))
    for key in ("kspace", "coil_maps", "target", "mask", "labels"):
        assert isinstance(row[key], kind)
        np.testing.assert_array_equal(np.asarray(row[key]), plain[key])
    assert str(row["kspace"].dtype).endswith("complex64") and str(row["mask"].dtype).endswith("bool")


def test_torch_tensors_of_lazy_columns_take_over_the_arrays(load, monkeypatch):
    made = []
    decode = LazySlice.decode_example
    monkeypatch.setattr(
        LazySlice, "decode_example", lambda *args, **more: made.append(decode(*args, **more)) or made[-1]
    )
    row = load(acceleration=4).with_format("torch")[2]
    for name, array in zip(("kspace", "coil_maps", "target", "mask"), made, strict=False):
        assert row[name].data_ptr() == array.ctypes.data
        row[name][:] = 0  # one's own
    assert load(acceleration=4)[2]["kspace"].any() and load(acceleration=4)[2]["mask"].any()
    assert row["labels"].dtype == torch.int64
    assert load().with_format("torch", dtype=torch.complex128)[2]["target"].dtype == torch.complex128


def test_torch_tensors_of_other_data_sets_stay_copies():
    values = Dataset.from_dict({"values": [[1.0, 2.0], [3.0, 4.0]], "flag": [True, False]}).with_format("torch")
    row = values[0]
    row["values"][:] = 0
    assert values[0]["values"].tolist() == [1, 2] and values[0]["values"].dtype == torch.float32
    assert values[:]["flag"].tolist() == [True, False]


def largest(row):
    return {"largest": float(np.abs(row["target"]).max())}


def largest_of_batch(batch):
    return {"largest": np.abs(np.stack(batch["target"])).max(axis=(1, 2))}


def largest_in_row(row):
    assert "complex64" in repr(row)
    row["largest"] = float(np.abs(row["target"]).max())
    return row


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (largest, {}),
        (largest_in_row, {}),
        (lambda row: row | largest(row), {}),
        (largest_of_batch, {"batched": True, "batch_size": 5}),
        (lambda target: largest({"target": target}), {"input_columns": "target"}),
        (largest, {"num_proc": 2}),
    ],
)
def test_map_adds_a_column_and_keeps_the_others_lazy(load, function, settings):
    mapped = load(acceleration=4).map(function, **settings)
    assert {**mapped.features, "largest": None} == {**load().features, "largest": None}
    rows = list(load(acceleration=4))
    np.testing.assert_allclose(mapped["largest"][:], [np.abs(row["target"]).max() for row in rows], rtol=1e-6)
    np.testing.assert_array_equal(mapped[3]["kspace"], rows[3]["kspace"])


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_map_of_a_format(load, name):
    mapped = load().with_format(name).map(lambda row: {"largest": float(abs(row["target"]).max())})
    assert mapped.features["target"] == load().features["target"]
    assert float(mapped[3]["largest"]) == pytest.approx(float(np.abs(load()[3]["target"]).max()))


def test_map_and_filter_of_a_stream(load):
    stream = load(streaming=True).map(largest).filter(lambda row: bool(row["labels"].any()))
    rows = [row for row in load() if row["labels"].any()]
    assert [row["largest"] for row in stream] == pytest.approx([np.abs(row["target"]).max() for row in rows])


def test_a_change_of_an_array_in_map_is_refused(load):
    def erase(row):
        row["target"][:] = 0
        return row

    with pytest.raises(ValueError, match="read-only"):
        load().map(erase)


@pytest.mark.parametrize("settings", [{}, {"input_columns": "labels"}, {"batch_size": 5}, {"num_proc": 2}])
def test_filter(load, settings):
    def has_tissue(row):
        return bool((row if "input_columns" in settings else row["labels"]).any())

    shown = load(acceleration=4).filter(has_tissue, **settings)
    assert shown["slice"][:] == [2, 3, 2, 3]
    np.testing.assert_array_equal(shown[2]["kspace"], load(acceleration=4)[N_SLICES + 2]["kspace"])
    batched = load().filter(lambda batch: [bool(labels.any()) for labels in batch["labels"]], batched=True)
    assert batched["slice"][:] == [2, 3, 2, 3]


@pytest.mark.parametrize("imports", ["sgr_diffusers, datasets", "datasets, sgr_diffusers"])
def test_saved_data_is_loaded_after_the_package_is_imported(load, tmp_path, imports):
    load(acceleration=4).flatten().save_to_disk(tmp_path / "saved", num_proc=2)
    code = f"import {imports}, sys; print(datasets.load_from_disk(sys.argv[1])[3]['kspace'].sum())"
    arguments = [sys.executable, "-c", code, str(tmp_path / "saved")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert complex(done.stdout) == pytest.approx(complex(load(acceleration=4)[3]["kspace"].sum()), rel=1e-5)
