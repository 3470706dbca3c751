"""Loads a repository of this package by the classes of the installed package, once its files are checked.

diffusers reads a list in `_class_name` as code of the repository, which it runs only behind `trust_remote_code`.
`SGRMRIPipeline.from_pretrained` does not need that code: the same classes are installed.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from .code_bundle import code_files
from .model_index import OWN_SEGMENTATION, SEGMENTATION_FILE, check_folder, read_json, read_model_index
from .repository import INDEX, write_json

__all__ = ["DamagedFileError", "check_cached_files", "drop_code", "use_package_classes"]

_checked: set[tuple[str, int, int]] = set()


class DamagedFileError(OSError):
    """A downloaded file is not what the Hub says it is."""


def drop_code(folder: str | os.PathLike) -> None:
    """Undo `make_portable`: a checkpoint that lies inside of this package needs no copy of its code."""
    folder = Path(folder)
    for name in code_files(object):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / INDEX, _package_index(read_json(folder / INDEX)))


def use_package_classes(pipeline_class: Any) -> None:
    """Let `pipeline_class.from_pretrained` take the classes of this package where a repository names its own code.

    diffusers has no hook for it: to diffusers, a list in `_class_name` means code of the repository. Only this class
    and classes derived from it are changed; a repository loads by `DiffusionPipeline` as diffusers alone loads it.
    """

    def _dict_from_json_file(cls: type, json_file: str | os.PathLike) -> dict[str, Any]:
        if Path(json_file).name != INDEX:
            return super(pipeline_class, cls)._dict_from_json_file(json_file)
        path = Path(json_file)
        check_cached_files(path.parent)
        index = read_model_index(path)
        check_folder(path.parent)
        return _package_index(index)

    pipeline_class._dict_from_json_file = classmethod(_dict_from_json_file)


def check_cached_files(folder: str | os.PathLike) -> None:
    """Compare the files of a snapshot in the Hub's cache with their hashes, by which the cache names them.

    `huggingface_hub` checks sizes. Each file is read once in a process. A folder that is no snapshot has nothing to
    compare with.

    Raises:
        DamagedFileError: a file is not what it should be. It is deleted.
    """
    for path in sorted(Path(folder).rglob("*")):
        blob = path.resolve()
        expected = blob.name if path.is_symlink() and blob.parent.name == "blobs" else ""
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected) or not path.is_file():
            continue
        status = path.stat()
        key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
        if key not in _checked and _digest(path, status.st_size, expected) != expected:
            path.resolve().unlink()
            path.unlink()
            raise DamagedFileError(
                f"{path.name} has been damaged on its way from the Hub: its hash is not {expected}. It is deleted; "
                "load again to fetch it again."
            )
        _checked.add(key)


def _digest(path: Path, size: int, expected: str) -> str:
    """SHA-256 of large files, and git's hash of small ones, as the Hub counts them."""
    digest = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _package_index(index: dict[str, Any]) -> dict[str, Any]:
    """A model index that names the classes of this package."""
    index = {**index, "_class_name": _last(index["_class_name"])}
    if index.get("segmentation_model") == [SEGMENTATION_FILE, OWN_SEGMENTATION]:
        index["segmentation_model"] = ["sgr_diffusers", OWN_SEGMENTATION]
    return index


def _last(class_name: Any) -> Any:
    return class_name[-1] if isinstance(class_name, list) and class_name else class_name
