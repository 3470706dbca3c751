"""A run is killed at any moment, its checkpoints are damaged, its disk is full: what then is left, and how it ends."""

import contextlib
import json
import logging
import os
import random
import resource
import time

import pytest
import torch

from sgr_diffusers.training.checkpoints import latest_checkpoint
from sgr_diffusers.training.files import find_damage
from sgr_diffusers.utils.disk import DiskError
from tests.helpers.tiny_training import (
    Slices,
    assert_same_bits,
    contents,
    finish,
    forget_accelerator,
    kill,
    noise_loss,
    start_processes,
    tiny_model,
    train,
)

LONG = {"max_train_steps": 24, "checkpointing_steps": 3, "gradient_accumulation_steps": 1, "logging_steps": 5}


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def names(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


@pytest.mark.parametrize("n_processes", [1, 2])
def test_killed_at_any_moment_a_run_ends_with_the_same_bits(tmp_path, n_processes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start_processes(n_processes, train, whole, **LONG))
    rng = random.Random(n_processes)
    partial_seen = 0
    for step in (3, 6, 9, 15):
        processes = start_processes(n_processes, train, cut, resume_from_checkpoint="latest", **LONG)
        if step == 15:  # at any moment
            wait_for(lambda: (cut / "checkpoint-12").exists())
            time.sleep(rng.uniform(0, 0.2))
        else:  # while this checkpoint is written, or just renamed
            partial, final = cut / f".checkpoint-{step}.partial", cut / f"checkpoint-{step}"
            wait_for(lambda partial=partial, final=final: partial.exists() or final.exists())
            time.sleep(rng.uniform(0, 0.01))
        kill(processes)
        partial_seen += any(name.startswith(".") for name in names(cut))
        assert all(find_damage(path) is None for path in cut.glob("checkpoint-*"))
    assert partial_seen, "no kill hit a checkpoint that was being written"
    finish(start_processes(n_processes, train, cut, resume_from_checkpoint="latest", **LONG))

    assert_same_bits(whole / "checkpoint-24", cut / "checkpoint-24")
    losses = [
        [(entry["step"], entry["loss"]) for entry in map(json.loads, (folder / "log.jsonl").read_text().splitlines())]
        for folder in (whole, cut)
    ]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == [5, 10, 15, 20]
    assert not [name for name in names(cut) if name.startswith(".")]


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    options = {"max_train_steps": 3, "gradient_accumulation_steps": 1, "foreground_fraction": 0.0}
    finish(start_processes(2, train_without_chance, tmp_path / "two", train_batch_size=2, **options))
    train_without_chance(tmp_path / "one", train_batch_size=4, **options)
    one, two = contents(tmp_path / "one/checkpoint-3"), contents(tmp_path / "two/checkpoint-3")
    for key in one:
        if key.startswith("unet"):
            assert (one[key] - two[key]).abs().max() < 2e-4, key  # Adam turns rounding into sign at the first step


def test_two_processes_stop_together_where_one_loss_is_not_finite(tmp_path):
    processes = start_processes(2, train_broken, tmp_path, gradient_accumulation_steps=1)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [1, 1]
    (report,) = tmp_path.glob("nonfinite-step-*/report.json")
    rows = json.loads(report.read_text())["batches"]
    bad = [row for row in rows if ["scan4", 4] in row["slices"]]
    assert sorted(row["process"] for row in rows) == [0, 1] and len(bad) == 1
    assert (report.parent / f"batch_{bad[0]['process']}_0.safetensors").exists()


def train_broken(output_dir, **options):
    broken = Slices()
    broken.images = broken.images.clone()
    broken.images[4] = torch.nan
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        train(output_dir, dataset=broken, max_train_steps=20, **options)


def train_without_chance(output_dir, **options):
    model = tiny_model(dropout=0.0)
    train(
        output_dir, _plain_loss, model=model, learning_rate=1e-4, adam_epsilon=1e-3, lr_scheduler="constant", **options
    )


def _plain_loss(network, batch, generator):
    return network(batch["image"], 5).sample.square().mean()


@pytest.mark.parametrize("which", ["model.safetensors", "optimizer.bin", "training_state.json", "manifest.json"])
def test_a_checkpoint_cut_short_by_hand_is_not_taken(tmp_path, which, caplog):
    train(tmp_path, max_train_steps=4)
    forget_accelerator()
    path = next(path for path in (tmp_path / "checkpoint-4").rglob("*") if path.name.endswith(which))
    path.write_bytes(path.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).name == "checkpoint-2"
    assert "checkpoint-4 is not a whole checkpoint" in caplog.text and path.name in caplog.text

    _, state = train(tmp_path, max_train_steps=4, resume_from_checkpoint="latest")
    assert state.step == 4
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "damaged-checkpoint-4"]
    assert find_damage(tmp_path / "checkpoint-4") is None


def test_where_no_checkpoint_is_whole_nothing_starts(tmp_path):
    train(tmp_path, max_train_steps=2)
    forget_accelerator()
    (tmp_path / "checkpoint-2/optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: .*optimizer.bin is missing"):
        train(tmp_path, resume_from_checkpoint="latest")
    forget_accelerator()
    with pytest.raises(ValueError, match=r"not a complete checkpoint.*optimizer.bin is missing"):
        train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    forget_accelerator()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_partial_folder_is_never_taken(tmp_path):
    train(tmp_path, max_train_steps=2)
    (tmp_path / ".checkpoint-4.partial").mkdir()
    (tmp_path / "checkpoint-4-copy").mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-2"


def test_an_earlier_run_is_neither_mixed_with_nor_lost(tmp_path):
    train(tmp_path, max_train_steps=4)
    forget_accelerator()
    with pytest.raises(FileExistsError, match="earlier run, the last one checkpoint-4"):
        train(tmp_path)
    forget_accelerator()
    with pytest.raises(ValueError, match=r"holds \['checkpoint-4'\], which are later"):
        train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    forget_accelerator()
    train(tmp_path, max_train_steps=2, overwrite_output_dir=True)
    assert names(tmp_path) == ["checkpoint-2"]


def test_resume_from_another_configuration_prints_the_difference(tmp_path):
    train(tmp_path, max_train_steps=2, identity={"scans": ["a", "b"]})
    forget_accelerator()
    with pytest.raises(ValueError) as error:
        train(tmp_path, seed=1, identity={"scans": ["a", "c"]}, resume_from_checkpoint="latest")
    assert '  scans: ["a", "b"] there, ["a", "c"] now\n  seed: 0 there, 1 now\n' in str(error.value)
    forget_accelerator()
    with pytest.raises(ValueError, match=r"model.block_out_channels: \[8, 8\] there, \[8, 16\] now"):
        train(tmp_path, model=tiny_model(block_out_channels=(8, 16)), resume_from_checkpoint="latest")


def test_another_schedule_is_allowed_with_a_warning(tmp_path, caplog):
    train(tmp_path, max_train_steps=2)
    forget_accelerator()
    with caplog.at_level(logging.WARNING):
        _, state = train(tmp_path, max_train_steps=4, learning_rate=1e-3, resume_from_checkpoint="latest")
    assert state.step == 4
    assert "learning_rate: 0.01 there, 0.001 now" in caplog.text


# The weights take 90 KB, the optimizer, which torch.save writes, 245 KB.
@pytest.mark.parametrize("largest_file", [8_192, 100_000, 150_000, 240_000])
def test_a_full_disk_stops_with_the_last_checkpoint_whole(tmp_path, largest_file):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    losses = iter(range(100))

    def filling(*arguments):
        # from the second checkpoint on no file may grow beyond this
        if next(losses) == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, limits[1]))
        return noise_loss(*arguments)

    try:
        with pytest.raises(DiskError) as error:
            train(tmp_path, filling)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(error.value)
    assert message.startswith("The checkpoint of step 4 could not be written") and "checkpoint-2 is whole" in message
    assert names(tmp_path) == ["checkpoint-2"]
    forget_accelerator()
    train(tmp_path, resume_from_checkpoint="latest")
    forget_accelerator()
    train(tmp_path / "whole")
    assert_same_bits(tmp_path / "checkpoint-7", tmp_path / "whole/checkpoint-7")
