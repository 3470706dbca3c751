"""Parses options whose words are joined by hyphens, accepts underscores in their place, and states their defaults."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["OptionParser", "ScriptHelp", "flag_of"]


def flag_of(name: str) -> str:
    """Return the option of a Python name: "--output-dir" of "output_dir"."""
    return f"--{name.replace('_', '-')}"


class _Help(argparse.HelpFormatter):
    """Adds the default of an option to its help, unless that names it already."""

    def add_argument(self, action: argparse.Action) -> None:
        """Add an argument to the help."""
        has_default = (
            not isinstance(action.default, bool | list | tuple | None) and action.default != argparse.SUPPRESS
        )
        if has_default and action.option_strings and action.help and "(default" not in action.help:
            action.help += " (default: %(default)s)"
        super().add_argument(action)


class ScriptHelp(_Help, argparse.RawDescriptionHelpFormatter):
    """The same for a script whose description is its docstring, whose lines stay as they are."""


class OptionParser(argparse.ArgumentParser):
    """Parser that reads ``--output_dir`` as ``--output-dir``, as diffusers' scripts spell it; so do its subparsers.

    Their help states the default of each option.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Make a parser as argparse does."""
        super().__init__(**{"formatter_class": _Help, **kwargs})

    def parse_known_args(  # type: ignore[override]  # argparse has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse arguments as argparse does, with hyphens in the names of options."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_hyphens(argument) for argument in given], namespace)


def _with_hyphens(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"{flag_of(name[2:])}{equals}{value}"
