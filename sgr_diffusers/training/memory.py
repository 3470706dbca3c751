"""A network and the options of a run enter; an estimate of the memory that it will take leaves, before it is taken."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin

from .checkpoints import is_sharded
from .options import TrainingOptions

__all__ = ["available_memory", "check_memory", "estimate_memory", "saved_activations"]

logger = logging.getLogger(__name__)
GIB = 2**30


def saved_activations(model: ModelMixin, *inputs: Any, gradient_checkpointing: bool = False) -> int:
    """Bytes that a forward pass keeps for the backward pass, without parameters, in float32.

    The network is built anew without memory (on the meta device) and called there, so that this costs neither.

    Args:
        model: gives class and configuration.
        *inputs: as for its `forward`; of tensors only the shape counts.
        gradient_checkpointing: count what is kept then.
    """
    with torch.device("meta"):
        copy = type(model).from_config(dict(model.config)).train()
    if gradient_checkpointing:
        copy.enable_gradient_checkpointing()
    inputs = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in inputs]
    parameters = {id(parameter) for parameter in copy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        # Views share their storage: each counts once, and stays alive so that its address is not used again.
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in parameters:
            kept[id(base)] = base
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        copy(*inputs)
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def estimate_memory(
    model: ModelMixin, options: TrainingOptions, *inputs: Any, extra_bytes: int = 0, n_shards: int = 1
) -> dict[str, int]:
    """Bytes of one process of a run, by what they hold. Coarse: some 20 % off is to be expected.

    Args:
        model: to be trained.
        options: batch size, averaging, precision, gradient checkpointing and kind of Adam count.
        *inputs: of its `forward`, for one slice.
        extra_bytes: what else is held, such as the data.
        n_shards: processes that share weights and optimizer state.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    one = saved_activations(model, *inputs, gradient_checkpointing=options.gradient_checkpointing)
    # Work space and gradients of activations came to a third more; under autocast normalisation stays in float32.
    share = 1.3 * (1.0 if options.mixed_precision == "no" else 0.6)
    return {
        "weights and gradients": 2 * weights // n_shards,
        "optimizer": int(weights * (0.5 if options.use_8bit_adam else 2)) // n_shards,
        "averaged weights": weights if options.ema_decay else 0,
        "activations": int(one * options.train_batch_size * share),
        "data": extra_bytes,
    }


def available_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take on a device; `None` if that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    import psutil

    available = psutil.virtual_memory().available
    try:  # a container may have less than the machine
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def check_memory(
    model: ModelMixin, options: TrainingOptions, accelerator: Accelerator, *inputs: Any, extra_bytes: int = 0
) -> dict[str, int]:
    """Refuse a run that will not fit, before its first step; warn of one that hardly does.

    See `estimate_memory` for the arguments and what is returned.

    Raises:
        MemoryError: the estimate is larger than what is available.
    """
    n_shards = accelerator.num_processes if is_sharded(accelerator) else 1
    parts = estimate_memory(model, options, *inputs, extra_bytes=extra_bytes, n_shards=n_shards)
    on_device = accelerator.device.type == "cpu"
    total = sum(parts.values()) - (0 if on_device else parts["data"])  # data in memory stays with the host
    if on_device:
        total *= int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    available = available_memory(accelerator.device)
    if available is None:
        return parts
    text = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items() if value)
    message = (
        f"about {total / GIB:.1f} GiB are needed ({text}) and {available / GIB:.1f} GiB are available on "
        f"{accelerator.device}"
    )
    logger.info("Memory: %s.", message)
    if total > available and not options.skip_memory_check:
        raise MemoryError(
            f"The run is estimated not to fit into memory: {message}. Lower --train_batch_size (and raise "
            "--gradient_accumulation_steps), pass --gradient_checkpointing, --mixed_precision bf16 or "
            "--use_8bit_adam, take a smaller network, or start nevertheless by --skip_memory_check."
        )
    if total > 0.8 * available:
        logger.warning("The run may not fit into memory: %s.", message)
    return parts
