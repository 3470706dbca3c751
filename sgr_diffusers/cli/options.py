"""Makes subcommands, options of a command from a dataclass of settings, and settings from parsed arguments."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields
from typing import Any, TypeVar

from ..pipeline.settings import Rule
from ..utils.claims import Part
from ..utils.options import flag_of
from ..utils.processes import check_numbers

__all__ = [
    "add_command",
    "add_group",
    "add_settings",
    "add_sharing",
    "check_sharing",
    "parser_of",
    "settings_from",
]

Settings = TypeVar("Settings")


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a subcommand.

    Args:
        commands: subparsers of the command.
        name: name of the subcommand.
        run: function to call with the parsed arguments.
        summary: what it does, without a full stop.
        example: example of a call.
    """
    command = commands.add_parser(name, **_texts(summary, example))
    command.set_defaults(run=run, check=lambda args: None)
    command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return command


def add_group(commands: Any, name: str, summary: str, example: str) -> Any:
    """Add a subcommand that has subcommands itself, and return their subparsers; arguments as of `add_command`."""
    group = commands.add_parser(name, **_texts(summary, example))
    return group.add_subparsers(dest=f"{name}_command", required=True, metavar="COMMAND")


def _texts(summary: str, example: str) -> dict[str, str]:
    help_text = summary[0].lower() + summary[1:]
    return {"help": help_text, "description": f"{summary}.", "epilog": f"example: {example}"}


def parser_of(rule: Rule) -> Callable[[str], Any]:
    """Return the function that reads the text of an option as a value that obeys a rule."""

    def parse(text: str) -> Any:
        try:
            value = rule.parse(text)
        except ValueError:
            value = None
        if value is None or not rule.accepts(value):
            raise argparse.ArgumentTypeError(f"expected {rule.expected}, got {text!r}")
        return value

    return parse


def add_settings(groups: Mapping[str, Any], settings_class: type, only: Iterable[str] | None = None) -> None:
    """Add an option for each setting, with its default, rule and help text.

    Args:
        groups: parser, or group of a parser, for the settings of each group; others get no option.
        settings_class: dataclass whose fields were made by `pipeline.settings.setting`.
        only: names of the settings to add; `None` for all.
    """
    for entry in fields(settings_class):
        if entry.metadata["group"] in groups and (only is None or entry.name in only):
            _add_option(groups[entry.metadata["group"]], entry)


def _add_option(group: Any, entry: Field) -> None:
    rule, text = entry.metadata["rule"], entry.metadata["text"]
    short = entry.metadata["option"] or entry.name
    flags = [flag_of(name) for name in dict.fromkeys((short, entry.name))]
    if rule is None:
        group.add_argument(*flags, dest=entry.name, action="store_true", help=text)
        return
    form: dict[str, Any] = {"choices": rule.choices}
    if not rule.choices:
        form = {"type": parser_of(rule), "metavar": short.upper()}
    if entry.metadata["several"]:
        form["nargs"] = "+"
    default: Any = entry.metadata["unset"] if entry.default in (None, ()) else entry.default
    if entry.metadata["several"] and not isinstance(default, str):
        default = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in default)
    group.add_argument(*flags, dest=entry.name, default=entry.default, help=f"{text} (default: {default})", **form)


def add_sharing(group: Any, n_threads: int | None = 1) -> None:
    """Add the options of a command whose work any number of processes share.

    Args:
        group: parser, or group of a parser.
        n_threads: default number of threads of a process; `None` for a thread for each core.
    """
    default = "the cores, divided among the processes" if n_threads is None else n_threads
    group.add_argument(
        "--num-threads",
        type=int,
        default=n_threads,
        metavar="N",
        help="number of threads of a process; results are equal to the last bit for any number of processes, not of "
        f"threads (default: {default})",
    )
    group.add_argument("--num-processes", type=int, default=1, help="number of processes to start on this machine")
    group.add_argument(
        "--part",
        metavar="K/N",
        help="begin with the K-th of N parts of the work, and go on with what others have left (default: that of a "
        "SLURM array, by its variables)",
    )


def check_sharing(args: argparse.Namespace) -> None:
    """Check the options of `add_sharing`, and put the `Part` that this process begins with in place of its text.

    Raises:
        ValueError: an option cannot be used.
    """
    check_numbers(args.num_processes, 1 if args.num_threads is None else args.num_threads)
    args.part = Part.of_array() if args.part is None else Part.parse(args.part)


def settings_from(args: argparse.Namespace, settings_class: type[Settings]) -> Settings:
    """Return the settings of the parsed options; those without an option have their defaults.

    Args:
        args: parsed arguments of a parser with `add_settings`.
        settings_class: dataclass of settings.
    """
    names = [entry.name for entry in fields(settings_class)]  # type: ignore[arg-type]  # any dataclass
    values = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return settings_class(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
