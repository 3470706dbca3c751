"""Identify a network by its weights."""

import hashlib

import torch
from torch import nn

__all__ = ["weights_hash"]


def weights_hash(network: nn.Module) -> str:
    """Hash all parameters and buffers, by name, as they are in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
