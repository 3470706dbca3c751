"""Flags that are read later than they are computed, so that an accelerator does not run out of work meanwhile."""

import torch
from torch import Tensor

__all__ = ["LateFlags"]

_COPIES_LATE = ("cuda", "xpu")  # devices that copy to the host while they and the host go on


class LateFlags:
    """Flags on their way from a device to the host.

    Reading a flag at once makes the host wait until the device has done all that was asked of it, and leaves the
    device without work until the host has asked for more.
    """

    def __init__(self, flags: Tensor) -> None:
        """Ask for the copy.

        Args:
            flags: bool tensor on any device.
        """
        self.are_late = flags.device.type in _COPIES_LATE
        self._flags = flags.detach().to("cpu", non_blocking=self.are_late)
        self._arrival = torch.Event(device=flags.device) if self.are_late else None
        if self._arrival is not None:
            self._arrival.record()

    def tolist(self) -> list[bool]:
        """Return the flags, in one dimension; waits for what the device was asked for before them, no more."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._flags.flatten().tolist()
