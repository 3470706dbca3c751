"""Folders of the checkpoints that come with the package."""

from pathlib import Path

__all__ = ["PRETRAINED"]

PRETRAINED = Path(__file__).parent / "synthetic_knee"
