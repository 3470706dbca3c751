"""Create the accelerator and the optimizer that options ask for, or say why this machine cannot do it."""

import datetime
import importlib.util
import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration
from torch import nn

from ..utils.processes import end_with_parent
from .checkpoints import is_sharded
from .options import TrainingOptions

logger = logging.getLogger(__name__)

# Others wait while the main process validates, or writes. The 10 minutes that NCCL allows by itself can be too short.
PATIENCE = datetime.timedelta(hours=6)

__all__ = ["check_accelerator", "create_accelerator", "create_optimizer"]


def create_accelerator(options: TrainingOptions) -> Accelerator:
    """Create the accelerator of a run, with its trackers; sets the threads and the precision of products, too.

    Where a launcher has started this process, it ends with the launcher.

    What ``accelerate launch`` was told (devices, processes, DDP, FSDP, DeepSpeed) counts; precision and gradient
    accumulation come from the options.

    Raises:
        ValueError: float16 without a GPU.
        ImportError: a tracker is not installed; names the package.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", options.mixed_precision):
        logger.warning(
            "`accelerate launch` was told mixed precision %s, which does not count here: pass --mixed-precision %s to "
            "the script. It trains with %s.",
            launched,
            launched,
            options.mixed_precision,
        )
    for name in options.report_to:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"`report_to`: {name} is not installed. Run `pip install {name}`, or leave it out.")
    if options.mixed_precision == "fp16" and (options.cpu or not torch.cuda.is_available()):
        raise ValueError("`mixed_precision` fp16 needs a GPU: there is none, or `cpu` was asked for. Pass bf16 or no.")
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    if options.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        cpu=options.cpu,
        log_with=list(options.report_to) or None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        project_config=ProjectConfiguration(options.output_dir, f"{options.output_dir}/trackers"),
    )


def check_accelerator(accelerator: Accelerator, options: TrainingOptions) -> None:
    """Refuse what a device or a kind of distribution cannot do, and tell DeepSpeed the size of a batch.

    Raises:
        ImportError: 8-bit AdamW without bitsandbytes.
        ValueError: averaged weights where a process holds a part of them only, or rounded ones; 8-bit AdamW or a
            compiled network without a GPU.
    """
    if options.use_8bit_adam:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ImportError("`use_8bit_adam`: bitsandbytes is not installed. Run `pip install bitsandbytes`.")
        if accelerator.device.type != "cuda":
            raise ValueError(f"`use_8bit_adam` needs a GPU, the device is {accelerator.device}.")
    if options.compile and accelerator.device.type == "cpu":
        raise ValueError(
            "`compile` is for GPUs: on CPUs, torch.compile (PyTorch 2.13) has given layers of the prior a zero "
            "gradient while the loss was right. Leave it out."
        )
    if options.ema_decay and is_sharded(accelerator):
        raise ValueError(
            f"`ema_decay` {options.ema_decay}: weights cannot be averaged while they are sharded (FSDP, or ZeRO stage "
            "3). Pass --ema-decay 0, or launch with DDP or ZeRO stage 1 or 2, which fit networks of this size."
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if options.ema_decay and options.mixed_precision != "no":
            raise ValueError(
                f"`ema_decay` {options.ema_decay}: with `mixed_precision` {options.mixed_precision} DeepSpeed keeps "
                "the weights rounded, and so would their average be. Pass --ema-decay 0 or --mixed-precision no, or "
                "launch with DDP."
            )
        # DeepSpeed counts micro-steps and clips by itself, and reads this where no loader is prepared.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = options.train_batch_size
        config["gradient_accumulation_steps"] = options.gradient_accumulation_steps
        config["gradient_clipping"] = options.max_grad_norm


def create_optimizer(
    parameters: Iterable[nn.Parameter], options: TrainingOptions, device: torch.device
) -> torch.optim.Optimizer:
    """Create AdamW by the options, which `check_accelerator` has passed."""
    settings: dict[str, Any] = {
        "lr": options.learning_rate,
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
        "weight_decay": options.weight_decay,
    }
    if not options.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=device.type in ("cpu", "cuda"), **settings)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **settings)
