"""Lists where two nested mappings differ, for messages."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["difference"]


def difference(before: Any, now: Any, name: str = "") -> list[str]:
    """List where two nested mappings differ, as texts "a.b: 1 there, 2 now"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        texts = []
        for key in sorted({*before, *now}):
            missing = "nothing"
            texts += difference(before.get(key, missing), now.get(key, missing), f"{name}.{key}" if name else key)
        return texts
    return [] if before == now else [f"{name}: {_short(before)} there, {_short(now)} now"]


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}..."
