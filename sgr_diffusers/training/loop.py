"""Train a network on a data set with a given loss; write resumable checkpoints, averaged weights and a log.

The scripts ``training/train_prior.py`` and ``training/train_segmentation.py`` share this loop. What is random in step
n depends on (seed, n, micro-step, process) alone: a run that was interrupted ends with the same bits as one that was
not, as long as its end is given in steps.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from diffusers import ConfigMixin, ModelMixin
from diffusers.training_utils import EMAModel
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.sampling import SliceSampler
from .checkpoints import Checkpoints, averaged_weights, is_sharded, prepare_output_dir
from .compiling import check_compiled, compile_network
from .data import read_ahead
from .files import disk_errors
from .learning_rate import learning_rate_factor
from .log import Log, Validation
from .machine import check_accelerator, create_optimizer
from .options import TrainingOptions
from .record import TrainingState
from .seeds import random_seed, step_generator

__all__ = ["fit"]

LossFunction = Callable[[nn.Module, dict[str, Any], Generator], Tensor]

# What a resumed run must have in common with the interrupted one, and what it may change with a warning.
IDENTITY = (
    "seed train_batch_size gradient_accumulation_steps foreground_fraction adam_beta1 adam_beta2 adam_epsilon "
    "weight_decay use_8bit_adam max_grad_norm ema_decay ema_power mixed_precision"
).split()
SCHEDULE = (
    "learning_rate lr_scheduler lr_warmup_steps lr_cooldown_fraction lr_num_cycles lr_power max_train_steps "
    "max_train_minutes num_train_epochs gradient_checkpointing compile allow_tf32"
).split()


def fit(
    model: ModelMixin,
    dataset: Dataset,
    compute_loss: LossFunction,
    options: TrainingOptions,
    accelerator: Accelerator,
    name: str,
    foreground: np.ndarray | None = None,
    validate: Callable[[nn.Module], Validation] | None = None,
    keep_best: str | None = None,
    identity: dict[str, Any] | None = None,
    companions: dict[str, ConfigMixin] | None = None,
) -> TrainingState:
    """Train a network, and save it.

    Writes ``checkpoint-<step>/``, ``log.jsonl``, and at the end ``<name>/`` with the averaged weights, all in
    `options.output_dir`.

    Args:
        model: diffusers model. Ends with its averaged weights.
        dataset: map-style data set of dictionaries that the default collation understands. Items are made in a thread
            or in processes of their own: they must not draw from the global generators.
        compute_loss: function ``(model, batch, generator) -> loss``, a scalar; tensors of the batch are on the device
            already. All its randomness must come from the (CPU) generator.
        options: options of the run; see `TrainingOptions`.
        accelerator: accelerator from `create_accelerator`, or one with the mixed precision wanted.
        name: name of the folder the weights go to.
        foreground: flag for each item, whether it counts as foreground; for `options.foreground_fraction` other than
            0.
        validate: function that is given the model with averaged weights and returns results for the log and pictures.
            Must not use global randomness. Only the main process calls it, unless the weights are sharded.
        keep_best: name of a result of `validate`; the weights where it is largest go to ``<name>_best/``.
        identity: values that a resumed run must also have in common with the interrupted one: data, augmentation.
        companions: objects that belong beside the weights, such as a scheduler, by the name of their folder. Written
            when all checks are passed: a run that is refused changes nothing of an earlier one.

    Returns:
        The final state, with the history of losses and validations.

    Raises:
        FileExistsError: the folder holds an earlier run that is not to be resumed.
        ValueError: when resuming a run of another configuration, or from a damaged checkpoint.
        RuntimeError: with `compile`, the compiled network's gradient is wrong.
        FloatingPointError: when the loss or its gradient becomes NaN or infinite; names the step and the slices.
        DiskError: something could not be written.
    """
    n_processes, rank = accelerator.num_processes, accelerator.process_index
    own_batch, n_micro = options.train_batch_size, options.gradient_accumulation_steps
    output_dir = Path(options.output_dir)
    # What cannot work is refused before anything of an earlier run is deleted.
    check_accelerator(accelerator, options)
    SliceSampler(len(dataset), options.seed, foreground, options.foreground_fraction)
    prepare_output_dir(accelerator, options, name)
    last_step = options.last_step(len(dataset), n_processes)
    learning_rate = options.learning_rate * (options.images_per_step(n_processes) if options.scale_lr else 1)
    state = TrainingState()
    state.identity = {key: getattr(options, key) for key in IDENTITY}
    state.identity |= {"processes": n_processes, "distribution": str(accelerator.distributed_type.value)}
    state.identity |= {"items": len(dataset), **(identity or {})}
    state.identity |= {f"model.{key}": value for key, value in model.config.items() if not key.startswith("_")}
    state.schedule = {key: getattr(options, key) for key in SCHEDULE}
    # Sums are rounded otherwise by another number of threads or another version.
    state.schedule |= {"threads": torch.get_num_threads(), "torch": torch.__version__}

    if options.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if options.compile:
        compile_network(model, accelerator.device)
    model.to(accelerator.device)
    ema = None
    if options.ema_decay:
        ema = EMAModel(
            model.parameters(), options.ema_decay, use_ema_warmup=True, power=options.ema_power, foreach=True
        )
    accelerator.gradient_accumulation_steps = n_micro
    wrapped, optimizer = accelerator.prepare(model, create_optimizer(model.parameters(), options, accelerator.device))
    checkpoints = Checkpoints(accelerator, options, state, model, wrapped, ema, name)
    if options.resume_from_checkpoint:
        checkpoints.load(options.resume_from_checkpoint)
    if accelerator.is_main_process:
        for folder, companion in (companions or {}).items():
            with disk_errors(str(output_dir / folder), "Free some space and start again."):
                companion.save_pretrained(output_dir / folder)
    log = Log(
        accelerator,
        options,
        state,
        options.images_per_step(n_processes),
        last_step,
        {**state.identity, **state.schedule},
    )
    minutes_before, started = state.minutes, time.monotonic()
    # Of validations only the main process has entries; all must agree on whether the last step had one.
    validated_step = max((entry["step"] for entry in state.history if "loss" not in entry), default=None)

    def update_clock() -> None:
        state.minutes = minutes_before + (time.monotonic() - started) / 60

    def progress() -> float:
        update_clock()
        parts = [state.step / last_step] if last_step else []
        if options.max_train_minutes:
            # The clocks of several processes differ, but all must stop at the same step.
            minutes = broadcast_object_list([state.minutes])[0] if n_processes > 1 else state.minutes
            parts.append(minutes / options.max_train_minutes)
        return max(parts)

    def run_validation() -> None:
        nonlocal validated_step
        validated_step = state.step
        if validate is not None and (accelerator.is_main_process or is_sharded(accelerator)):
            with averaged_weights(model, ema):
                outcome = validate(model)
                results = outcome.results
                best = max((entry[keep_best] for entry in state.history if keep_best in entry), default=-math.inf)
                if keep_best is not None and results[keep_best] > best:
                    checkpoints.save_weights(output_dir / f"{name}_best")
            log.write(results)
            log.write_pictures(outcome.pictures)
        accelerator.wait_for_everyone()
        log.restart_clock()

    wrapped.train()
    batches = _batches(dataset, foreground, options, accelerator, first_draw=state.step * n_micro * own_batch)
    if options.compile:
        first = next(batches)
        check_compiled(wrapped, compute_loss, first, accelerator, options.seed)
        batches = itertools.chain([first], batches)
    while (done := progress()) < 1:
        factor = learning_rate_factor(
            options.lr_scheduler,
            state.step,
            done,
            options.lr_warmup_steps,
            options.lr_cooldown_fraction,
            options.lr_num_cycles,
            options.lr_power,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        losses, used = [], []
        for micro_step in range(n_micro):
            batch = next(batches)
            # Dropout inside a network knows no generator but the global one: the one place where that is set.
            torch.manual_seed(random_seed(options.seed, state.step, micro_step, rank, 1))
            with accelerator.accumulate(wrapped):
                loss = compute_loss(wrapped, batch, step_generator(options.seed, state.step, micro_step, rank))
                losses.append(loss.item())
                used.append(batch)
                accelerator.backward(loss)
        # Measured even where nothing is clipped: one gradient that is not finite would spoil weights and checkpoints.
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), options.max_grad_norm or math.inf)
        mean_loss = _check_finite(losses, norm, used, checkpoints)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.step(model.parameters())
        state.step += 1
        update_clock()
        log.add(mean_loss)
        if state.step % options.logging_steps == 0:
            log.write_loss(learning_rate * factor)
        if options.validation_steps and state.step % options.validation_steps == 0:
            run_validation()
        if options.checkpointing_steps and state.step % options.checkpointing_steps == 0:
            checkpoints.save()
    checkpoints.save()
    if validated_step != state.step:
        run_validation()
    if ema is not None:
        ema.copy_to(model.parameters())
    checkpoints.save_weights(output_dir / name)
    log.close()
    return state


def _batches(
    dataset: Dataset,
    foreground: np.ndarray | None,
    options: TrainingOptions,
    accelerator: Accelerator,
    first_draw: int,
) -> Iterator[dict[str, Any]]:
    """This process's part of every common batch, without end, on its device; `first_draw` as a single process."""
    own_batch, n_processes = options.train_batch_size, accelerator.num_processes
    sampler = SliceSampler(
        len(dataset),
        options.seed,
        foreground,
        options.foreground_fraction,
        start=first_draw * n_processes + accelerator.process_index * own_batch,
        stride=(own_batch, own_batch * n_processes),
    )
    loader = DataLoader(
        dataset,
        own_batch,
        sampler=sampler,
        num_workers=options.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator().manual_seed(options.seed),  # else the loader draws from the global one
    )
    for batch in loader if options.dataloader_num_workers else read_ahead(iter(loader)):
        yield {
            key: value.to(accelerator.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }


def _check_finite(
    losses: list[float], norm: Tensor | float | None, batches: list[dict[str, Any]], checkpoints: Checkpoints
) -> float:
    """Mean loss of a step over micro-steps and processes, which all stop together when one of them has a bad one.

    Called before the optimizer steps: what is written to look at is what the bad step started from.
    """
    accelerator, step = checkpoints.accelerator, checkpoints.state.step
    mean = sum(losses) / len(losses)
    # A gradient that overflows float16 is skipped by its scaler, as it should be.
    norm = 0.0 if norm is None or accelerator.mixed_precision == "fp16" else norm
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # FSDP 2 has parts of it
    is_bad = not (math.isfinite(mean) and math.isfinite(norm))
    if accelerator.num_processes > 1:
        both = accelerator.reduce(torch.tensor([mean, float(is_bad)], device=accelerator.device), "sum")
        mean, is_bad = float(both[0]) / accelerator.num_processes, bool(both[1])
    if not is_bad:
        return mean

    def slices(batch: dict[str, Any]) -> list[tuple[str, int]]:
        numbers = batch.get("slice")
        return [] if numbers is None else list(zip(batch["scan_id"], numbers.tolist(), strict=True))

    rows = [
        {"process": accelerator.process_index, "micro_step": number, "loss": loss, "slices": slices(batch)}
        for number, (loss, batch) in enumerate(zip(losses, batches, strict=True))
    ]
    rows = gather_object(rows) if accelerator.distributed_type != DistributedType.NO else rows
    bad = [row for row in rows if not math.isfinite(row["loss"])]
    what = f"The loss is {bad[0]['loss']}" if bad else f"The loss is finite, but its gradient has the norm {norm}"
    suspects = [one for row in bad or rows for one in row["slices"]]
    report = {"step": step, "gradient_norm": norm, "batches": rows}
    folder = checkpoints.save_diagnosis(report, batches)
    raise FloatingPointError(
        f"{what} at step {step}, on (scan, slice) {suspects}. What the step started from, and its batches, are in "
        f"{folder}. Leave damaged slices out, or resume from the last checkpoint with a smaller learning rate."
    )
