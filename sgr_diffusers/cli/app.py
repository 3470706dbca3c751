"""Parses the arguments of `sgr app` and starts the server. Only parsing is here."""

import argparse
from typing import Any

from ..pipeline.settings import whole_number
from .options import add_command, parser_of

__all__ = ["add_app"]


def add_app(commands: Any) -> None:
    """Add `sgr app` to the subparsers of `sgr`."""
    command = add_command(
        commands,
        "app",
        _run,
        "Serve a page on which to upload raw k-space and see the bounds (needs: pip install 'sgr-diffusers[app]')",
        "sgr app --port 7860",
    )
    command.add_argument("--model", help="folder or Hub repository of the pipeline (default: the bundled one)")
    command.add_argument("--device", help="for example cuda:1 (default: a GPU if there is one)")
    command.add_argument("--host", help="address to listen at (default: this machine alone)")
    command.add_argument(
        "--port",
        type=parser_of(whole_number(1, 65535)),
        help="port to listen at (default: the first free port from 7860 on)",
    )
    command.add_argument(
        "--max-upload-mb", type=float, default=500.0, metavar="MB", help="size of the largest file that is taken"
    )
    command.add_argument(
        "--max-minutes", type=float, default=10.0, metavar="MIN", help="duration of the longest reconstruction"
    )
    command.add_argument("--max-queue", type=int, default=20, metavar="N", help="largest number of visitors that wait")


def _run(args: argparse.Namespace) -> None:
    from ..app.limits import AppLimits
    from ..app.server import launch_app

    limits = AppLimits(max_upload_mb=args.max_upload_mb, max_minutes=args.max_minutes, max_queue=args.max_queue)
    launch_app(args.model, args.device, limits, args.host, args.port)
