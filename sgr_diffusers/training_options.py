"""Command line options enter a training run, and the record of what it did leaves."""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

__all__ = ["LR_SCHEDULERS", "TrainingOptions", "TrainingState", "training_record", "write_json"]

LR_SCHEDULERS = ("constant", "cosine", "linear", "trapezoidal")


def _option(default: Any, help: str, **argument: Any) -> Any:
    return field(default=default, metadata={"help": help, **argument})


@dataclass
class TrainingOptions:
    """What both training scripts can be told. Every field is a command line option of the same name."""

    output_dir: str = _option("runs/training", "folder for checkpoints, log, weights and record")
    seed: int = _option(0, "of the weights, the order of the data, noise and augmentation")
    train_batch_size: int = _option(8, "slices per process and micro-step")
    gradient_accumulation_steps: int = _option(1, "micro-steps per optimizer step")
    max_train_steps: int | None = _option(None, "stop after this many optimizer steps", type=int)
    max_train_minutes: float | None = _option(
        None, "stop after this much time, that before a resume included", type=float
    )
    learning_rate: float = _option(1e-4, "after the warm-up")
    lr_scheduler: str = _option(
        "constant",
        "course of the learning rate after the warm-up; `trapezoidal` is constant, then falls linearly to 0",
        choices=LR_SCHEDULERS,
    )
    lr_warmup_steps: int = _option(0, "steps in which the learning rate rises linearly from 0")
    lr_cooldown_fraction: float = _option(0.2, "share of the run (steps or minutes) in which `trapezoidal` falls")
    adam_beta2: float = _option(0.999, "of AdamW")
    weight_decay: float = _option(0.0, "of AdamW")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm; 0: not at all")
    mixed_precision: str = _option("no", "precision of the network calls", choices=("no", "fp16", "bf16"))
    ema_decay: float = _option(
        0.999, "largest decay of the averaged weights, which are the ones kept; 0: no averaging"
    )
    ema_power: float = _option(0.75, "the decay rises with the steps as 1 - (1 + n) ** -power")
    foreground_fraction: float = _option(0.0, "share of the slices drawn from those that show any tissue class")
    validation_steps: int = _option(1000, "steps between validations; 0: only at the end")
    logging_steps: int = _option(50, "steps between lines of the log")
    checkpointing_steps: int = _option(1000, "steps between checkpoints; 0: only at the end")
    checkpoints_total_limit: int = _option(2, "number of checkpoints kept; 0: all")
    resume_from_checkpoint: str | None = _option(None, "`latest`, or a checkpoint folder", type=str)
    dataloader_num_workers: int = _option(0, "processes that read data; 0 for preloaded data")
    num_threads: int | None = _option(None, "threads of PyTorch", type=int)

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if self.max_train_steps is None and self.max_train_minutes is None:
            raise ValueError(
                "One of `max_train_steps` and `max_train_minutes` is needed: nothing would end the training."
            )
        for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "logging_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.max_train_minutes is not None and self.max_train_minutes <= 0:
            raise ValueError(f"`max_train_minutes` must be positive, got {self.max_train_minutes}.")
        if self.lr_scheduler not in LR_SCHEDULERS:
            raise ValueError(f"`lr_scheduler` must be one of {LR_SCHEDULERS}, got {self.lr_scheduler!r}.")
        if not 0 < self.lr_cooldown_fraction <= 1:
            raise ValueError(f"`lr_cooldown_fraction` must be in (0, 1], got {self.lr_cooldown_fraction}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {self.ema_decay}.")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, **defaults: Any) -> None:
        """Add every field to a parser, with a script's own defaults."""
        for option in dataclasses.fields(cls):
            argument = {"type": option.type, **option.metadata, "default": defaults.get(option.name, option.default)}
            argument["help"] += " (default: %(default)s)"
            parser.add_argument(f"--{option.name}", **argument)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "TrainingOptions":
        """Options out of parsed arguments."""
        return cls(**{option.name: getattr(arguments, option.name) for option in dataclasses.fields(cls)})


@dataclass
class TrainingState:
    """How far a run has come; part of every checkpoint.

    Attributes:
        step: optimizer steps done.
        minutes: time spent, over all sittings.
        history: one entry per line of the log: ``step``, ``minutes`` and ``loss``, or results of a validation.
        identity: what a resumed run must have in common with the interrupted one.
    """

    step: int = 0
    minutes: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)


def write_json(path: Path, content: Any) -> None:
    """Write a json file so that it is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n")
    partial.replace(path)


def training_record(options: TrainingOptions, state: TrainingState, accelerator: Accelerator) -> dict[str, Any]:
    """What somebody needs to judge or repeat a run: command, options, length, machine, versions, results."""
    import accelerate
    import diffusers

    def git(*arguments: str) -> str | None:
        result = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    batch = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    return {
        "command": " ".join(["python", *sys.argv]),
        "options": dataclasses.asdict(options),
        "seed": options.seed,
        "steps": state.step,
        "images": state.step * batch,
        "minutes": round(state.minutes, 2),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
        },
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain", "-uno") or "").splitlines(),
        "history": state.history,
    }
