"""Read the tensors of one network from a checkpoint file of somebody else, without running any code in it.

The module also checks that such tensors are exactly those that a network has.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_keys", "read_state_dict", "shape_of", "shortened"]

# `torch.optim.swa_utils.AveragedModel` keeps a counter beside the averaged network.
_COUNTER = "n_averaged"
_DEEPEST = 5  # dictionaries in dictionaries; a file may be made to contain itself
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def read_state_dict(path: str | Path, anchors: tuple[str, ...], entry: str | None = None) -> dict[str, Tensor]:
    """Read the state dict of one network.

    It may be the whole file, or lie in it under other names: ``{"state_dict": ...}``, ``{"ema": ...}``, ``module.`` or
    ``model.`` before every key. What lies around it must leave no doubt which one is meant.

    Args:
        path: file written by `torch.save`, or ``.safetensors`` file.
        anchors: names of tensors of which the network has at least one; they are what it is recognised by.
        entry: place of the network, if there are several: the names of the dictionaries around it and the prefix of
            its keys, joined by points, as the error lists them. Tensors beside it are then left out without a word.

    Returns:
        The tensors, on the CPU, as they were stored, under the names that the network itself gives them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is damaged, holds other objects than tensors, holds no such network, or
            several, or tensors beside it.
    """
    content = _load(Path(path))
    candidates = {
        ".".join(part for part in (*where, prefix[:-1]) if part): (mapping, prefix)
        for where, mapping in _mappings(content, ())
        for prefix in _prefixes(mapping, anchors)
    }
    if not candidates:
        raise ValueError(
            f"{path} holds no network of the kind wanted: no key in it is or ends in {' or '.join(anchors)}. It holds "
            f"{_contents(content)}."
        )
    if entry is None and len(candidates) > 1:
        raise ValueError(
            f"{path} holds {len(candidates)} networks, {_listed(candidates)}. Choose a network by `entry` (on the "
            "command line --prior-entry or --segmentation-entry)."
        )
    if entry is not None and entry not in candidates:
        raise ValueError(f"`entry` must be one of those in {path}, {_listed(candidates)}, got {entry!r}.")
    mapping, prefix = next(iter(candidates.values())) if entry is None else candidates[entry]
    beside = [key for key in mapping if not key.startswith(prefix) and key != _COUNTER]
    if beside and entry is None:
        raise ValueError(
            f"{path} holds a network under {prefix!r}, and beside it {shortened(beside)}. If these are not part of "
            f"it, leave them out by `entry` {next(iter(candidates))!r} (on the command line --prior-entry or "
            "--segmentation-entry)."
        )
    inner = tuple(other for where, other in candidates.values() if where is mapping and len(other) > len(prefix))
    keys = [key for key in mapping if key.startswith(prefix) and not key.startswith(inner)]
    state = {key.removeprefix(prefix): mapping[key] for key in keys}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key!r} is of type {type(value).__name__}, where a tensor is expected.")
    return {key: value.detach() for key, value in state.items()}


def check_keys(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a state dict that has not exactly the keys and shapes expected, or values that are no finite floats.

    Raises:
        ValueError: names the keys.
    """
    missing = [key for key in shapes if key not in state]
    unexpected = [key for key in state if key not in shapes]
    if missing or unexpected:
        parts = [("missing", missing), ("unexpected", unexpected)]
        raise ValueError(
            "The checkpoint is not of the architecture that it seems to have: "
            + "; ".join(f"{kind}: {shortened(keys)}" for kind, keys in parts if keys)
            + ". Is it complete, and of the network that its name says?"
        )
    for key, shape in shapes.items():
        if tuple(state[key].shape) != shape:
            raise ValueError(f"{key} must have the shape {shape} in this architecture, got {tuple(state[key].shape)}.")
        if state[key].dtype not in _FLOATS:
            raise ValueError(
                f"{key} must be float32, float16 or bfloat16, got {state[key].dtype}. Convert the state dict first."
            )
        if not state[key].is_meta and not state[key].isfinite().all():
            raise ValueError(f"{key} has values that are not finite. The training diverged, or the file is damaged.")


def shape_of(state: Mapping[str, Tensor], key: str, n_axes: int) -> tuple[int, ...]:
    """Return the shape of a tensor that shows a part of the architecture.

    Raises:
        ValueError: it is missing, or has another number of axes.
    """
    if key not in state:
        raise ValueError(
            f"{key} is missing in the checkpoint, which begins with {shortened([*state], 3) or 'nothing'}. Is it of "
            "the network that its name says, and complete?"
        )
    shape = tuple(state[key].shape)
    if len(shape) != n_axes:
        raise ValueError(f"{key} must have {n_axes} axes in a network for images, got the shape {shape}.")
    return shape


def shortened(names: list[str], n_shown: int = 5) -> str:
    """Write the first of many names, and how many more there are."""
    more = f" and {len(names) - n_shown} more" if len(names) > n_shown else ""
    return ", ".join(names[:n_shown]) + more


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what torch warns of here ends in an error, or does not matter
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load

                return load(file.read())
            return torch.load(file, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # of a damaged file, torch raises about anything
            raise ValueError(_why_not_loaded(path, error)) from error


def _why_not_loaded(path: Path, error: Exception) -> str:
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(TorchScript)", text)
    if refused:
        return (
            f"{path} holds more than tensors: {refused[1]}. It is not loaded, because such a file can run any code on "
            "this computer. If you trust it, open it where it was written and save `model.state_dict()` alone."
        )
    reason = " ".join(text.rpartition("WeightsUnpickler error:")[2].split())
    reason = re.split(" (?:Please file|Check the documentation)", reason)[0]  # torch's advice to its developers
    return f"{path} is not a PyTorch checkpoint, or it is damaged: {type(error).__name__} {reason}".rstrip()


def _mappings(content: Any, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """All dictionaries with names for keys, from the outside inwards, and the names on the way to them."""
    if isinstance(content, Mapping) and len(where) < _DEEPEST:
        if all(isinstance(key, str) for key in content):
            yield where, content
        for key, value in content.items():
            yield from _mappings(value, (*where, str(key)))


def _prefixes(mapping: Mapping[str, Any], anchors: tuple[str, ...]) -> list[str]:
    """What stands before an anchor, an empty text or one that ends in a point, once each."""
    prefixes = {
        key.removesuffix(anchor): None
        for key in mapping
        for anchor in anchors
        if key == anchor or key.endswith(f".{anchor}")
    }
    return list(prefixes)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) if name else "'' (the file itself)" for name in names)


def _contents(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"an object of type {type(content).__name__}"
    return f"{len(content)} entries: {shortened([str(key) for key in content])}" if content else "nothing"
