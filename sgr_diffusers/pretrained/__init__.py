"""Folders of the checkpoints that come with the package.

`PRETRAINED` reconstructs and bounds the synthetic knees of this package. `GENERAL` has a prior for real scans of any
anatomy, and a segmentation model for cartilages and menisci of knees in any contrast.
"""

from pathlib import Path

__all__ = ["BUNDLED", "GENERAL", "PRETRAINED"]

PRETRAINED = Path(__file__).parent / "synthetic_knee"
GENERAL = Path(__file__).parent / "general"
BUNDLED = {folder.name: folder for folder in (PRETRAINED, GENERAL)}
