"""Read the settings of a training run from command line options, and check them."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from ..utils.options import OptionParser, flag_of
from .learning_rate import LR_SCHEDULERS

__all__ = ["TRACKERS", "TrainingOptions", "given_architecture", "parse_with_settings"]

TRACKERS = ("tensorboard", "wandb", "trackio")


_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "be at least 1",
        lambda value: value >= 1,
        "train_batch_size gradient_accumulation_steps max_train_steps logging_steps lr_num_cycles",
    ),
    ("be positive", lambda value: value > 0, "max_train_minutes num_train_epochs learning_rate lr_power"),
    (
        "not be negative",
        lambda value: value >= 0,
        "dataloader_num_workers lr_warmup_steps validation_steps checkpointing_steps checkpoints_total_limit "
        "max_grad_norm weight_decay ema_power",
    ),
    ("be in (0, 1]", lambda value: 0 < value <= 1, "lr_cooldown_fraction"),
    ("be in [0, 1)", lambda value: 0 <= value < 1, "ema_decay adam_beta1 adam_beta2"),
)


def _option(default: Any, help: str, **argument: Any) -> Any:
    return field(default=default, metadata={"help": help, **argument})


@dataclass
class TrainingOptions:
    """Settings of a training run. Every field is a command line option of the same name."""

    output_dir: str = _option("runs/training", "folder for checkpoints, log, weights and record, seen by all nodes")
    overwrite_output_dir: bool = _option(
        False, "delete checkpoints, weights and pictures of an earlier run in that folder"
    )
    seed: int = _option(0, "seed of the weights, the order of the data, noise and augmentation")
    # length
    max_train_steps: int | None = _option(None, "stop after this many optimizer steps", type=int)
    max_train_minutes: float | None = _option(
        None, "stop after this much time, the time before a resume included", type=float
    )
    num_train_epochs: float | None = _option(None, "stop after this many passes through the slices", type=float)
    # batches
    train_batch_size: int = _option(8, "number of slices per process and micro-step")
    gradient_accumulation_steps: int = _option(1, "number of micro-steps per optimizer step")
    foreground_fraction: float = _option(0.0, "share of the slices drawn from those that show any tissue class")
    dataloader_num_workers: int = _option(0, "number of processes that read data; with 0 a thread reads it")
    # optimizer
    learning_rate: float = _option(1e-4, "learning rate after the warm-up")
    scale_lr: bool = _option(False, "multiply the learning rate by slices per optimizer step, over all processes")
    lr_scheduler: str = _option(
        "constant",
        "course of the learning rate after the warm-up; `trapezoidal` is constant, then falls linearly to 0",
        choices=LR_SCHEDULERS,
    )
    lr_warmup_steps: int = _option(0, "number of steps in which the learning rate rises linearly from 0")
    lr_cooldown_fraction: float = _option(0.2, "share of the run (steps or minutes) in which `trapezoidal` falls")
    lr_num_cycles: int = _option(1, "number of falls of `cosine_with_restarts`")
    lr_power: float = _option(1.0, "exponent of `polynomial`")
    adam_beta1: float = _option(0.9, "decay of the mean gradient in AdamW")
    adam_beta2: float = _option(0.999, "decay of the mean squared gradient in AdamW")
    adam_epsilon: float = _option(1e-8, "least divisor in AdamW")
    weight_decay: float = _option(0.0, "weight decay of AdamW", also=("adam_weight_decay",))
    use_8bit_adam: bool = _option(False, "use AdamW of bitsandbytes, whose state takes a quarter of the memory")
    max_grad_norm: float = _option(1.0, "norm that gradients are clipped to; 0 clips nothing")
    ema_decay: float = _option(
        0.999, "largest decay of the averaged weights, which are the weights that are kept; 0 averages nothing"
    )
    ema_power: float = _option(0.75, "the decay rises with the steps as 1 - (1 + n) ** -power")
    # machine
    mixed_precision: str = _option("no", "precision of the network calls", choices=("no", "fp16", "bf16"))
    gradient_checkpointing: bool = _option(False, "compute activations twice: less memory, more time")
    compile: bool = _option(False, "compile the network by torch.compile, and check its gradient first")
    allow_tf32: bool = _option(False, "multiply float32 with 10 bits of mantissa: faster on Ampere GPUs and later")
    num_threads: int | None = _option(None, "number of threads of PyTorch", type=int)
    cpu: bool = _option(False, "compute on the CPU even where there is a GPU")
    skip_memory_check: bool = _option(False, "hold preloaded slices even if they seem not to fit into memory")
    # what is written
    validation_steps: int = _option(1000, "number of steps between validations; 0 validates only at the end")
    logging_steps: int = _option(50, "number of steps between lines of the log")
    checkpointing_steps: int = _option(1000, "number of steps between checkpoints; 0 writes one only at the end")
    checkpoints_total_limit: int = _option(2, "number of checkpoints that are kept; 0 keeps all")
    resume_from_checkpoint: str | None = _option(None, "checkpoint folder to resume from, or `latest`", type=str)
    report_to: Sequence[str] = _option((), "names of the trackers to report to", type=str, nargs="*", choices=TRACKERS)
    tracker_project_name: str = _option("sgr_diffusers", "name of the project in the trackers")
    # Hub
    push_to_hub: bool = _option(False, "publish the weights, with a card, when the training is over")
    hub_model_id: str | None = _option(None, "name of the repository (default: that of the output folder)", type=str)
    hub_token: str | None = _option(
        None, "token of the Hub, which is never written down (default: that of `hf auth login`)", type=str
    )
    hub_private_repo: bool = _option(False, "make the repository private")

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if self.max_train_steps is None and self.max_train_minutes is None and self.num_train_epochs is None:
            raise ValueError(
                "One of `max_train_steps`, `max_train_minutes` and `num_train_epochs` is needed: nothing would end "
                "the training."
            )
        for text, is_allowed, names in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not is_allowed(value):
                    raise ValueError(f"`{name}` must {text}, got {value}.")
        if self.lr_scheduler not in LR_SCHEDULERS:
            raise ValueError(f"`lr_scheduler` must be one of {LR_SCHEDULERS}, got {self.lr_scheduler!r}.")
        if self.lr_scheduler == "constant_with_warmup" and not self.lr_warmup_steps:
            raise ValueError("`lr_scheduler` is 'constant_with_warmup': pass `lr_warmup_steps`, or take 'constant'.")
        unknown = set(self.report_to) - set(TRACKERS)
        if unknown:
            raise ValueError(f"`report_to` must be out of {TRACKERS}, got {sorted(unknown)}.")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise ValueError("`overwrite_output_dir` deletes what `resume_from_checkpoint` needs: pass one of them.")

    def images_per_step(self, n_processes: int) -> int:
        """Return the slices per optimizer step, over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * n_processes

    def last_step(self, n_items: int, n_processes: int) -> int | None:
        """Number of optimizer steps, if steps or epochs limit the run."""
        limits = [self.max_train_steps] if self.max_train_steps else []
        if self.num_train_epochs:
            limits.append(ceil(self.num_train_epochs * n_items / self.images_per_step(n_processes)))
        return min(limits, default=None)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, **defaults: Any) -> None:
        """Add every field to a parser, with a script's own defaults."""
        for option in dataclasses.fields(cls):
            argument = {**option.metadata, "default": defaults.get(option.name, option.default)}
            if option.type is bool:
                argument["action"] = "store_true"
            else:
                argument = {"type": option.type, **argument}
            names = (*argument.pop("also", ()), option.name)
            parser.add_argument(*(flag_of(name) for name in names), dest=option.name, **argument)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "TrainingOptions":
        """Make options from parsed arguments."""
        return cls(**{option.name: getattr(arguments, option.name) for option in dataclasses.fields(cls)})


def parse_with_settings(
    parser: argparse.ArgumentParser, named: Mapping[str, Mapping[str, Any]], arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line whose ``--settings NAME`` changes the defaults; what is given beside it still counts.

    Args:
        parser: parser of a script; ``--settings`` is added to it.
        named: defaults that each name stands for.
        arguments: arguments to parse instead of those of the command line.
    """
    parser.add_argument(
        "--settings",
        choices=sorted(named),
        help="defaults of a published training: "
        + "; ".join(f"{name}: {_as_typed(defaults)}" for name, defaults in named.items()).replace("%", "%%"),
    )
    first = OptionParser(add_help=False, allow_abbrev=False)
    first.add_argument("--settings")
    chosen = first.parse_known_args(arguments)[0].settings
    parser.set_defaults(**named.get(chosen, {}))
    return parser.parse_args(arguments)


def _as_typed(defaults: Mapping[str, Any]) -> str:
    parts = []
    for key, value in defaults.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        parts += [flag_of(key), *map(str, values)]
    return " ".join(parts)


def given_architecture(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Collect the options that describe a new network.

    Args:
        args: parsed arguments with `init_from`, and `None` for each of the others that was not given.
        names: names of options that a new network is made with.

    Raises:
        ValueError: some were given beside `init_from`, whose network is as it is.
    """
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.init_from and given:
        raise ValueError(
            f"`init_from` {args.init_from} has its own architecture: leave out "
            f"{', '.join(map(flag_of, given))}, or start a new network without --init-from."
        )
    return given
