"""Draws the figures of README and documentation from synthetic knees.

    python docs/draw_figures.py

It takes a few minutes on a CPU. The picture of the README shows a knee of varied appearance, by the checkpoint
`general`. All else shows the knee that comes with the package, with seed and steps of `sgr demo`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from sgr_diffusers import SGRMRIPipeline, app, read_raw
from sgr_diffusers.bounds import uncertain_share, volume_mm3
from sgr_diffusers.calibration.record import FILE_NAME as CALIBRATION_FILE
from sgr_diffusers.data.skm_tea import list_scans
from sgr_diffusers.data.synthetic.knee import SyntheticKneeConfig, write_synthetic_dataset
from sgr_diffusers.figures.bounds import UNCERTAIN, Panel, PanelRow, draw_rows, joint_window
from sgr_diffusers.pretrained import GENERAL
from sgr_diffusers.reconstruction.demo import CASE, COVERAGE
from sgr_diffusers.reconstruction.results import bounds_figure, figure_title, interval_chart
from sgr_diffusers.reconstruction.run import reconstruct_with_progress
from sgr_diffusers.reconstruction.settings import SamplingSettings
from sgr_diffusers.reconstruction.source import read_scan
from sgr_diffusers.reconstruction.volume import VolumeReconstruction, load_pipeline

ASSETS = Path(__file__).parent / "assets"
APP = Path(app.__file__).parent


def overview(tissues: Sequence[tuple[str, Sequence[VolumeReconstruction]]], shown_volume: int) -> Figure:
    """Draw images at both ends of the calibrated interval of each tissue, and the interval.

    Args:
        tissues: name of the tissue of each row, and calibrated reconstructions at one or several accelerations.
        shown_volume: number of the reconstruction whose images are shown.
    """
    rows = []
    for name, volumes in tissues:
        volume = volumes[shown_volume]
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
            replace(interval_chart(volumes, number), title=f"{COVERAGE:.0%} interval, mm$^3$"),
        ]
        window = joint_window([lower, upper, reference], min_size=48, margin=8)
        peak = float(np.quantile(volume.fully_sampled[shown][window], 0.995))
        rows.append(PanelRow(name.replace("_", "\n"), panels, window, peak))
    return draw_rows(rows, panel_inches=1.6, outline_name="segmentation of the image")


def varied_knee() -> list[tuple[str, list[VolumeReconstruction]]]:
    """Reconstruct two tissues of a knee of varied appearance, 8 times undersampled, a slice each.

    The checkpoint `general` carries no calibration: it is made for real scans, for which that of synthetic ones would
    not hold. A copy of it was calibrated on 40 varied knees for this picture (`docs/how-to/calibration.md` has the
    commands). This knee is one of four that were looked at, with an earlier calibration.
    """
    config = SyntheticKneeConfig((6, 96, 80), (12.0, 1.6, 1.6), n_echoes=1, appearance="varied", seed=17)
    tissues = []
    with TemporaryDirectory() as folder:
        write_synthetic_dataset(Path(folder, "knee"), (0, 0, 1), config, progress=False)
        file = list_scans(Path(folder, "knee"), "test")[0].kspace_file
        model = shutil.copytree(GENERAL, Path(folder, "general"))
        shutil.copy(ASSETS / "varied_knees_calibration.json", model / CALIBRATION_FILE)
        pipe = load_pipeline(model)
        for name, number in (("femoral_cartilage", 2), ("patellar_cartilage", 1)):
            scan = read_scan(file, [number], mask=8.0)
            settings = SamplingSettings(num_inference_steps=12, fast=True, coverage=COVERAGE, classes=(name,))
            tissues.append((name, reconstruct_with_progress(pipe, [scan], settings)))
    return tissues


def between_bounds(pipe: SGRMRIPipeline, tissue: str, n_steps: int, n_frames: int = 9) -> list[Image.Image]:
    """Frames of an animation from the lower image of a tissue to the upper one, at 8x.

    Each frame is a mean of the two images, with weights from 1 and 0 to 0 and 1. Both fit the measured samples, so all
    of their means do. The outline is what the segmentation network finds in the frame.
    """
    scan = read_raw(CASE, slices=[1], mask=8.0)
    out = pipe(
        scan.kspace,
        scan.mask,
        coil_maps=scan.coil_maps,
        target="both",
        num_inference_steps=n_steps,
        generator=torch.Generator().manual_seed(0),
    )
    number = list(pipe.segmentation_model.config.class_names).index(tissue)
    lower, upper = out.images[0, number] / out.scale[0]
    weights = torch.linspace(0, 1, n_frames)[:, None, None]
    magnitudes = ((1 - weights) * lower + weights * upper).abs()
    with torch.inference_mode():
        labels = torch.cat([pipe.segmentation_model(image[None, None]).argmax(dim=1) for image in magnitudes])
    masks = (labels == number + 1).numpy()
    window = joint_window(masks, min_size=48, margin=8)
    peak = float(magnitudes[0].numpy()[window].max()) * 0.8
    frames = []
    for image, mask in zip(magnitudes.numpy(), masks, strict=True):
        volume = float(volume_mm3(mask, scan.voxel_size_mm))
        panels = [
            Panel("image", image, caption=f"{volume:.0f} mm$^3$ of {tissue.replace('_', ' ')}"),
            Panel("with outline", image, outline=mask),
        ]
        figure = draw_rows([PanelRow("", panels, window, peak)], panel_inches=2.4, outline_name="segmentation")
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").quantize(64))
    return frames


def draw_all(
    varied: Sequence[tuple[str, Sequence[VolumeReconstruction]]],
    calibrated: Sequence[VolumeReconstruction],
    settings: SamplingSettings,
    frames: Sequence[Image.Image],
) -> None:
    """Write all figures.

    Args:
        varied: tissues of a varied knee, with their calibrated reconstructions.
        calibrated: images of the bundled case at the ends of calibrated intervals, at 4x, 8x and 16x.
        settings: settings of the latter.
        frames: frames from the lower image of a tissue to the upper one.
    """
    ASSETS.mkdir(exist_ok=True)
    overview(varied, shown_volume=0).savefig(ASSETS / "bounds.png")
    tissues = [(name, calibrated) for name in ("tibial_cartilage", "meniscus")]
    overview(tissues, shown_volume=1).savefig(APP / "example.png")
    bounds_figure(calibrated, figure_title(settings)).savefig(ASSETS / "demo.png")
    there_and_back = [*frames, *frames[-2:0:-1]]
    durations = [900 if frame in (frames[0], frames[-1]) else 120 for frame in there_and_back]  # in ms
    there_and_back[0].save(
        ASSETS / "between_bounds.gif", save_all=True, append_images=there_and_back[1:], duration=durations, loop=0
    )


def main() -> None:
    """Reconstruct the case and draw."""
    scans = [read_scan(CASE, mask=acceleration) for acceleration in (4.0, 8.0, 16.0)]
    pipe = load_pipeline()
    settings = SamplingSettings(num_inference_steps=12, fast=True, coverage=COVERAGE)
    calibrated = reconstruct_with_progress(pipe, scans, settings)
    draw_all(varied_knee(), calibrated, settings, between_bounds(pipe, "tibial_cartilage", 25))


if __name__ == "__main__":
    main()
