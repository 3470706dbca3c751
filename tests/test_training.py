import dataclasses
import json
import logging
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from layout_fixture import write_tiny_skm_tea
from safetensors.torch import load_file

from sgr_diffusers.models.prior import create_prior
from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training import (
    averaged_weights,
    fit,
    latest_checkpoint,
    learning_rate_factor,
    random_seed,
    step_generator,
)
from sgr_diffusers.training_options import TrainingOptions

ROOT = Path(__file__).parents[1]
TINY_PRIOR = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 8, "sample_size": 8}


@pytest.fixture(autouse=True)
def leave_no_trace():
    threads, rng = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.random.set_rng_state(rng)
    AcceleratorState._reset_state(reset_partial_state=True)
    logging.getLogger().setLevel(logging.WARNING)


class Slices(torch.utils.data.Dataset):
    images = torch.randn(10, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "scan_id": f"scan{index}", "slice": index}


class Interruption(Exception):
    pass


def run(output_dir, interrupt_before=None, validate=None, dataset=None, **options):
    """A few steps of a tiny prior with dropout; `interrupt_before` a (step, micro-step) cuts it off there."""
    defaults = {
        "max_train_steps": 7,
        "train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "checkpointing_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler": "trapezoidal",
        "lr_warmup_steps": 2,
        "logging_steps": 2,
        "foreground_fraction": 0.4,
    }
    options = TrainingOptions(output_dir=str(output_dir), **{**defaults, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_prior("small", **TINY_PRIOR, dropout=0.2)
    n_calls = 0

    def compute_loss(network, batch, generator):
        nonlocal n_calls
        n_calls += 1
        if interrupt_before is not None and n_calls > interrupt_before:
            raise Interruption
        noise = torch.randn(batch["image"].shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(noise),), generator=generator)
        return (network(batch["image"] + noise, timesteps).sample - noise).square().mean()

    state = fit(
        model,
        dataset or Slices(),
        compute_loss,
        options,
        Accelerator(cpu=True),
        name="unet",
        foreground=np.arange(10) > 6,
        validate=validate,
    )
    return model, state


def contents(checkpoint):
    weights = {
        f"{folder}/{key}": value
        for folder in ("unet", "unet_ema")
        for key, value in load_file(checkpoint / folder / "diffusion_pytorch_model.safetensors").items()
    }
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return weights | {f"{i}/{key}": value for i, state in optimizer.items() for key, value in state.items()}


@pytest.mark.parametrize("n_calls", [7, 8, 13])  # in the middle of a step, at its end, after the last checkpoint
def test_an_interrupted_and_resumed_run_ends_with_the_same_bits(tmp_path, n_calls):
    whole, state = run(tmp_path / "whole")
    with pytest.raises(Interruption):
        run(tmp_path / "cut", interrupt_before=n_calls)
    # what a kill in the middle of writing leaves behind
    (tmp_path / "cut/.checkpoint-9.partial").mkdir()
    torch.manual_seed(99)
    resumed, resumed_state = run(tmp_path / "cut", resume_from_checkpoint="latest")

    expected, actual = contents(tmp_path / "whole/checkpoint-7"), contents(tmp_path / "cut/checkpoint-7")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    for parameter, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert [entry["loss"] for entry in state.history] == [entry["loss"] for entry in resumed_state.history]
    lines = (tmp_path / "cut/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert not (tmp_path / "cut/.checkpoint-9.partial").exists()


def test_another_seed_gives_other_weights(tmp_path):
    first, _ = run(tmp_path / "a", max_train_steps=2)
    second, _ = run(tmp_path / "b", max_train_steps=2, seed=1)
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)


def test_the_averaged_weights_are_kept(tmp_path):
    model, _ = run(tmp_path, ema_decay=0.5)
    checkpoint = contents(tmp_path / "checkpoint-7")
    final = load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(final["conv_in.weight"], checkpoint["unet_ema/conv_in.weight"])
    assert torch.equal(final["conv_in.weight"], model.conv_in.weight)
    assert not torch.equal(final["conv_in.weight"], checkpoint["unet/conv_in.weight"])
    assert isinstance(UNet2DModel.from_pretrained(tmp_path / "checkpoint-7/unet_ema"), UNet2DModel)


def test_without_averaging(tmp_path):
    run(tmp_path, max_train_steps=2, ema_decay=0.0)
    final = load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")
    last = load_file(tmp_path / "checkpoint-2/unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(final["conv_in.weight"], last["conv_in.weight"])
    assert not (tmp_path / "checkpoint-2/unet_ema").exists()


def test_averaged_weights_are_put_back_after_an_error():
    model = torch.nn.Linear(1, 1)
    ema = EMAModel(model.parameters())
    with torch.no_grad():
        average = model.weight.clone()
        model.weight.add_(1)
    before = model.weight.item()
    with pytest.raises(Interruption), averaged_weights(model, ema):
        assert torch.equal(model.weight, average)
        raise Interruption
    assert model.weight.item() == before


def test_gradient_accumulation_equals_the_larger_batch(tmp_path):
    # Dropout and noise differ between the two, so a loss without either.
    def train(folder, batch, n_micro):
        options = TrainingOptions(
            str(tmp_path / folder),
            train_batch_size=batch,
            gradient_accumulation_steps=n_micro,
            max_train_steps=2,
            ema_decay=0.0,
        )
        model = create_prior("small", **TINY_PRIOR)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.02)
        fit(
            model,
            Slices(),
            lambda network, batch, _: network(batch["image"], 5).sample.square().mean(),
            options,
            Accelerator(cpu=True),
            name="unet",
        )
        return model.conv_in.weight

    torch.testing.assert_close(train("large", 4, 1), train("small", 2, 2), rtol=1e-4, atol=1e-6)


def test_only_the_last_checkpoints_are_kept(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    run(tmp_path, checkpointing_steps=1, checkpoints_total_limit=3)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == [f"checkpoint-{n}" for n in (5, 6, 7)]
    assert latest_checkpoint(tmp_path).name == "checkpoint-7"


def test_a_checkpoint_that_was_not_finished_is_never_taken(tmp_path):
    run(tmp_path, max_train_steps=2)
    (tmp_path / ".checkpoint-4.partial").mkdir()
    (tmp_path / "checkpoint-4-copy").mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-2"
    with pytest.raises(FileNotFoundError, match="not a complete checkpoint"):
        run(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-4-copy"))


def test_resume_from_another_run_is_refused(tmp_path):
    run(tmp_path, max_train_steps=2)
    with pytest.raises(ValueError, match="'seed': \\(0, 1\\)"):
        run(tmp_path, seed=1, resume_from_checkpoint="latest")


def test_a_longer_run_can_continue(tmp_path):
    run(tmp_path, max_train_steps=2)
    _, state = run(tmp_path, max_train_steps=4, resume_from_checkpoint="latest")
    assert state.step == 4


def test_the_time_limit_ends_a_run(tmp_path):
    limit = {"max_train_steps": None, "max_train_minutes": 0.01}
    _, state = run(tmp_path, **limit)
    assert state.step >= 1
    assert 0.01 <= state.minutes < 0.2
    assert latest_checkpoint(tmp_path).name == f"checkpoint-{state.step}"
    # the clock of a resumed run goes on: there is nothing left to do
    _, resumed = run(tmp_path, **limit, resume_from_checkpoint="latest")
    # (but for one step, if the last checkpoint was written just before the limit)
    assert state.step <= resumed.step <= state.step + 1


def test_validation_sees_the_averaged_weights_and_the_best_are_kept(tmp_path):
    scores = iter([0.5, 0.9, 0.7, 0.1])
    seen = []

    def validate(network):
        seen.append(network.conv_in.weight.clone())
        return {"score": next(scores)}

    options = TrainingOptions(str(tmp_path), max_train_steps=4, validation_steps=1, checkpointing_steps=0)
    model = create_prior("small", **TINY_PRIOR)
    state = fit(
        model,
        Slices(),
        lambda network, batch, _: network(batch["image"], 5).sample.square().mean(),
        options,
        Accelerator(cpu=True),
        name="unet",
        validate=validate,
        keep_best="score",
    )
    assert [entry["score"] for entry in state.history] == [0.5, 0.9, 0.7, 0.1]
    best = load_file(tmp_path / "unet_best/diffusion_pytorch_model.safetensors")
    assert torch.equal(best["conv_in.weight"], seen[1])


def test_nan_stops_and_names_the_slices(tmp_path):
    broken = Slices()
    broken.images = broken.images.clone()
    broken.images[4] = torch.nan
    with pytest.raises(FloatingPointError, match=r"nan at step \d, on \(scan, slice\) .*\('scan4', 4\)"):
        run(tmp_path, dataset=broken, max_train_steps=20)


def test_random_numbers_of_a_step_depend_on_nothing_else():
    assert (
        len({random_seed(0, step, micro, rank) for step in range(9) for micro in range(3) for rank in range(3)}) == 81
    )
    draws = [torch.rand(3, generator=step_generator(1, 5, 0, 2)) for _ in range(2)]
    assert torch.equal(*draws)


def test_learning_rate_factors():
    assert [learning_rate_factor("constant", step, 0.0, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    trapezoid = [learning_rate_factor("trapezoidal", 10, done, 0, 0.5) for done in (0, 0.5, 0.75, 1)]
    assert trapezoid == [1, 1, 0.5, 0]
    assert learning_rate_factor("linear", 10, 0.25) == 0.75
    assert learning_rate_factor("cosine", 10, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor("cosine", 10, 1.01) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`max_train_steps`"),
        ({"max_train_steps": 0}, "`max_train_steps`"),
        ({"max_train_minutes": 0.0}, "`max_train_minutes`"),
        ({"max_train_steps": 1, "train_batch_size": 0}, "`train_batch_size`"),
        ({"max_train_steps": 1, "lr_scheduler": "polynomial"}, "`lr_scheduler`"),
        ({"max_train_steps": 1, "lr_cooldown_fraction": 0.0}, "`lr_cooldown_fraction`"),
        ({"max_train_steps": 1, "ema_decay": 1.0}, "`ema_decay`"),
    ],
)
def test_options_name_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


def script(name, *arguments):
    return runpy.run_path(str(ROOT / "training" / f"{name}.py"))["main"]([str(argument) for argument in arguments])


SHARED = "--max_train_steps 3 --train_batch_size 2 --num_threads 1 --logging_steps 1 --validation_steps 2".split()


@pytest.fixture
def data(tmp_path):
    return write_tiny_skm_tea(tmp_path / "data")


def test_train_prior_script(data, tmp_path):
    output = tmp_path / "prior"
    architecture = "--block_out_channels 8 32 --prediction_type v_prediction --snr_gamma 5 --max_shift 2 2".split()
    options = ["--data_dir", data, "--output_dir", output, *SHARED, "--foreground_fraction", 0.4]
    record = script("train_prior", *options, *architecture)
    prior = UNet2DModel.from_pretrained(output / "unet")
    assert prior.config.block_out_channels == [8, 32]
    assert DDIMScheduler.from_pretrained(output / "scheduler").config.prediction_type == "v_prediction"

    stored = json.loads((output / "training_record.json").read_text())
    assert stored["steps"] == 3
    assert stored["images"] == 6
    assert stored["seed"] == 0
    assert stored["data"]["slices"] == 12
    assert {entry["step"] for entry in stored["history"] if "val_eps_mse" in entry} == {2, 3}
    assert set(stored["options"]) == {field.name for field in dataclasses.fields(TrainingOptions)}
    assert record["history"][-1]["val_errors"][500]["eps_mse"] > 0

    start = script("train_prior", *options[:2], "--output_dir", tmp_path / "next", *SHARED, "--init_from", output)
    assert start["parameters"] == sum(parameter.numel() for parameter in prior.parameters())


def test_train_segmentation_script(data, tmp_path):
    output = tmp_path / "segmentation"
    options = ["--data_dir", data, "--output_dir", output, *SHARED, "--channels", 4, 8, "--strides", 2]
    record = script("train_segmentation", *options, "--num_res_units", 1, "--mirror_axes", "both", "--flip_average")
    assert set(record["history"][-1]["val_dice_per_scan"]) == {"MTR_003"}
    assert 0 <= record["history"][-1]["val_dice"] <= 1
    for name in ("segmentation_model", "segmentation_model_best"):
        model = SegmentationUNet.from_pretrained(output / name)
        assert model.config.flip_average
        assert model(torch.rand(1, 1, 24, 16)).shape == (1, 5, 24, 16)


def test_flip_average_without_mirroring_is_refused(capsys):
    with pytest.raises(SystemExit):
        script("train_segmentation", "--data_dir", "anywhere", "--flip_average")
    assert "--mirror_axes both" in capsys.readouterr().err
