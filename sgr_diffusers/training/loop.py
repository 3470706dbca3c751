"""Train a network on a data set with a given loss; write resumable checkpoints, averaged weights and a log.

The scripts ``training/train_prior.py`` and ``training/train_segmentation.py`` share this loop. What is random in step
n depends on (seed, n, micro-step, process) alone: a run that was interrupted ends with the same bits as one that was
not, as long as its end is given in steps.
"""

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
from torch.utils.data import DataLoader

from ..data.sampling import SliceSampler
from ..utils.disk import disk_errors
from .checkpoints import Checkpoints, averaged_weights, is_sharded, prepare_output_dir
from .data import read_ahead
from .learning_rate import learning_rate_factor
from .log import Log, Validation
from .machine import check_accelerator, create_optimizer
from .options import TrainingOptions
from .record import TrainingState
from .seeds import random_seed, step_generator

__all__ = ["fit"]

LossFunction = Callable[[nn.Module, dict[str, Any], Generator], Tensor]

# Options that a resumed run must have in common with the interrupted one, and those it may change with a warning.
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
    dataset: Any,
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
        FloatingPointError: when the loss or its gradient becomes NaN or infinite; names the step and the slices.
        DiskError: something could not be written.
    """
    # What cannot work is refused before anything of an earlier run is deleted.
    check_accelerator(accelerator, options)
    SliceSampler(len(dataset), options.seed, foreground, options.foreground_fraction)
    prepare_output_dir(accelerator, options, name)
    state = TrainingState()
    state.identity = _identity(model, options, accelerator) | {"items": len(dataset), **(identity or {})}
    state.schedule = {key: getattr(options, key) for key in SCHEDULE}
    # Sums are rounded otherwise by another number of threads or another version.
    state.schedule |= {"threads": torch.get_num_threads(), "torch": torch.__version__}

    last_step = options.last_step(len(dataset), accelerator.num_processes)
    run = _Run(model, compute_loss, options, accelerator, name, state, last_step)
    if options.resume_from_checkpoint:
        run.checkpoints.load(options.resume_from_checkpoint)
    if accelerator.is_main_process:
        for folder, companion in (companions or {}).items():
            path = Path(options.output_dir, folder)
            with disk_errors(str(path), "Free some space and start again."):
                companion.save_pretrained(path)
    run.start_clock_and_log()
    first_draw = state.step * options.gradient_accumulation_steps * options.train_batch_size
    batches = _batches(dataset, foreground, options, accelerator, first_draw)
    while (done := run.progress()) < 1:
        learning_rate = run.step(batches, done)
        if state.step % options.logging_steps == 0:
            run.log.write_loss(learning_rate)
        if options.validation_steps and state.step % options.validation_steps == 0:
            run.validate(validate, keep_best)
        if options.checkpointing_steps and state.step % options.checkpointing_steps == 0:
            run.checkpoints.save()
    run.finish(validate, keep_best)
    return state


def _identity(model: ModelMixin, options: TrainingOptions, accelerator: Accelerator) -> dict[str, Any]:
    """Return what a resumed run must have in common with the interrupted one, except for the data."""
    configuration = {f"model.{key}": value for key, value in model.config.items() if not key.startswith("_")}
    machine = {"processes": accelerator.num_processes, "distribution": str(accelerator.distributed_type.value)}
    return {key: getattr(options, key) for key in IDENTITY} | machine | configuration


class _Run:
    """A run on its devices: takes steps, validates, and knows how far it has come.

    Args:
        model: model to be trained.
        compute_loss: loss function, as for `fit`.
        options: options of the run.
        accelerator: accelerator of the run.
        name: name of the folder the weights go to.
        state: state of the run.
        last_step: number of the last step, if steps or epochs limit the run.
    """

    def __init__(
        self,
        model: ModelMixin,
        compute_loss: LossFunction,
        options: TrainingOptions,
        accelerator: Accelerator,
        name: str,
        state: TrainingState,
        last_step: int | None,
    ) -> None:
        """Put the model on its device, and make its optimizer and its averaged weights."""
        self.model, self.compute_loss, self.options, self.accelerator = model, compute_loss, options, accelerator
        self.name, self.state, self.last_step = name, state, last_step
        if options.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if options.compile:
            model.compile(options={"fallback_random": True})  # dropout keeps its masks
        model.to(accelerator.device)
        self.ema = None
        if options.ema_decay:
            self.ema = EMAModel(
                model.parameters(), options.ema_decay, use_ema_warmup=True, power=options.ema_power, foreach=True
            )
        accelerator.gradient_accumulation_steps = options.gradient_accumulation_steps
        optimizer = create_optimizer(model.parameters(), options, accelerator.device)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.checkpoints = Checkpoints(accelerator, options, state, model, self.wrapped, self.ema, name)

    def start_clock_and_log(self) -> None:
        """Begin to count minutes and to write the log, from where the state is."""
        options, state = self.options, self.state
        n_images = options.images_per_step(self.accelerator.num_processes)
        self.log = Log(
            self.accelerator, options, state, n_images, self.last_step, {**state.identity, **state.schedule}
        )
        self._learning_rate = options.learning_rate * (n_images if options.scale_lr else 1)
        self._minutes_before, self._started = state.minutes, time.monotonic()
        # Of validations only the main process has entries; all must agree on whether the last step had one.
        self._validated_step = max((entry["step"] for entry in state.history if "loss" not in entry), default=None)
        self.wrapped.train()

    def _update_clock(self) -> None:
        self.state.minutes = self._minutes_before + (time.monotonic() - self._started) / 60

    def progress(self) -> float:
        """Return the share of the run that is done; 1 at its end."""
        self._update_clock()
        parts = [self.state.step / self.last_step] if self.last_step else []
        if self.options.max_train_minutes:
            # The clocks of several processes differ, but all must stop at the same step.
            minutes = self.state.minutes
            if self.accelerator.num_processes > 1:
                minutes = broadcast_object_list([minutes])[0]
            parts.append(minutes / self.options.max_train_minutes)
        return max(parts)

    def step(self, batches: Iterator[dict[str, Any]], done: float) -> float:
        """Take one step of the optimizer.

        Args:
            batches: batches of this process; one is taken for each micro-step.
            done: share of the run that is done, for the learning rate.

        Returns:
            The learning rate of the step.
        """
        options, state, accelerator = self.options, self.state, self.accelerator
        learning_rate = self._learning_rate * learning_rate_factor(
            options.lr_scheduler,
            state.step,
            done,
            options.lr_warmup_steps,
            options.lr_cooldown_fraction,
            options.lr_num_cycles,
            options.lr_power,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        losses, used = [], []
        for micro_step in range(options.gradient_accumulation_steps):
            batch = next(batches)
            stream = options.seed, state.step, micro_step, accelerator.process_index
            # Dropout inside a network knows no generator but the global one: the one place where that is set.
            torch.manual_seed(random_seed(*stream, 1))
            with accelerator.accumulate(self.wrapped):
                loss = self.compute_loss(self.wrapped, batch, step_generator(*stream))
                losses.append(loss.item())
                used.append(batch)
                accelerator.backward(loss)
        # Measured even where nothing is clipped: one gradient that is not finite would spoil weights and checkpoints.
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), options.max_grad_norm or math.inf)
        mean_loss = _check_finite(losses, norm, used, self.checkpoints)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.model.parameters())
        state.step += 1
        self._update_clock()
        self.log.add(mean_loss)
        return learning_rate

    def validate(self, validate: Callable[[nn.Module], Validation] | None, keep_best: str | None) -> None:
        """Validate the averaged weights, and keep them where they are the best so far; arguments as for `fit`."""
        self._validated_step = self.state.step
        if validate is not None and (self.accelerator.is_main_process or is_sharded(self.accelerator)):
            with averaged_weights(self.model, self.ema):
                outcome = validate(self.model)
                earlier = [entry[keep_best] for entry in self.state.history if keep_best in entry]
                if keep_best is not None and outcome.results[keep_best] > max(earlier, default=-math.inf):
                    self.checkpoints.save_weights(Path(self.options.output_dir, f"{self.name}_best"))
            self.log.write(outcome.results)
            self.log.write_pictures(outcome.pictures)
        self.accelerator.wait_for_everyone()
        self.log.restart_clock()

    def finish(self, validate: Callable[[nn.Module], Validation] | None, keep_best: str | None) -> None:
        """Write the last checkpoint and the averaged weights, and validate them if that is not done yet."""
        self.checkpoints.save()
        if self._validated_step != self.state.step:
            self.validate(validate, keep_best)
        if self.ema is not None:
            self.ema.copy_to(self.model.parameters())
        self.checkpoints.save_weights(Path(self.options.output_dir, self.name))
        self.log.close()


def _batches(
    dataset: Any, foreground: np.ndarray | None, options: TrainingOptions, accelerator: Accelerator, first_draw: int
) -> Iterator[dict[str, Any]]:
    """Yield this process's part of every common batch on its device; it has drawn `first_draw` slices before."""
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
    """Return the mean loss of a step; all processes stop together when one of them has a loss that is not finite.

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
    suspects = [suspect for row in bad or rows for suspect in row["slices"]]
    report = {"step": step, "gradient_norm": norm, "batches": rows}
    folder = checkpoints.save_diagnosis(report, batches)
    raise FloatingPointError(
        f"{what} at step {step}, on (scan, slice) {suspects}. What the step started from, and its batches, are in "
        f"{folder}. Leave damaged slices out, or resume from the last checkpoint with a smaller learning rate."
    )
