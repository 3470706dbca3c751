"""Writes tables as plain text or in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["format_table"]


def format_table(rows: Sequence[Mapping[str, Any]], markdown: bool = False) -> str:
    """Format a table as plain text or in Markdown, both aligned: numbers to the right, texts to the left.

    Args:
        rows: mappings from column name to value, all with the same columns. Values are written by `str`: round
            numbers beforehand; `None` and NaN become a dash.
        markdown: whether to write Markdown, with bars between the columns.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one row, got none.")
    names = list(rows[0])
    cells = [["-" if _is_missing(row[name]) else str(row[name]) for name in names] for row in rows]
    is_number = [all(_looks_numeric(line[k]) for line in cells) for k in range(len(names))]
    widths = [max(len(name), 3, *(len(line[k]) for line in cells)) for k, name in enumerate(names)]

    def join(line: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, is_number, strict=True)
        ]
        return f"| {' | '.join(parts)} |" if markdown else "  ".join(parts).rstrip()

    rule = [
        ("-" * (width - 1) + ":") if right and markdown else "-" * width
        for width, right in zip(widths, is_number, strict=True)
    ]
    return "\n".join([join(names), join(rule), *(join(line) for line in cells)])


def _is_missing(value: Any) -> bool:
    return value is None or value != value


def _looks_numeric(text: str) -> bool:
    return text == "-" or text.lstrip("-")[:1].isdigit()
