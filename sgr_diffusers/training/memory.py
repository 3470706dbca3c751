"""Tell how much memory a process may still take."""

from pathlib import Path

import torch

__all__ = ["available_memory"]

GIB = 2**30


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that a process may still take on a device; `None` if that is not known."""
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
