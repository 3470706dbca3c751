"""Reads the geometry of a DICOM series, and finds where the slices of a raw file lie in it."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from ..mri.operators import ifft2c
from ..utils.late_import import require
from .orientation import LPS_TO_RAS
from .raw_slices import RawSlices, check_voxel_size, warn_suspect

__all__ = ["DicomSeries", "Placement", "place_in_series", "read_series"]

_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
_NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
)
_MOST_VOXELS_OFF = 0.75
_MOST_COMPARED = 5  # slices


@dataclass(frozen=True)
class DicomSeries:
    """Single-frame MR images of one volume.

    Attributes:
        folder: folder of the files.
        headers: header of each image without its pixels, in the order of the positions.
        files: file of each image.
        affine: matrix from places (image, row, column) to mm in the world axes of NIfTI.
    """

    folder: Path
    headers: tuple[Any, ...]
    files: tuple[Path, ...]
    affine: Float[np.ndarray, "4 4"]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return int(self.headers[0].Rows), int(self.headers[0].Columns)

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel (image, row, column)."""
        image, row, column = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return image, row, column

    def pixels(self, number: int) -> Float[np.ndarray, "row column"]:
        """Read the pixels of an image.

        Raises:
            ValueError: they are missing or compressed by a method that pydicom has no decoder for.
        """
        try:
            return require("pydicom", "dicom").dcmread(self.files[number]).pixel_array.astype(np.float64)
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"`dicom`: the pixels of {self.files[number]} cannot be read ({error}).") from error


@dataclass(frozen=True)
class Placement:
    """Images of a series that the slices of a scan are.

    Attributes:
        headers: header of the image of each slice.
        axes: orientation of nibabel that turns `(slice, y, x)` into `(image, row, column)`, slices in their order.
    """

    headers: tuple[Any, ...]
    axes: Float[np.ndarray, "3 2"]

    def turned(self, volume: Shaped[np.ndarray, "slice y x"]) -> Shaped[np.ndarray, "slice row column"]:
        """Return slices with the rows and columns of the series."""
        from nibabel.orientations import apply_orientation

        return apply_orientation(volume, self.axes)


def read_series(folder: str | os.PathLike) -> DicomSeries:
    """Read the headers of a series of MR images; files that are no DICOM are left out.

    Args:
        folder: folder with the files of one series.

    Raises:
        ValueError: pydicom or highdicom is missing; there is no series, or more than one; a header lacks a tag; or the
            images are no equidistant, parallel slices of one size.
    """
    highdicom = require("highdicom", "dicom")
    folder = Path(folder)
    found = dict(_headers(folder))
    if not found:
        raise ValueError(f"`dicom` must be a folder with the files of a DICOM series, got {folder}, which has none.")
    files, headers = list(found), list(found.values())
    for file, header in found.items():
        missing = [keyword for keyword in _NEEDED if header.get(keyword) in (None, "")]
        if missing:
            raise ValueError(f"`dicom`: {file} lacks {', '.join(missing)}. Export the series again, with all tags.")
        if header.SOPClassUID != _MR_IMAGE:
            raise ValueError(
                f"`dicom` must hold single-frame MR images, but {file} holds {header.SOPClassUID.name}. Export the "
                "series as classic MR images."
            )
    for keyword in ("SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "Rows", "Columns"):
        _check_same(keyword, headers, folder)
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        _check_same(keyword, headers, folder, tolerance=1e-3)
    spacing, order = highdicom.spatial.get_series_volume_positions(headers)
    if spacing is None or order is None:
        raise ValueError(
            f"`dicom`: the images of {folder} do not lie at equal distances along a line, one at each position. "
            "Choose a series of one echo and one time, without gaps."
        )
    if len(headers) == 1:
        spacing = float(headers[0].get("SpacingBetweenSlices") or headers[0].get("SliceThickness") or 0)
        if spacing <= 0:
            raise ValueError(f"`dicom`: {files[0]} lacks SliceThickness.")
    rank = np.argsort(order)
    headers, files = [headers[number] for number in rank], [files[number] for number in rank]
    geometry = highdicom.VolumeGeometry.from_attributes(
        image_position=headers[0].ImagePositionPatient,
        image_orientation=headers[0].ImageOrientationPatient,
        rows=headers[0].Rows,
        columns=headers[0].Columns,
        pixel_spacing=headers[0].PixelSpacing,
        spacing_between_slices=spacing,
        number_of_frames=len(headers),
        coordinate_system="PATIENT",
    )
    affine = np.eye(4)
    affine[:3] = LPS_TO_RAS @ geometry.affine[:3]
    return DicomSeries(folder, tuple(headers), tuple(files), affine)


def _headers(folder: Path) -> Iterator[tuple[Path, Any]]:
    pydicom = require("pydicom", "dicom")
    if not folder.is_dir():
        raise ValueError(f"`dicom` must be a folder with the files of a DICOM series, got {folder}.")
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if header.file_meta.get("MediaStorageSOPClassUID") != pydicom.uid.MediaStorageDirectoryStorage:
            yield file, header


def _check_same(keyword: str, headers: list[Any], folder: Path, tolerance: float = 0.0) -> None:
    first = headers[0][keyword].value
    for header in headers:
        value = header[keyword].value
        if not (np.allclose(value, first, atol=tolerance) if tolerance else value == first):
            raise ValueError(
                f"`dicom`: the images of {folder} have different values of {keyword}, such as {first} and {value}. "
                "Choose a folder with one series alone."
            )


def place_in_series(scan: RawSlices, series: DicomSeries) -> tuple[RawSlices, Placement]:
    """Find the image of a series for each slice of a scan.

    Where the raw file says where its slices lie, positions decide. Where it does not, all images of the series are the
    slices of the scan in the order of their instance numbers or against it, and likeness of the images decides which
    way the axes run; a `SuspectDataWarning` says so.

    Args:
        scan: slices of a raw file.
        series: series of the same scan.

    Returns:
        The slices with voxel size and affine, and their place in the series.

    Raises:
        ValueError: the series is of another patient, or has another geometry than the scan.
    """
    patient = str(series.headers[0].PatientID)
    if scan.patient_id and scan.patient_id != patient:
        raise ValueError(
            f"`dicom`: {series.folder} is of patient {patient}, but {scan.scan_id} of {scan.patient_id}. Choose the "
            "series of the scan."
        )
    axes, numbers = _by_position(scan, series) if scan.affine is not None else _by_likeness(scan, series)
    headers = tuple(series.headers[number] for number in numbers)
    if scan.affine is not None:
        return scan, Placement(headers, axes)
    from nibabel.orientations import inv_ornt_aff

    affine = series.affine.copy()
    affine[:3, 3] = (series.affine @ [numbers[0], 0, 0, 1])[:3]
    affine[:3, 0] *= numbers[1] - numbers[0] if len(numbers) > 1 else 1
    affine = affine @ np.linalg.inv(inv_ornt_aff(axes, tuple(scan.kspace[:, 0].shape)))
    lengths = np.linalg.norm(affine[:3, 1:3], axis=0).tolist()
    return replace(scan, affine=affine, voxel_size_mm=(series.voxel_size_mm[0], *lengths)), Placement(headers, axes)


def _by_position(scan: RawSlices, series: DicomSeries) -> tuple[np.ndarray, list[int]]:
    from nibabel.orientations import inv_ornt_aff, io_orientation

    assert scan.affine is not None
    shape = tuple(scan.kspace[:, 0].shape)
    to_series = np.linalg.inv(series.affine)
    axes = io_orientation(to_series @ scan.affine)
    if np.isnan(axes).any() or axes[0, 0] != 0:
        raise ValueError(f"`dicom`: the images of {series.folder} are not parallel to the slices of {scan.scan_id}.")
    axes[0, 1] = 1
    size = tuple(shape[int(np.argwhere(axes[:, 0] == axis)[0, 0])] for axis in (1, 2))
    if size != series.size:
        raise ValueError(_other_size(scan, series, size))
    to_series = to_series @ scan.affine @ inv_ornt_aff(axes, shape)
    numbers = [round(float((to_series @ [k, (size[0] - 1) / 2, (size[1] - 1) / 2, 1])[0])) for k in range(shape[0])]
    corners = itertools.product((0, shape[0] - 1), (0, size[0] - 1), (0, size[1] - 1))
    off = max(
        float(np.abs((to_series @ [k, row, column, 1])[:3] - (numbers[k], row, column)).max())
        for k, row, column in corners
    )
    if off > _MOST_VOXELS_OFF or min(numbers) < 0 or max(numbers) >= len(series.headers):
        raise ValueError(
            f"`dicom`: by their positions, the slices of {scan.scan_id} are not the images of {series.folder}: they "
            f"are images {min(numbers)} to {max(numbers)} of {len(series.headers)}, with corners up to {off:.3g} "
            "voxels away. Choose the series of the scan."
        )
    return axes, numbers


def _by_likeness(scan: RawSlices, series: DicomSeries) -> tuple[np.ndarray, list[int]]:
    if scan.n_slices != len(series.headers):
        raise ValueError(
            f"`dicom`: {series.folder} has {len(series.headers)} images, but {scan.scan_id} has {scan.n_slices} "
            "slices and does not say where they lie. Choose the series of the scan."
        )
    in_order = sorted(range(scan.n_slices), key=lambda number: int(series.headers[number].InstanceNumber))
    chosen = np.unique(np.linspace(0, len(scan.slice_indices) - 1, _MOST_COMPARED).astype(int))
    image = torch.linalg.vector_norm(ifft2c(scan.kspace[chosen]), dim=1).double().numpy()
    candidates = []
    for is_reversed, is_transposed in itertools.product((False, True)[: scan.n_slices], (False, True)):
        size = image.shape[:0:-1] if is_transposed else image.shape[1:]
        if size != series.size or not _has_voxels(scan, series, is_transposed):
            continue
        order = in_order[::-1] if is_reversed else in_order
        numbers = [order[index] for index in scan.slice_indices]
        pixels = np.stack([series.pixels(numbers[k]) for k in chosen])
        for flips in itertools.product((1, -1), repeat=2):
            rows, columns = (2, 1) if is_transposed else (1, 2)
            axes = np.array([[0, 1], [rows, flips[0]], [columns, flips[1]]], float)
            turned = Placement((), axes).turned(image)
            with np.errstate(invalid="ignore"):
                likeness = float(np.nan_to_num(np.corrcoef(turned.ravel(), pixels.ravel())[0, 1]))
            candidates.append((likeness, axes, numbers))
    if not candidates:
        raise ValueError(_other_size(scan, series, image.shape[1:]))
    candidates.sort(key=lambda candidate: -candidate[0])
    best, axes, numbers = candidates[0]
    warn_suspect(
        f"{scan.scan_id} does not say where its slices lie: their place in {series.folder} is that where the images "
        f"are most alike (correlation {best:.2f}, of the next {candidates[1][0]:.2f}). Compare them by eye."
    )
    return axes, numbers


def _has_voxels(scan: RawSlices, series: DicomSeries, is_transposed: bool) -> bool:
    if scan.voxel_size_mm is None:
        return True
    between, y, x = check_voxel_size(scan.voxel_size_mm, "voxel-size")
    return np.allclose((between, x, y) if is_transposed else (between, y, x), series.voxel_size_mm, rtol=0.02)


def _other_size(scan: RawSlices, series: DicomSeries, size: tuple[int, ...]) -> str:
    voxels = "unknown size" if scan.voxel_size_mm is None else f"{_text(scan.voxel_size_mm)} mm"
    return (
        f"`dicom`: the images of {series.folder} have {_text(series.size)} pixels and voxels of "
        f"{_text(series.voxel_size_mm)} mm (between images, rows, columns), but the slices of {scan.scan_id} have "
        f"{_text(size)} pixels and voxels of {voxels}. Choose a series without interpolation, of this scan."
    )


def _text(numbers: Any) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
