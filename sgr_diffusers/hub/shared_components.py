"""Loads components that a checkpoint shares with another one beside it, so that no weights are stored twice.

A shared component is a folder that holds only `shared.json`, for example `{"checkpoint": "general"}`: the component of
the same name in the checkpoint `general`, whose folder lies beside that of the checkpoint. `save_pretrained` writes
all components, so that a saved pipeline stands alone.
"""

import os
import re
from pathlib import Path
from typing import Any

import diffusers

from .model_index import COMPONENTS, UnsafeCheckpointError, check_folder, read_json, read_model_index

__all__ = ["SHARED_FILE", "shared_components"]

SHARED_FILE = "shared.json"


def shared_components(folder: str | os.PathLike, options: dict[str, Any]) -> dict[str, Any]:
    """Load the components that a checkpoint shares with another one.

    Args:
        folder: folder of the checkpoint; the name of a Hub repository has none.
        options: options of `from_pretrained`; components among them are not loaded.

    Raises:
        UnsafeCheckpointError: `shared.json` does not name a checkpoint.
        OSError: there is no such checkpoint beside this one.
    """
    components = {}
    for name in COMPONENTS:
        file = Path(folder, name, SHARED_FILE)
        if name in options or not file.is_file():
            continue
        content = read_json(file)
        checkpoint = content.get("checkpoint") if isinstance(content, dict) else None
        if not isinstance(checkpoint, str) or not re.fullmatch(r"\w+", checkpoint):
            raise UnsafeCheckpointError(
                f'{name}/{SHARED_FILE} must be like {{"checkpoint": "general"}}, the name of a folder, got '
                f"{content!r}."
            )
        source = Path(folder).resolve().parent / checkpoint
        if not (source / name / "config.json").is_file():
            raise OSError(
                f"`{name}` of {folder} is that of the checkpoint {checkpoint}, which must lie beside it but does not. "
                "Load the checkpoint from the package, and save it by `save_pretrained` to have it whole."
            )
        check_folder(source)
        library, class_name = read_model_index(Path(folder) / "model_index.json")[name]
        if library != "diffusers":
            raise UnsafeCheckpointError(
                f"`{name}` must be a class of diffusers to be shared, got {library}.{class_name}."
            )
        dtype = options.get("dtype", options.get("torch_dtype"))
        dtype = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
        components[name] = getattr(diffusers, class_name).from_pretrained(
            source / name, use_safetensors=True, **({} if dtype is None else {"dtype": dtype})
        )
    return components
