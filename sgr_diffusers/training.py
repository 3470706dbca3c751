"""A network, its loss and a data set enter; resumable checkpoints, averaged weights and a log leave.

The loop that ``training/train_prior.py`` and ``training/train_segmentation.py`` share. What is random in step n
depends on (seed, n, micro-step, process) alone: a run that was interrupted ends with the same bits as one that was
not, as long as its end is given in steps.
"""

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sgr_diffusers.data.sampling import SliceSampler
from sgr_diffusers.training_options import TrainingOptions, TrainingState, write_json

__all__ = [
    "averaged_weights",
    "fit",
    "latest_checkpoint",
    "learning_rate_factor",
    "step_generator",
]

logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, dict[str, Any], Generator], Tensor]


def random_seed(*parts: int) -> int:
    """A seed that differs for every sequence of non-negative numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def step_generator(seed: int, step: int, micro_step: int = 0, rank: int = 0) -> Generator:
    """The CPU generator of one micro-step of one process, whatever came before it."""
    return torch.Generator().manual_seed(random_seed(seed, step, micro_step, rank))


def learning_rate_factor(
    schedule: str, step: int, progress: float | int, warmup_steps: int = 0, cooldown_fraction: float | int = 0.2
) -> float:
    """Share of the learning rate that a step uses.

    Args:
        schedule: one of `LR_SCHEDULERS`.
        step: optimizer steps done before this one.
        progress: part of the run that is over, in [0, 1], in steps or in minutes, whichever ends it sooner.
        warmup_steps: the factor rises linearly over so many steps.
        cooldown_fraction: last part of the run, in which `trapezoidal` falls to 0.
    """
    remaining = max(0.0, 1.0 - progress)
    factor = {
        "constant": 1.0,
        "linear": remaining,
        "cosine": 0.5 * (1 - math.cos(math.pi * remaining)),
        "trapezoidal": min(1.0, remaining / cooldown_fraction),
    }[schedule]
    return factor * min(1.0, (step + 1) / warmup_steps) if warmup_steps else factor


@contextmanager
def averaged_weights(model: nn.Module, ema: EMAModel | None) -> Iterator[nn.Module]:
    """The model with its averaged weights inside the block, and with its own again after it."""
    if ema is None:
        yield model
        return
    parameters = list(model.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield model
    finally:
        ema.restore(parameters)


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    folders = _checkpoints(Path(output_dir))
    return folders[-1] if folders else None


def _checkpoints(output_dir: Path) -> list[Path]:
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))


class _Checkpoints:
    """Writes and reads the checkpoints of one run. A folder named ``checkpoint-<step>`` is always complete."""

    def __init__(
        self,
        accelerator: Accelerator,
        options: TrainingOptions,
        state: TrainingState,
        model: ModelMixin,
        ema: EMAModel | None,
        name: str,
    ) -> None:
        self.accelerator, self.options, self.state = accelerator, options, state
        self.model, self.ema, self.name = model, ema, name
        self.output_dir = Path(options.output_dir)
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)
        if accelerator.is_main_process:
            for leftover in self.output_dir.glob(".*.partial"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint of the current step under another name, then rename it; remove the oldest ones."""
        final = self.output_dir / f"checkpoint-{self.state.step}"
        if final.exists():
            return
        partial = self.output_dir / f".{final.name}.partial"
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            partial.rename(final)
            keep = self.options.checkpoints_total_limit
            for old in _checkpoints(self.output_dir)[:-keep] if keep else []:
                # Renamed first: a removal cut short must not leave a folder that looks complete.
                shutil.rmtree(old.rename(old.with_name(f".{old.name}.partial")))
        self.accelerator.wait_for_everyone()

    def load(self, which: str) -> None:
        """Restore weights, optimizer and state from `which`: a folder, or "latest", which may not exist yet."""
        path = latest_checkpoint(self.output_dir) if which == "latest" else Path(which)
        if path is None:
            logger.info("No checkpoint in %s yet: starting from the beginning.", self.output_dir)
            return
        if not (path / "training_state.json").exists():
            raise FileNotFoundError(f"`resume_from_checkpoint`: {path} is not a complete checkpoint of this project.")
        restored = TrainingState(**json.loads((path / "training_state.json").read_text()))
        different = {
            key: (restored.identity.get(key), value)
            for key, value in self.state.identity.items()
            if restored.identity.get(key) != value
        }
        if different:
            raise ValueError(
                f"`resume_from_checkpoint`: {path} belongs to another run; (there, here) differ: {different}. Use "
                "the same options, or start a new run from the weights."
            )
        self.accelerator.load_state(str(path))
        self.state.step, self.state.minutes, self.state.history = restored.step, restored.minutes, restored.history
        logger.info("Resumed from %s.", path)

    def _save_weights(self, models: list[nn.Module], weights: list[Any], output_dir: str) -> None:
        if self.accelerator.is_main_process:
            self.model.save_pretrained(Path(output_dir) / self.name)
            with averaged_weights(self.model, self.ema):
                if self.ema is not None:
                    self.model.save_pretrained(Path(output_dir) / f"{self.name}_ema")
            write_json(Path(output_dir) / "training_state.json", dataclasses.asdict(self.state))
        weights.clear()  # so that accelerate does not write them a second time

    def _load_weights(self, models: list[nn.Module], input_dir: str) -> None:
        models.clear()
        stored = type(self.model).from_pretrained(Path(input_dir) / self.name)
        self.model.load_state_dict(stored.state_dict())
        if self.ema is not None:
            averaged = type(self.model).from_pretrained(Path(input_dir) / f"{self.name}_ema")
            for shadow, parameter in zip(self.ema.shadow_params, averaged.parameters(), strict=True):
                shadow.copy_(parameter.detach())
            self.ema.optimization_step = json.loads((Path(input_dir) / "training_state.json").read_text())["step"]


def fit(
    model: ModelMixin,
    dataset: Dataset,
    compute_loss: LossFunction,
    options: TrainingOptions,
    accelerator: Accelerator,
    name: str,
    foreground: np.ndarray | None = None,
    validate: Callable[[nn.Module], dict[str, Any]] | None = None,
    keep_best: str | None = None,
) -> TrainingState:
    """Train a network, and save it.

    Writes ``checkpoint-<step>/``, ``log.jsonl``, and at the end ``<name>/`` with the averaged weights, all in
    `options.output_dir`.

    Args:
        model: a diffusers model. Ends with its averaged weights.
        dataset: map-style; dictionaries that the default collation understands.
        compute_loss: ``(model, batch, generator) -> loss``, a scalar; tensors of the batch are on the device already.
            All its randomness must come from the (CPU) generator.
        options: see `TrainingOptions`.
        accelerator: with the mixed precision wanted.
        name: of the folder the weights go to.
        foreground: for each item, whether it counts as foreground; for `options.foreground_fraction` other than 0.
        validate: is given the model with averaged weights, returns results for the log. Must not use global
            randomness.
        keep_best: name of a result of `validate`; the weights where it is largest go to ``<name>_best/``.

    Returns:
        The final state, with the history of losses and validations.

    Raises:
        ValueError: when resuming a run of other options.
        FloatingPointError: when the loss becomes NaN or infinite; names the step and the slices.
    """
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    n_processes, rank = accelerator.num_processes, accelerator.process_index
    own_batch, n_micro = options.train_batch_size, options.gradient_accumulation_steps
    state = TrainingState()
    for key in ("seed", "train_batch_size", "gradient_accumulation_steps", "foreground_fraction", "ema_decay"):
        state.identity[key] = getattr(options, key)
    state.identity |= {"processes": n_processes, "items": len(dataset)}

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=(0.9, options.adam_beta2),
        weight_decay=options.weight_decay,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    ema = None
    if options.ema_decay:
        model.to(accelerator.device)
        ema = EMAModel(
            model.parameters(), options.ema_decay, use_ema_warmup=True, power=options.ema_power, foreach=True
        )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    checkpoints = _Checkpoints(accelerator, options, state, model, ema, name)
    if options.resume_from_checkpoint:
        checkpoints.load(options.resume_from_checkpoint)

    global_batch = own_batch * n_processes
    sampler = SliceSampler(
        len(dataset),
        options.seed,
        foreground,
        options.foreground_fraction,
        start=state.step * n_micro * global_batch + rank * own_batch,
        stride=(own_batch, global_batch),
    )
    loader = DataLoader(
        dataset,
        own_batch,
        sampler=sampler,
        num_workers=options.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator().manual_seed(options.seed),  # else the loader draws from the global one
    )
    log = _Log(accelerator, state, output_dir / "log.jsonl", global_batch * n_micro)
    minutes_before, started = state.minutes, time.monotonic()

    def update_clock() -> None:
        state.minutes = minutes_before + (time.monotonic() - started) / 60

    def progress() -> float:
        update_clock()
        parts = [state.step / options.max_train_steps] if options.max_train_steps else []
        parts += [state.minutes / options.max_train_minutes] if options.max_train_minutes else []
        # The clocks of several processes differ, but all must stop at the same step.
        return broadcast_object_list([max(parts)])[0] if n_processes > 1 else max(parts)

    def run_validation() -> None:
        if validate is not None and accelerator.is_main_process:
            with averaged_weights(model, ema):
                results = validate(model)
                best = max((entry[keep_best] for entry in state.history if keep_best in entry), default=-math.inf)
                if keep_best is not None and results[keep_best] > best:
                    model.save_pretrained(output_dir / f"{name}_best")
                log.write(results)
        accelerator.wait_for_everyone()
        log.restart_clock()

    wrapped.train()
    batches = iter(loader)
    while (done := progress()) < 1:
        factor = learning_rate_factor(
            options.lr_scheduler, state.step, done, options.lr_warmup_steps, options.lr_cooldown_fraction
        )
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        for micro_step in range(n_micro):
            batch = {
                key: value.to(accelerator.device, non_blocking=True) if isinstance(value, Tensor) else value
                for key, value in next(batches).items()
            }
            # Dropout inside a network knows no generator but the global one: the one place where that is set.
            torch.manual_seed(random_seed(options.seed, state.step, micro_step, rank, 1))
            last = micro_step == n_micro - 1
            with nullcontext() if last else accelerator.no_sync(wrapped):
                loss = compute_loss(wrapped, batch, step_generator(options.seed, state.step, micro_step, rank))
                if not math.isfinite(value := loss.item()):
                    slices = list(
                        zip(batch.get("scan_id", ()), batch.get("slice", torch.empty(0)).tolist(), strict=True)
                    )
                    raise FloatingPointError(f"The loss is {value} at step {state.step}, on (scan, slice) {slices}.")
                accelerator.backward(loss / n_micro)
            log.add(value / n_micro)
        if options.max_grad_norm:
            accelerator.clip_grad_norm_(wrapped.parameters(), options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.step(model.parameters())
        state.step += 1
        update_clock()
        if state.step % options.logging_steps == 0:
            log.write_loss(options.learning_rate * factor)
        if options.validation_steps and state.step % options.validation_steps == 0:
            run_validation()
        if options.checkpointing_steps and state.step % options.checkpointing_steps == 0:
            checkpoints.save()
    checkpoints.save()
    if not any(entry["step"] == state.step and "loss" not in entry for entry in state.history):
        run_validation()
    if ema is not None:
        ema.copy_to(model.parameters())
    if accelerator.is_main_process:
        model.save_pretrained(output_dir / name)
    return state


class _Log:
    """The lines of ``log.jsonl`` (which a resumed run continues) and of the console."""

    def __init__(self, accelerator: Accelerator, state: TrainingState, path: Path, images_per_step: int) -> None:
        self.state, self.path, self.images_per_step = state, path, images_per_step
        self.is_main = accelerator.is_main_process
        if self.is_main:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in state.history))
        self.restart_clock()

    def restart_clock(self) -> None:
        self.loss, self.first_step, self.clock = 0.0, self.state.step, time.monotonic()

    def add(self, loss: float) -> None:
        self.loss += loss

    def write_loss(self, learning_rate: float) -> None:
        n_steps = self.state.step - self.first_step
        if n_steps:
            rate = n_steps * self.images_per_step / (time.monotonic() - self.clock)
            self.write({"loss": self.loss / n_steps, "lr": learning_rate, "images_per_second": round(rate, 2)})
        self.restart_clock()

    def write(self, values: dict[str, Any]) -> None:
        entry = {"step": self.state.step, "minutes": round(self.state.minutes, 3), **values}
        self.state.history.append(entry)
        if self.is_main:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            if "loss" in values:
                logger.info(
                    "step %d  %.1f min  loss %.5f  lr %.2e  %.1f images/s",
                    *(entry[key] for key in ("step", "minutes", "loss", "lr", "images_per_second")),
                )
