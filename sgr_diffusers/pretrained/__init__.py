"""Folders of the checkpoints that come with the package.

`PRETRAINED` reconstructs and bounds the synthetic knees of this package. `GENERAL` has a prior for real scans of any
anatomy, and a segmentation model for cartilages and menisci of knees in any contrast. `BRAIN_TUMOUR` bounds tumours in
brains by the same prior.
"""

from pathlib import Path

__all__ = ["BRAIN_TUMOUR", "BUNDLED", "GENERAL", "PRETRAINED"]

PRETRAINED = Path(__file__).parent / "synthetic_knee"
GENERAL = Path(__file__).parent / "general"
BRAIN_TUMOUR = Path(__file__).parent / "brain_tumour"
BUNDLED = {folder.name: folder for folder in (PRETRAINED, GENERAL, BRAIN_TUMOUR)}
