"""Compile a network, and check that its compiled gradient is to be trusted."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Generator, Tensor, nn

from .checkpoints import is_sharded

__all__ = ["check_compiled", "compile_network"]

logger = logging.getLogger(__name__)

# Largest relative error of one parameter's gradient. Compiled code rounds in other places, which 16 bits show more.
TOLERANCE = {"no": 0.02, "bf16": 0.25, "fp16": 0.25}
# Gradients that are zero but for rounding, such as those of the bias of an attention's keys, have no relative error.
FLOOR = 1e-3


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Let `torch.compile` compile a network, in place, when it is first called.

    Dropout keeps the masks that it has without compiling.
    """
    # On CPUs, convolutions and nearest upsampling with the memory layout that inductor finds best have had a zero
    # gradient (PyTorch 2.13, `UNet2DModel`; outputs are right). `check_compiled` looks for more of this kind.
    network.compile(options={"fallback_random": True, "layout_optimization": device.type != "cpu"})


def check_compiled(
    network: nn.Module,
    compute_loss: Callable[[nn.Module, dict[str, Any], Generator], Tensor],
    batch: dict[str, Any],
    accelerator: Accelerator,
    seed: int,
) -> None:
    """Compare a compiled network's gradient with that of the same network as it was written, on one batch.

    A wrong gradient is silent: the loss of a step is right, and training goes on, worse. Leaves no gradients. Not done
    where a process holds a part of the gradients only (FSDP, DeepSpeed), which is logged.

    Args:
        network: network from `compile_network`, prepared by the accelerator, in training mode.
        compute_loss: function ``(network, batch, generator) -> loss``, which calls the network once.
        batch: batch that the loss needs, on the device.
        accelerator: accelerator that prepared the network.
        seed: seed of dropout and of all that the loss draws.

    Raises:
        RuntimeError: a gradient differs by more than rounding explains; names the worst parameters.
    """
    if is_sharded(accelerator) or accelerator.distributed_type == DistributedType.DEEPSPEED:
        logger.warning("Gradients of the compiled network are not checked: each process holds a part of them only.")
        return
    same_inputs = _SameInputs(network)
    compiled = _gradients(same_inputs, compute_loss, batch, accelerator, seed)
    with torch.compiler.set_stance("force_eager"):
        written = _gradients(same_inputs, compute_loss, batch, accelerator, seed)
    total = torch.stack([gradient.norm() for gradient in written.values()]).norm().item()
    errors = {
        name: ((compiled[name] - gradient).norm() / (gradient.norm() + FLOOR * total)).item()
        for name, gradient in written.items()
    }
    # Written so that NaN is an error, too.
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE[accelerator.mixed_precision]]
    if wrong:
        wrong.sort(key=errors.get, reverse=True)
        worst = ", ".join(f"{name} ({100 * errors[name]:.0f} %)" for name in wrong[:3])
        raise RuntimeError(
            f"`compile`: torch.compile of PyTorch {torch.__version__} gets the gradient of this network wrong on "
            f"{accelerator.device}: {len(wrong)} of {len(errors)} parameters, most of all {worst}. Train without "
            "--compile, or with another version of PyTorch."
        )


class _SameInputs(nn.Module):
    """Calls a network with the inputs of its first call: a search for adversarial images amplifies rounding."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.inputs = network, None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs = self.inputs or (args, kwargs)
        return self.network(*self.inputs[0], **self.inputs[1])


def _gradients(
    same_inputs: _SameInputs,
    compute_loss: Callable[[nn.Module, dict[str, Any], Generator], Tensor],
    batch: dict[str, Any],
    accelerator: Accelerator,
    seed: int,
) -> dict[str, Tensor]:
    network = same_inputs.network
    torch.manual_seed(seed)
    # As in training, float16 has no digits left for gradients as small as those of a mean over all pixels.
    scale = 1024 if accelerator.mixed_precision == "fp16" else 1
    with accelerator.no_sync(network):  # each process compares its own batch
        (scale * compute_loss(same_inputs, batch, torch.Generator().manual_seed(seed))).backward()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.float()
        for name, parameter in network.named_parameters()
    }
    network.zero_grad(set_to_none=True)
    return gradients
