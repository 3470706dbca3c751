"""Read the settings of a training run from command line options, and check them."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from os import PathLike
from typing import Any

from ..pipeline.settings import Rule, check_settings, one_of, real_number, setting, whole_number
from ..utils.options import OptionParser, flag_of
from .learning_rate import LR_SCHEDULERS

__all__ = ["TRACKERS", "TrainingOptions", "given_architecture", "parse_with_settings"]

TRACKERS = ("tensorboard", "wandb", "trackio")
_TEXT = Rule("a text", lambda value: isinstance(value, str | PathLike))
_FROM_ZERO, _FROM_ONE = whole_number(0), whole_number(1)
_POSITIVE = real_number("positive", lambda value: value > 0)
_NOT_NEGATIVE = real_number("0 or larger", lambda value: value >= 0)
_SHARE = real_number("from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE = real_number("from 0 to below 1", lambda value: 0 <= value < 1)
_ABOVE_ZERO = real_number("above 0 and at most 1", lambda value: 0 < value <= 1)


@dataclass
class TrainingOptions:
    """Settings of a training run. Every field is a command line option of the same name."""

    output_dir: str = setting(
        "runs/training", _TEXT, "folder for checkpoints, log, weights and record, seen by all nodes"
    )
    overwrite_output_dir: bool = setting(
        False, None, "delete checkpoints, weights and pictures of an earlier run in that folder"
    )
    seed: int = setting(0, _FROM_ZERO, "seed of the weights, the order of the data, noise and augmentation")
    # length
    max_train_steps: int | None = setting(None, _FROM_ONE, "stop after this many optimizer steps")
    max_train_minutes: float | None = setting(
        None, _POSITIVE, "stop after this much time, the time before a resume included"
    )
    num_train_epochs: float | None = setting(None, _POSITIVE, "stop after this many passes through the slices")
    # batches
    train_batch_size: int = setting(8, _FROM_ONE, "number of slices per process and micro-step")
    gradient_accumulation_steps: int = setting(1, _FROM_ONE, "number of micro-steps per optimizer step")
    foreground_fraction: float = setting(
        0.0, _SHARE, "share of the slices drawn from those that show any tissue class"
    )
    dataloader_num_workers: int = setting(
        0, _FROM_ZERO, "number of processes that read data; with 0 a thread reads it"
    )
    # optimizer
    learning_rate: float = setting(1e-4, _POSITIVE, "learning rate after the warm-up")
    scale_lr: bool = setting(
        False, None, "multiply the learning rate by slices per optimizer step, over all processes"
    )
    lr_scheduler: str = setting(
        "constant",
        one_of(LR_SCHEDULERS),
        "course of the learning rate after the warm-up; `trapezoidal` is constant, then falls linearly to 0",
    )
    lr_warmup_steps: int = setting(0, _FROM_ZERO, "number of steps in which the learning rate rises linearly from 0")
    lr_cooldown_fraction: float = setting(
        0.2, _ABOVE_ZERO, "share of the run (steps or minutes) in which `trapezoidal` falls"
    )
    lr_num_cycles: int = setting(1, _FROM_ONE, "number of falls of `cosine_with_restarts`")
    lr_power: float = setting(1.0, _POSITIVE, "exponent of `polynomial`")
    adam_beta1: float = setting(0.9, _BELOW_ONE, "decay of the mean gradient in AdamW")
    adam_beta2: float = setting(0.999, _BELOW_ONE, "decay of the mean squared gradient in AdamW")
    adam_epsilon: float = setting(1e-8, _NOT_NEGATIVE, "least divisor in AdamW")
    weight_decay: float = setting(0.0, _NOT_NEGATIVE, "weight decay of AdamW", option="adam_weight_decay")
    use_8bit_adam: bool = setting(False, None, "use AdamW of bitsandbytes, whose state takes a quarter of the memory")
    max_grad_norm: float = setting(1.0, _NOT_NEGATIVE, "norm that gradients are clipped to; 0 clips nothing")
    ema_decay: float = setting(
        0.999,
        _BELOW_ONE,
        "largest decay of the averaged weights, which are the weights that are kept; 0 averages nothing",
    )
    ema_power: float = setting(0.75, _NOT_NEGATIVE, "the decay rises with the steps as 1 - (1 + n) ** -power")
    # machine
    mixed_precision: str = setting("no", one_of(("no", "fp16", "bf16")), "precision of the network calls")
    gradient_checkpointing: bool = setting(False, None, "compute activations twice: less memory, more time")
    compile: bool = setting(False, None, "compile the network by torch.compile; on GPUs only")
    allow_tf32: bool = setting(
        False, None, "multiply float32 with 10 bits of mantissa: faster on Ampere GPUs and later"
    )
    num_threads: int | None = setting(None, _FROM_ONE, "number of threads of PyTorch")
    cpu: bool = setting(False, None, "compute on the CPU even where there is a GPU")
    skip_memory_check: bool = setting(False, None, "hold preloaded slices even if they seem not to fit into memory")
    # what is written
    validation_steps: int = setting(
        1000, _FROM_ZERO, "number of steps between validations; 0 validates only at the end"
    )
    logging_steps: int = setting(50, _FROM_ONE, "number of steps between lines of the log")
    checkpointing_steps: int = setting(
        1000, _FROM_ZERO, "number of steps between checkpoints; 0 writes one only at the end"
    )
    checkpoints_total_limit: int = setting(2, _FROM_ZERO, "number of checkpoints that are kept; 0 keeps all")
    resume_from_checkpoint: str | None = setting(None, _TEXT, "checkpoint folder to resume from, or `latest`")
    report_to: Sequence[str] = setting((), one_of(TRACKERS), "names of the trackers to report to", several=True)
    tracker_project_name: str = setting("sgr_diffusers", _TEXT, "name of the project in the trackers")
    # Hub
    push_to_hub: bool = setting(False, None, "publish the weights, with a card, when the training is over")
    hub_model_id: str | None = setting(None, _TEXT, "name of the repository (default: that of the output folder)")
    hub_token: str | None = setting(
        None, _TEXT, "token of the Hub, which is never written down (default: that of `hf auth login`)"
    )
    hub_private_repo: bool = setting(False, None, "make the repository private")

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if self.max_train_steps is None and self.max_train_minutes is None and self.num_train_epochs is None:
            raise ValueError(
                "One of `max_train_steps`, `max_train_minutes` and `num_train_epochs` is needed: nothing would end "
                "the training."
            )
        check_settings(self)
        if self.lr_scheduler == "constant_with_warmup" and not self.lr_warmup_steps:
            raise ValueError("`lr_scheduler` is 'constant_with_warmup': pass `lr_warmup_steps`, or take 'constant'.")
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
            rule, text = option.metadata["rule"], option.metadata["text"]
            form: dict[str, Any] = {"action": "store_true"}
            if rule is not None:
                form = {
                    "type": rule.parse,
                    "choices": rule.choices,
                    "default": defaults.get(option.name, option.default),
                }
            if option.metadata["several"]:
                form["nargs"] = "*"
            names = dict.fromkeys((option.metadata["option"] or option.name, option.name))
            parser.add_argument(*map(flag_of, names), dest=option.name, help=text, **form)

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
