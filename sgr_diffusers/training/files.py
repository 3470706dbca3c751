"""Seal folders so that damage can be found."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..utils.files import synchronise, write_json

__all__ = ["MANIFEST_FILE", "find_damage", "seal_folder"]

MANIFEST_FILE = "manifest.json"


def seal_folder(folder: Path) -> None:
    """Synchronise all files of a folder, and write the manifest of their sizes and hashes last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    for path in files:
        synchronise(path)
    entries = {str(path.relative_to(folder)): _describe(path) for path in files}
    write_json(folder / MANIFEST_FILE, {"files": entries})
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        synchronise(path)


def find_damage(folder: Path) -> str | None:
    """Say what is missing from a sealed folder or differs in it; `None` if the folder is whole."""
    try:
        entries = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST_FILE} cannot be read ({error})"
    for name, expected in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
    # Hashes after all sizes: what is cut short is found at once.
    changed = (name for name, expected in entries.items() if _describe(folder / name) != expected)
    name = next(changed, None)
    return None if name is None else f"the content of {name} is not what was written"


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
