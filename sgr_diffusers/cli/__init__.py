"""The `sgr` command, with one module for each group of subcommands."""

from .main import create_parser, main

__all__ = ["create_parser", "main"]
