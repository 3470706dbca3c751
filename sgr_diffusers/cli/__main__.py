"""Runs the `sgr` command as `python -m sgr_diffusers.cli`."""

import sys

from .main import main

sys.exit(main())
