"""Write a table of bounds, a figure like the paper's Fig. 3 and image files from reconstructed volumes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Real

from ..bounds import tissue_masks, uncertain_share, volume_mm3
from ..figures.bounds import (
    BoundPanels,
    Panel,
    PanelRow,
    bound_row,
    compare_bound,
    draw_rows,
    joint_window,
)
from ..figures.intervals import Intervals
from ..figures.tables import format_table
from ..guidance.targets import TARGETS
from ..io.dicom_series import Placement
from ..io.dicom_writer import write_dicom_images, write_dicom_segmentation
from .settings import SamplingSettings
from .volume import VolumeReconstruction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "bounds_figure",
    "figure_title",
    "interval_chart",
    "table_note",
    "table_text",
    "volume_table",
    "write_dicom",
    "write_images",
    "write_table",
]


def volume_table(volume: VolumeReconstruction) -> list[dict[str, Any]]:
    """Make a row for each class: its volumes in mm^3 over all slices of the volume, and how well the data is met.

    Returns:
        Columns `sampling`, `class`; `lower_mm3`, `upper_mm3` or `unguided_mm3`, those there are; `fully_sampled_mm3`,
        by the same network (`None` if unknown); with `coverage` the point estimate `point_mm3`, the calibrated
        interval from `interval_low_mm3` to `interval_high_mm3`, and `attained`: whether the images came to "both",
        "lower", "upper" or "neither" of its ends; with both bounds `uncertain_share`, V_unc / V_up (NaN for an empty
        upper bound); `residual`, ||A x - y|| / ||y||, the larger one of the reconstructions of the class; and
        `noise_residual`, the residual that noise alone would leave.
    """
    rows = []
    for number, name in enumerate(volume.classes):
        row: dict[str, Any] = {"sampling": volume.label, "class": name}
        for target, counts in zip(volume.targets, volume.voxel_counts[:, number].T, strict=True):
            row[f"{'unguided' if target == 'none' else target}_mm3"] = _mm3(volume, counts)
        known = None if volume.reference_counts is None else volume.reference_counts[:, number]
        row["fully_sampled_mm3"] = None if known is None else _mm3(volume, known)
        if volume.interval_mm3 is not None:
            row |= _calibrated(volume, number)
        if volume.targets == TARGETS["both"]:
            row["uncertain_share"] = float(uncertain_share(np.float64(row["lower_mm3"]), np.float64(row["upper_mm3"])))
        reconstruction = 0 if volume.targets == ("none",) else number
        row["residual"] = float(volume.data_residual[reconstruction].max())
        row["noise_residual"] = volume.noise_residual
        rows.append(row)
    if not rows:  # no segmentation model
        residual = float(volume.data_residual.max())
        rows = [{"sampling": volume.label, "class": "", "residual": residual, "noise_residual": volume.noise_residual}]
    return rows


def _calibrated(volume: VolumeReconstruction, number: int) -> dict[str, Any]:
    """Columns of a calibrated class: point estimate, interval, and at which of its ends there is an image."""
    assert volume.interval_mm3 is not None and volume.attained is not None and volume.point_estimate_mm3 is not None
    low, high = volume.interval_mm3[number].tolist()
    ends = [target for target, attained in zip(volume.targets, volume.attained[number], strict=True) if attained]
    attained = {0: "neither", 2: "both"}.get(len(ends)) or ends[0]
    point = float(volume.point_estimate_mm3[number])
    return {"point_mm3": point, "interval_low_mm3": low, "interval_high_mm3": high, "attained": attained}


def _mm3(volume: VolumeReconstruction, counts: Real[np.ndarray, " slice"]) -> float | None:
    """Volume in mm^3 over all slices; `None` where the voxel size is not known. Slices left out count nothing."""
    return None if volume.voxel_size_mm is None else float(volume_mm3(counts.astype(int), volume.voxel_size_mm, (0,)))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, in full precision; what is unknown or undefined is left empty."""
    pd.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the same rows for people: rounded, with the unit in the head of a column, samplings set apart."""
    heads = {
        "sampling": "sampling",
        "class": "tissue",
        "lower_mm3": "lower mm³",
        "upper_mm3": "upper mm³",
        "unguided_mm3": "volume mm³",
        "fully_sampled_mm3": "fully sampled mm³",
        "point_mm3": "point mm³",
        "interval_low_mm3": "interval from",
        "interval_high_mm3": "to mm³",
        "attained": "attained",
        "uncertain_share": "left open",
        "residual": "misfit",
        "noise_residual": "misfit of noise",
    }
    formats = {"uncertain_share": "{:.0%}", "residual": "{:.1%}", "noise_residual": "{:.1%}"}

    def text(key: str, value: Any) -> str | None:
        if isinstance(value, str) or value is None or value != value:
            return value.replace("_", " ") if isinstance(value, str) else None
        return formats.get(key, "{:,.0f}").format(value)

    lines = format_table(
        [{heads[key]: text(key, value) for key, value in row.items() if key in heads} for row in rows]
    ).splitlines()
    body = []
    for number, (row, line) in enumerate(zip(rows, lines[2:], strict=True)):
        if number and row["sampling"] != rows[number - 1]["sampling"]:
            body.append("")
        body.append(line)
    return "\n".join([*lines[:2], *body])


def table_note(settings: SamplingSettings) -> str:
    """Explain the columns of `table_text`.

    Args:
        settings: settings of the reconstructions.
    """
    lines = [
        "Misfit: distance of the image from the measured data, relative to the data; noise alone leaves the last "
        "column."
    ]
    if settings.target == "both":
        lines.insert(0, "Left open: (upper - lower) / upper.")
    if settings.coverage is not None:
        lines = [
            f"Interval: holds a tissue's volume in {settings.coverage:.0%} of scans like those of the calibration. "
            "Point: the mean of two unguided images.",
            "Lower, upper: the images at its ends, within 5 % where attained, else as far as the data allow.",
            *lines,
        ]
    return "\n".join(lines)


def figure_title(settings: SamplingSettings) -> str:
    """Title of `bounds_figure` that says what the images are."""
    if settings.target == "none":
        return "Reconstruction without guidance"
    if settings.coverage is None:
        bounds = {"both": "Lower and upper bound"}.get(settings.target, f"{settings.target.capitalize()} bound")
        return f"{bounds} of each tissue; volumes of the slice shown"
    return f"Images at the ends of {settings.coverage:.0%} intervals of each tissue; volumes of the slice shown"


def bounds_figure(volumes: Sequence[VolumeReconstruction], title: str = "") -> "Figure":
    """Draw a scan: a row for each class, of the slice in which the class is largest.

    At one acceleration it shows both reconstructions, both bounds and the uncertainty boundary; at several, the bounds
    of each and a chart of their volumes.

    Args:
        volumes: volumes of the same slices, with the same classes and targets, for example at several accelerations.
        title: text over the figure.
    """
    if volumes[0].targets == ("none",):
        return _plain_figure(volumes, title)
    rows = []
    for number, name in enumerate(volumes[0].classes):
        slice_number = _shown_slice(volumes, number)
        views = [_view(volume, number, slice_number) for volume in volumes]
        window = joint_window([mask for view in views for mask in view.masks])
        label = f"{name.replace('_', ' ')}\nslice {volumes[0].numbers[slice_number]}".replace(
            " cartilage", "\ncartilage"
        )
        if len(volumes) == 1:
            row = bound_row(views[0], label, window, _captions(volumes[0], views[0]))
            chart = [interval_chart(volumes, number)] if volumes[0].interval_mm3 is not None else []
            rows.append(replace(row, panels=[*row.panels, *chart]))
        else:
            rows.append(_comparison_row(volumes, views, label, window, number))
    return draw_rows(rows, title)


def _comparison_row(
    volumes: Sequence[VolumeReconstruction],
    views: Sequence[BoundPanels],
    label: str,
    window: tuple[slice, slice],
    number: int,
) -> PanelRow:
    """Bounds of one class at several accelerations, and a chart of their volumes."""
    captions = [_captions(volume, view) for volume, view in zip(volumes, views, strict=True)]
    panels: list[Panel | Intervals] = []
    first = views[0]
    if first.fully_sampled is not None:
        caption = captions[0]["reference"]
        panels.append(Panel("fully sampled", first.fully_sampled, outline=first.reference, caption=caption))
    for volume, view, texts in zip(volumes, views, captions, strict=True):
        for name, image, mask in (("lower", view.lower_image, view.lower), ("upper", view.upper_image, view.upper)):
            if image is not None and mask is not None:
                overlay = compare_bound(mask, view.reference, is_upper=name == "upper")
                panels.append(Panel(f"{volume.label}, {name} bound", image, overlay, caption=texts[name]))
    if first.lower is not None and first.upper is not None:
        panels.append(interval_chart(volumes, number))
    images = (first.fully_sampled, first.upper_image, first.lower_image, first.zero_filled)
    brightest = next(image for image in images if image is not None)
    return PanelRow(label, panels, window, float(np.quantile(brightest[window], 0.995)) or 1.0)


def interval_chart(volumes: Sequence[VolumeReconstruction], number: int) -> Intervals:
    """Make a chart of a class in all slices together: its calibrated intervals, or its bounds where there are none."""
    tables = [volume_table(volume)[number] for volume in volumes]
    labels, known = [volume.label for volume in volumes], tables[0]["fully_sampled_mm3"]
    unit = "mm$^3$" if len(volumes[0].numbers) == 1 else "mm$^3$ in all slices"
    lower, upper = ([row[f"{end}_mm3"] for row in tables] for end in ("lower", "upper"))
    if volumes[0].interval_mm3 is None:
        return Intervals(f"lower to upper, {unit}", labels, lower, upper, known)
    return Intervals(
        f"interval, {unit}",
        labels,
        [row["interval_low_mm3"] for row in tables],
        [row["interval_high_mm3"] for row in tables],
        known,
        points=[row["point_mm3"] for row in tables],
        images=list(zip(lower, upper, strict=True)),
        attained=[tuple(volume.attained[number].tolist()) for volume in volumes if volume.attained is not None],
    )


def write_images(
    folder: Path,
    volume: VolumeReconstruction,
    orientation: Sequence[str] | None = None,
    affine: Float[np.ndarray, "4 4"] | None = None,
    ismrmrd: bool = False,
) -> None:
    """Write magnitudes (float32) and labels (uint8) as NIfTI, one pair of files for each class and target.

    The files are `<class>_<target>_image.nii.gz` and `<class>_<target>_segmentation.nii.gz`, or for an unguided
    reconstruction `unguided_image.nii.gz` and `unguided_segmentation.nii.gz`. A segmentation holds the labels of all
    classes in that reconstruction; there is none without a segmentation model. Slices that were left out between
    others widen the spacing. Of several samples, the image is their mean, and
    `unguided_standard_deviation.nii.gz` the standard deviation around it. The files say as much of the place in the
    patient as is known, see `write_nifti`. With `ismrmrd` the same goes to `images.h5`, too, as a series each,
    named as the NIfTI files are.
    """
    from ..io.ismrmrd_writer import write_ismrmrd_images
    from ..io.nifti import write_nifti

    spacing = None
    geometry: dict[str, Any] = {}
    if volume.voxel_size_mm is not None:
        step = abs(volume.numbers[1] - volume.numbers[0]) if len(volume.numbers) > 1 else 1
        spacing = (volume.voxel_size_mm[0] * step, *volume.voxel_size_mm[1:])
        geometry = {"orientation": None if orientation is None else tuple(orientation), "affine": affine}
    for stem, class_number, number in _reconstructions(volume):
        image, segmentation = (
            volume.magnitudes[:, class_number, number],
            volume.segmentations[:, class_number, number],
        )
        arrays = {"image": image} | ({"segmentation": segmentation} if volume.labels else {})
        if volume.standard_deviation is not None:
            arrays["standard_deviation"] = volume.standard_deviation
        for name, array in arrays.items():
            write_nifti(folder / f"{stem}_{name}.nii.gz", array, spacing, **geometry)
            if ismrmrd:
                array = array.astype(np.uint16) if name == "segmentation" else array
                write_ismrmrd_images(folder / "images.h5", array, spacing, series=f"{stem}_{name}", **geometry)


def _reconstructions(volume: VolumeReconstruction) -> Iterator[tuple[str, int, int]]:
    """Name of each reconstruction in files, and its class and target by number."""
    for class_number in range(volume.magnitudes.shape[1]):
        for number, target in enumerate(volume.targets):
            yield "unguided" if target == "none" else f"{volume.classes[class_number]}_{target}", class_number, number


def write_dicom(folder: Path, volume: VolumeReconstruction, placement: Placement) -> None:
    """Write a DICOM series for each reconstruction, and the tissues of all of them as one DICOM segmentation.

    The series are folders named as the NIfTI files are; `segmentation.dcm` has a segment for each class and target.

    Args:
        folder: folder to make.
        volume: reconstructed slices.
        placement: images of the source series that the slices are.
    """
    from .. import __version__

    images = {stem: volume.magnitudes[:, c, t] for stem, c, t in _reconstructions(volume)}
    write_dicom_images(folder, images, placement, __version__)
    segments = {
        (name, target): volume.masks[:, number, k]
        for number, name in enumerate(volume.classes)
        for k, target in enumerate(volume.targets)
    }
    if segments:
        write_dicom_segmentation(folder / "segmentation.dcm", segments, placement, __version__)


def _shown_slice(volumes: Sequence[VolumeReconstruction], number: int) -> int:
    """Slice with most of the class in the fully sampled image; where it has none, in any of the bounds."""
    reference = volumes[0].reference_counts
    if reference is not None and reference[:, number].any():
        return int(np.argmax(reference[:, number]))
    return int(np.argmax(sum(volume.voxel_counts[:, number].sum(axis=1) for volume in volumes)))


def _view(volume: VolumeReconstruction, class_number: int, slice_number: int) -> BoundPanels:
    arrays: dict[str, Any] = {"zero_filled": volume.zero_filled[slice_number]}
    masks = tissue_masks(volume.segmentations[[slice_number]], volume.labels)[0, class_number]
    for number, target in enumerate(volume.targets):
        arrays[f"{target}_image"] = volume.magnitudes[slice_number, class_number, number]
        arrays[target] = masks[number]
    if volume.fully_sampled is not None and volume.reference is not None:
        arrays["fully_sampled"] = volume.fully_sampled[slice_number]
        arrays["reference"] = volume.reference[slice_number] == volume.labels[class_number]
    return BoundPanels(**arrays)


def _captions(volume: VolumeReconstruction, view: BoundPanels) -> dict[str, str]:
    """Volumes in the slice shown, in mm^3, below the panels."""
    captions = {
        name: f"{volume_mm3(mask, volume.voxel_size_mm):.0f} mm$^3$"
        for name, mask in (("lower", view.lower), ("upper", view.upper), ("reference", view.reference))
        if mask is not None
    }
    return captions | {"boundary": view.share_caption}


def _plain_figure(volumes: Sequence[VolumeReconstruction], title: str) -> "Figure":
    rows = []
    for volume in volumes:
        n_pixels = [np.isin(labels[0, 0], volume.labels).sum() for labels in volume.segmentations]
        slice_number = int(np.argmax(n_pixels))
        image, labels = volume.magnitudes[slice_number, 0, 0], volume.segmentations[slice_number, 0, 0]
        labels = np.where(np.isin(labels, volume.labels), labels, 0).astype(np.uint8)
        panels = [Panel("zero-filled", volume.zero_filled[slice_number])]
        if volume.fully_sampled is not None:
            panels.insert(0, Panel("fully sampled", volume.fully_sampled[slice_number]))
        panels.append(Panel("unguided" if volume.standard_deviation is None else "mean of samples", image))
        if volume.standard_deviation is not None:
            panels.append(Panel("5 x standard deviation", 5 * volume.standard_deviation[slice_number]))
        if volume.labels:
            panels.append(Panel("segmentation", image, labels, classes=True))
        window = (slice(0, image.shape[0]), slice(0, image.shape[1]))
        peak = float(np.quantile(image, 0.995)) or 1.0
        rows.append(PanelRow(f"{volume.label}\nslice {volume.numbers[slice_number]}", panels, window, peak))
    return draw_rows(rows, title, class_names=_names_by_label(volumes[0]))


def _names_by_label(volume: VolumeReconstruction) -> list[str]:
    names = dict(zip(volume.labels, volume.classes, strict=True))
    return [names.get(label, "") for label in range(1, max(names, default=0) + 1)]
