"""Draws the figures of README and documentation from the synthetic knee that comes with the package.

    python docs/draw_figures.py

It takes a few minutes on a CPU. Case, seed and steps are those of `sgr demo`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sgr_diffusers import app
from sgr_diffusers.bounds import uncertain_share, volume_mm3
from sgr_diffusers.figures.bounds import UNCERTAIN, Panel, PanelRow, draw_rows, joint_window
from sgr_diffusers.reconstruction.demo import CASE
from sgr_diffusers.reconstruction.results import bounds_figure
from sgr_diffusers.reconstruction.run import read_scan, reconstruct_with_progress
from sgr_diffusers.reconstruction.settings import SamplingSettings
from sgr_diffusers.reconstruction.volume import VolumeReconstruction, load_pipeline

ASSETS = Path(__file__).parent / "assets"
APP = Path(app.__file__).parent


def overview(volume: VolumeReconstruction, tissues: Sequence[str]) -> Figure:
    """The picture of the README: undersampled image, both reconstructions, and what lies between them."""
    rows = []
    for name in tissues:
        number = volume.classes.index(name)
        shown = int(volume.reference_masks[:, number].sum(axis=(1, 2)).argmax())
        lower, upper = volume.masks[shown, number]
        lower_image, upper_image = volume.magnitudes[shown, number]
        reference = volume.reference_masks[shown, number]
        low, high, known = (float(volume_mm3(mask, volume.voxel_size_mm)) for mask in (lower, upper, reference))
        boundary = np.where(upper & ~lower, UNCERTAIN, 0).astype(np.uint8)
        share = f"{uncertain_share(np.float64(low), np.float64(high)):.0%} of the upper volume"
        panels = [
            Panel("undersampled", volume.zero_filled[shown], caption=f"measured {volume.label} faster"),
            Panel("lower", lower_image, outline=lower, caption=f"{low:.0f} mm$^3$"),
            Panel("upper", upper_image, outline=upper, caption=f"{high:.0f} mm$^3$"),
            Panel("left open", upper_image, boundary, caption=share),
            Panel("fully sampled", volume.fully_sampled[shown], outline=reference, caption=f"{known:.0f} mm$^3$"),
        ]
        window = joint_window([lower, upper, reference], min_size=48, margin=8)
        peak = float(np.quantile(volume.fully_sampled[shown][window], 0.995))
        rows.append(PanelRow(name.replace("_", "\n"), panels, window, peak))
    return draw_rows(rows, panel_inches=1.6, outline_name="segmentation of the image")


def draw_all(volumes: Sequence[VolumeReconstruction]) -> None:
    """Write all figures.

    Args:
        volumes: bounds of the bundled case at 4x, 8x and 16x.
    """
    ASSETS.mkdir(exist_ok=True)
    picture = overview(volumes[1], ("tibial_cartilage", "meniscus"))
    for path in (ASSETS / "bounds.png", APP / "example.png"):
        picture.savefig(path)
    title = "Lower and upper bound of each tissue; volumes of the slice shown"
    bounds_figure(volumes, title).savefig(ASSETS / "demo.png")


def main() -> None:
    """Reconstruct the case and draw."""
    settings = SamplingSettings(num_inference_steps=20, fast=True, seed=0)
    scans = [read_scan(CASE, mask=acceleration) for acceleration in (4.0, 8.0, 16.0)]
    draw_all(reconstruct_with_progress(load_pipeline(), scans, settings))


if __name__ == "__main__":
    main()
