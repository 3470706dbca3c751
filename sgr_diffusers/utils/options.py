"""Parses options whose words are joined by hyphens, and accepts underscores in their place."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["OptionParser", "flag_of"]


def flag_of(name: str) -> str:
    """Return the option of a Python name: "--output-dir" of "output_dir"."""
    return f"--{name.replace('_', '-')}"


class OptionParser(argparse.ArgumentParser):
    """Parser that reads ``--output_dir`` as ``--output-dir``, as diffusers' scripts spell it; so do its subparsers."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse arguments as argparse does, with hyphens in the names of options."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_hyphens(argument) for argument in given], namespace)


def _with_hyphens(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"{flag_of(name[2:])}{equals}{value}"
