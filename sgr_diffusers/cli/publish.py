"""Parses the arguments of `sgr publish`, runs it and prints what changed on the Hub, or would change."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .options import add_command, add_group

__all__ = ["add_publish"]


def add_publish(commands: Any) -> None:
    """Add `sgr publish` and its parts to the subparsers of `sgr`."""
    parts = add_group(
        commands,
        "publish",
        "Publish a pipeline, a data set or the Space on the Hub, with the token of `hf auth login` or HF_TOKEN",
        "sgr publish model runs/pipeline --repo org/knee-sgr --dry-run",
    )
    command = add_command(
        parts,
        "model",
        _publish_model,
        "Publish a pipeline with its code, a card filled from its records, and its evaluation results",
        "sgr publish model runs/pipeline --repo org/knee-sgr",
    )
    command.add_argument(
        "folder", type=Path, metavar="DIR", help="folder of the pipeline, with the records of its training"
    )
    _add_target(command)
    command.add_argument(
        "--dataset", metavar="NAME", help="repository of the data that the pipeline was trained and tested on"
    )
    command.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="folder of `sgr report` on this pipeline, whose Table 1 and figures the card shows",
    )
    command.add_argument(
        "--license",
        metavar="NAME",
        help="license of the weights; only where the data is neither synthetic nor SKM-TEA",
    )
    command.add_argument("--skip-snippet", action="store_true", help="do not run the card's example first")
    command = add_command(
        parts,
        "dataset",
        _publish_dataset,
        "Publish a synthetic data set; of people's data nothing but an index (--index)",
        "sgr publish dataset runs/knee --repo org/synthetic-knee",
    )
    command.add_argument("folder", type=Path, metavar="DATA_DIR", help="folder in the SKM-TEA layout")
    _add_target(command)
    command.add_argument(
        "--index", action="store_true", help="publish only a table of the slices, made from the annotations"
    )
    command = add_command(
        parts, "space", _publish_space, "Publish the Space, the app in a browser", "sgr publish space --repo org/sgr"
    )
    _add_target(command)
    command.add_argument(
        "--model", metavar="NAME", help="repository of the pipeline that the Space shows, for the card"
    )
    command.add_argument(
        "--package",
        metavar="SPEC",
        help="where the Space gets this package, as pip takes it (default: its name and version)",
    )


def _add_target(command: argparse.ArgumentParser) -> None:
    command.add_argument("--repo", required=True, metavar="NAME", help="repository, like org/name")
    command.add_argument(
        "--private", action="store_true", default=None, help="make the repository private, if it does not exist yet"
    )
    command.add_argument("--message", help="message of the commit")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--yes", action="store_true", help="push without asking")
    how.add_argument("--dry-run", action="store_true", help="show what would change and push nothing")


def _push(args: argparse.Namespace, kind: str, fill: Callable[[Path], None], **more: Any) -> None:
    from ..publishing.push import ask_on_terminal, publish

    if args.repo.count("/") != 1:
        raise ValueError(f"--repo must be like org/name, got {args.repo!r}.")
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder))
        address = publish(
            Path(folder),
            args.repo,
            kind,
            message=args.message or f"Publish the {kind} by sgr",
            private=args.private,
            is_sure=(lambda question: True) if args.yes else ask_on_terminal,
            look_only=args.dry_run,
            **more,
        )
    if address:
        print(address)


def _publish_model(args: argparse.Namespace) -> None:
    from ..publishing.stages import run_snippet, stage_model

    def fill(stage: Path) -> None:
        stage_model(args.folder, stage, args.repo, args.dataset, args.report, args.license)
        if (stage / "case.h5").is_file() and not args.skip_snippet:
            run_snippet(stage)

    _push(args, "model", fill)


def _publish_dataset(args: argparse.Namespace) -> None:
    from ..publishing.dataset_card import stage_index, stage_synthetic

    stage_data = stage_index if args.index else stage_synthetic
    _push(args, "dataset", lambda stage: stage_data(args.folder, stage, args.repo), gated=args.index)


def _publish_space(args: argparse.Namespace) -> None:
    from ..publishing.stages import stage_space

    _push(args, "space", lambda stage: stage_space(stage, args.model, args.package), space_sdk="gradio")
