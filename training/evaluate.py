"""Evaluate SGR and repeated reconstruction on data in the SKM-TEA layout, on one or many devices.

    accelerate-launch training/evaluate.py DATA_DIR --model DIR --output runs/evaluation --accelerations 4 8 12 16

The same as ``sgr evaluate``. Processes share the slices; each result is stored as it is made, and a run that was
killed goes on where it was. ``sgr report runs/evaluation --output DIR`` makes tables and figures of the results.
"""

import argparse
import sys

from sgr_diffusers.cli.evaluate import add_arguments, run
from sgr_diffusers.utils.options import OptionParser, ScriptHelp


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    add_arguments(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(parse_arguments(), sys.argv[1:])
