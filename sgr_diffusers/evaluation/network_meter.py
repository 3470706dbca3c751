"""Count the images that two networks are called on, and time the parts of the pipeline's calls.

Hooks of the networks record when a pass starts and ends. Each pair of successive events is one part of a call. The
results of the calls stay the same.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BACKWARD_COST", "NetworkMeter"]

# Forward passes that a backward pass counts as. The convention of training, 2, is for the gradients of images and
# weights together; that of the images alone, which guidance needs, takes about as many operations as a forward pass.
# 2 is generous towards what is compared with guidance at equal cost.
BACKWARD_COST = 2

_BUCKETS = {
    ("unet starts", "unet ends"): "unet_forward",
    ("unet backward starts", "unet backward ends"): "unet_backward",
    ("segmentation starts", "segmentation ends"): "segmentation",
    ("segmentation backward starts", "segmentation backward ends"): "segmentation",
    # Data consistency lies between the prior and the segmentation, there and back. Without a segmentation the
    # scheduler's step, which is small beside it, is in there, too.
    ("unet ends", "segmentation starts"): "physics",
    ("unet ends", "unet starts"): "physics",
    ("segmentation backward ends", "unet backward starts"): "physics",
}


class NetworkMeter:
    """Context in which all calls of the two networks are counted and timed.

    Args:
        unet: network of the prior; its first argument is a batch of images.
        segmentation_model: network that the pipeline calls between data consistency and the loss.

    Attributes:
        seconds: seconds spent in "unet_forward", "unet_backward", "segmentation" (forward and backward) and "physics".
        n_forward: number of images that went through the prior.
        n_backward: number of images whose gradient came back through the prior.
    """

    def __init__(self, unet: nn.Module, segmentation_model: nn.Module) -> None:
        """Hooks are set on entry only."""
        self._networks = {"unet": unet, "segmentation": segmentation_model}
        self._is_cuda = next((p.is_cuda for p in unet.parameters()), False)
        self.seconds = dict.fromkeys(("unet_forward", "unet_backward", "segmentation", "physics"), 0.0)
        self.n_forward = self.n_backward = 0

    @property
    def forward_equivalents(self) -> int:
        """Cost in forward passes of the prior on one image; a backward pass counts as `BACKWARD_COST`."""
        return self.n_forward + BACKWARD_COST * self.n_backward

    def __enter__(self) -> "NetworkMeter":
        """Set the hooks."""
        self._last = ("start", self._now())
        self._handles = []
        for name, network in self._networks.items():
            self._handles += [
                network.register_forward_pre_hook(self._before(name)),
                network.register_forward_hook(self._after(name)),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        """Remove them."""
        self._mark("stop")
        for handle in self._handles:
            handle.remove()

    def _now(self) -> float:
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _mark(self, event: str) -> None:
        now = self._now()
        bucket = _BUCKETS.get((self._last[0], event))
        if bucket is not None:
            self.seconds[bucket] += now - self._last[1]
        self._last = (event, now)

    def _before(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if name == "unet":
                self.n_forward += len(args[0])
            if args[0].requires_grad:
                args[0].register_hook(self._gradient_mark(f"{name} backward ends"))
            self._mark(f"{name} starts")

        return hook

    def _after(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._mark(f"{name} ends")
            first = output if isinstance(output, Tensor) else output[0]
            if first.requires_grad:
                first.register_hook(self._gradient_mark(f"{name} backward starts"))

        return hook

    def _gradient_mark(self, event: str) -> Callable:
        def hook(gradient: Tensor) -> None:
            self._mark(event)
            if event == "unet backward starts":
                self.n_backward += len(gradient)

        return hook
