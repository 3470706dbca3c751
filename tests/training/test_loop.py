import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from sgr_diffusers.data.sampling import SliceSampler
from sgr_diffusers.training.checkpoints import averaged_weights, latest_checkpoint
from sgr_diffusers.training.log import Validation
from sgr_diffusers.training.loop import fit
from sgr_diffusers.training.machine import create_accelerator
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.seeds import random_seed, step_generator
from tests.helpers.tiny_training import (
    Slices,
    assert_same_bits,
    contents,
    forget_accelerator,
    noise_loss,
    tiny_model,
    train,
)


class Interruption(Exception):
    pass


def interrupted(n_calls):
    """The loss of the tiny prior, which stops the training after so many calls."""
    calls = iter(range(n_calls))

    def loss(*arguments):
        if next(calls, None) is None:
            raise Interruption
        return noise_loss(*arguments)

    return loss


@pytest.mark.parametrize("n_calls", [7, 8, 13])  # in the middle of a step, at its end, after the last checkpoint
def test_an_interrupted_and_resumed_run_ends_with_the_same_bits(tmp_path, n_calls):
    whole, state = train(tmp_path / "whole")
    with pytest.raises(Interruption):
        train(tmp_path / "cut", interrupted(n_calls))
    # what a kill in the middle of writing leaves behind
    (tmp_path / "cut/.checkpoint-9.partial").mkdir()
    torch.manual_seed(99)
    resumed, resumed_state = train(tmp_path / "cut", resume_from_checkpoint="latest")

    assert_same_bits(tmp_path / "whole/checkpoint-7", tmp_path / "cut/checkpoint-7")
    for parameter, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert [entry["loss"] for entry in state.history] == [entry["loss"] for entry in resumed_state.history]
    lines = (tmp_path / "cut/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert not (tmp_path / "cut/.checkpoint-9.partial").exists()


def test_another_seed_gives_other_weights(tmp_path):
    first, _ = train(tmp_path / "a", max_train_steps=2)
    second, _ = train(tmp_path / "b", max_train_steps=2, seed=1)
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)


def test_the_averaged_weights_are_kept(tmp_path):
    model, _ = train(tmp_path, ema_decay=0.5)
    checkpoint = contents(tmp_path / "checkpoint-7")
    final = load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(final["conv_in.weight"], checkpoint["unet_ema/conv_in.weight"])
    assert torch.equal(final["conv_in.weight"], model.conv_in.weight)
    assert not torch.equal(final["conv_in.weight"], checkpoint["unet/conv_in.weight"])
    assert isinstance(UNet2DModel.from_pretrained(tmp_path / "checkpoint-7/unet_ema"), UNet2DModel)


def test_without_averaging(tmp_path):
    train(tmp_path, max_train_steps=2, ema_decay=0.0)
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
    def trained(folder, batch, n_micro):
        model = tiny_model(dropout=0.0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.02)
        sizes = {"train_batch_size": batch, "gradient_accumulation_steps": n_micro, "foreground_fraction": 0.0}
        train(
            tmp_path / folder,
            lambda network, batch, _: network(batch["image"], 5).sample.square().mean(),
            model=model,
            max_train_steps=2,
            ema_decay=0.0,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            learning_rate=1e-4,
            **sizes,
        )
        return model.conv_in.weight

    torch.testing.assert_close(trained("large", 4, 1), trained("small", 2, 2), rtol=1e-4, atol=1e-6)


def test_only_the_last_checkpoints_are_kept(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    train(tmp_path, checkpointing_steps=1, checkpoints_total_limit=3)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == [f"checkpoint-{n}" for n in (5, 6, 7)]
    assert latest_checkpoint(tmp_path).name == "checkpoint-7"


def test_a_longer_run_can_continue(tmp_path):
    train(tmp_path, max_train_steps=2)
    _, state = train(tmp_path, max_train_steps=4, resume_from_checkpoint="latest")
    assert state.step == 4


def test_the_time_limit_ends_a_run(tmp_path):
    limit = {"max_train_steps": None, "max_train_minutes": 0.01, "checkpointing_steps": 0}
    _, state = train(tmp_path, **limit)
    assert state.step >= 1
    assert 0.01 <= state.minutes < 0.2
    assert latest_checkpoint(tmp_path).name == f"checkpoint-{state.step}"
    # the clock of a resumed run goes on: there is nothing left to do
    _, resumed = train(tmp_path, **limit, resume_from_checkpoint="latest")
    assert resumed.step == state.step


def test_validation_sees_the_averaged_weights_and_the_best_are_kept(tmp_path):
    scores = iter([0.5, 0.9, 0.7, 0.1])
    seen = []

    def validate(network):
        seen.append(network.conv_in.weight.clone())
        return Validation({"score": next(scores)})

    options = TrainingOptions(str(tmp_path), max_train_steps=4, validation_steps=1, checkpointing_steps=0)
    state = fit(
        tiny_model(),
        Slices(),
        noise_loss,
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
    sampler = SliceSampler(10, 0, np.arange(10) > 6, 0.4)
    late = min(set(range(10)) - {sampler.index(n) for n in range(6)})  # not in the first step
    broken = Slices()
    broken.images = broken.images.clone()
    broken.images[late] = torch.nan
    with pytest.raises(FloatingPointError, match="The loss is nan at step") as error:
        train(tmp_path, dataset=broken, max_train_steps=20, checkpointing_steps=1)
    (folder,) = tmp_path.glob("nonfinite-step-*")
    step = int(folder.name.split("-")[-1])
    assert str(folder) in str(error.value) and f"at step {step}," in str(error.value)
    assert f"('scan{late}', {late})" in str(error.value)

    report = json.loads((folder / "report.json").read_text())
    assert report["step"] == step and len(report["batches"]) == 2  # micro-steps
    bad = [row for row in report["batches"] if [f"scan{late}", late] in row["slices"]]
    assert bad and all(row["loss"] != row["loss"] for row in bad)
    batch = load_file(folder / f"batch_0_{bad[0]['micro_step']}.safetensors")
    assert batch["image"].isnan().any()
    # what the step started from, which is what the last checkpoint has, and is never resumed from
    assert latest_checkpoint(tmp_path).name == f"checkpoint-{step}"
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    last = load_file(tmp_path / f"checkpoint-{step}/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[key], last[key]) and stored[key].isfinite().all() for key in stored)
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        train(tmp_path, resume_from_checkpoint=str(folder))


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    def infinite_gradient(network, batch, generator):
        loss = noise_loss(network, batch, generator)
        return loss + (loss.detach() - loss).abs().sqrt()  # the slope of the root at 0

    with pytest.raises(FloatingPointError, match="The loss is finite, but its gradient has the norm"):
        train(tmp_path, infinite_gradient)


def test_a_gradient_that_is_not_finite_stops_where_nothing_is_clipped(tmp_path):
    calls = iter(range(100))

    def infinite_gradient_later(network, batch, generator):
        loss = noise_loss(network, batch, generator)
        return loss if next(calls) < 6 else loss + (loss.detach() - loss).abs().sqrt()

    with pytest.raises(FloatingPointError, match="its gradient has the norm"):
        train(tmp_path, infinite_gradient_later, max_grad_norm=0.0, checkpointing_steps=1)
    (folder,) = tmp_path.glob("nonfinite-step-3")
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert all(value.isfinite().all() for value in stored.values())


def test_without_clipping_gradients_stay_as_they_are(tmp_path):
    # A norm that is never reached clips nothing.
    none, _ = train(tmp_path / "none", max_train_steps=2, max_grad_norm=0.0)
    large, _ = train(tmp_path / "large", max_train_steps=2, max_grad_norm=1e9)
    small, _ = train(tmp_path / "small", max_train_steps=2, max_grad_norm=1e-3, adam_epsilon=1.0)
    same, _ = train(tmp_path / "same", max_train_steps=2, max_grad_norm=0.0, adam_epsilon=1.0)
    assert torch.equal(none.conv_in.weight, large.conv_in.weight)
    assert not torch.equal(small.conv_in.weight, same.conv_in.weight)


def picture(network):
    return Validation({"score": 1.0}, {"grey": np.zeros((2, 4, 4), np.uint8)})


def test_nothing_of_an_earlier_run_is_left_for_this_one(tmp_path):
    def pictures():
        return sorted(path.name for path in (tmp_path / "pictures").iterdir())

    often = {"max_train_steps": 6, "validation_steps": 1}
    train(tmp_path, validate=picture, max_train_steps=4, validation_steps=2)
    (tmp_path / "training_record.json").write_text("{}")
    (tmp_path / "unet_best").mkdir()
    with pytest.raises(Interruption):
        train(tmp_path, interrupted(5), picture, overwrite_output_dir=True, **often)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "log.jsonl", "pictures"]
    assert pictures() == ["0000001_grey.png", "0000002_grey.png"]

    # what lies behind the checkpoint that is resumed
    with pytest.raises(Interruption):
        train(tmp_path, interrupted(3), picture, resume_from_checkpoint="latest", **often)
    assert pictures()[-1] == "0000003_grey.png"
    train(tmp_path, max_train_steps=2, resume_from_checkpoint="latest")
    assert pictures() == ["0000001_grey.png", "0000002_grey.png"]


def test_tensorboard_keeps_the_events_of_the_step_that_is_resumed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(loss, **options):
        often = {"logging_steps": 1, "validation_steps": 2, "report_to": ("tensorboard",), "cpu": True}
        options = {"max_train_steps": 6, **often, **options}
        accelerator = create_accelerator(TrainingOptions(str(tmp_path), **options))
        train(tmp_path, loss, picture, accelerator=accelerator, **options)
        accelerator.end_training()

    with pytest.raises(Interruption):
        run(interrupted(11))  # in the sixth step: the fifth is logged, and its checkpoint is of the fourth
    forget_accelerator()
    run(noise_loss, resume_from_checkpoint="latest")
    (folder,) = (tmp_path / "trackers").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("grey")] == [2, 4, 6]


def test_random_numbers_of_a_step_depend_on_nothing_else():
    assert (
        len({random_seed(0, step, micro, rank) for step in range(9) for micro in range(3) for rank in range(3)}) == 81
    )
    draws = [torch.rand(3, generator=step_generator(1, 5, 0, 2)) for _ in range(2)]
    assert torch.equal(*draws)
