"""The XML header of an ISMRMRD or fastMRI file: matrix sizes, fields of view, limits and centres."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .raw_slices import plausible_voxel_size, warn_suspect

__all__ = ["CartesianHeader", "CounterLimits", "read_header"]

_LARGEST_MATRIX = 2**15
_LARGEST_COUNTER = 2**16


@dataclass(frozen=True)
class CounterLimits:
    """Limits that a header states for a counter of its acquisitions; `None` for what it does not state.

    Attributes:
        minimum: smallest value.
        maximum: largest value.
        center: value at the k-space centre.
    """

    minimum: int | None
    maximum: int | None
    center: int | None


@dataclass(frozen=True)
class CartesianHeader:
    """What the reading of Cartesian k-space needs of the header; axes (x, y, z): readout, phase encoding, partitions.

    Attributes:
        trajectory: name of the trajectory, "cartesian" or another.
        encoded_matrix: matrix of k-space, readout oversampling included.
        encoded_fov_mm: field of view of the encoded matrix.
        recon_matrix: matrix of the image that the scanner makes.
        recon_fov_mm: field of view of the reconstruction matrix.
        step_1: limits of kspace_encode_step_1.
        step_2: limits of kspace_encode_step_2.
        slice: limits of the slice counter.
        n_encodings: number of encoding spaces that the header describes; the first is the one read here.
        calibration_mode: calibration mode of parallel imaging: "embedded", "separate", "external", "interleaved",
            or `None`.
        noise_bandwidth: relative bandwidth of the receiver for noise.
        patient_id: identifier of the patient, or `None`.
    """

    trajectory: str
    encoded_matrix: tuple[int, int, int]
    encoded_fov_mm: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov_mm: tuple[float, float, float]
    step_1: CounterLimits
    step_2: CounterLimits
    slice: CounterLimits
    n_encodings: int
    calibration_mode: str | None
    noise_bandwidth: float
    patient_id: str | None = None

    @property
    def readout_kept(self) -> int:
        """Readout samples that remain when the oversampling is removed."""
        share = self.recon_fov_mm[0] / self.encoded_fov_mm[0]
        kept = round(self.encoded_matrix[0] * share) if 0 < share < 1 else self.encoded_matrix[0]
        return max(kept, 1)

    @property
    def slice_thickness_mm(self) -> float:
        """Thickness of a slice of a 2-D scan."""
        return self.recon_fov_mm[2] / max(self.recon_matrix[2], 1)

    def check_imaging(self, path: Path) -> None:
        """Check that Cartesian images can be made by this header, and warn where it contradicts itself.

        Raises:
            ValueError: the trajectory is not Cartesian.
        """
        if self.trajectory != "cartesian":
            raise ValueError(f"{path} has a {self.trajectory or 'nameless'} trajectory, but must be Cartesian.")
        for image, kspace, name in zip(self.recon_fov_mm[:2], self.encoded_fov_mm[:2], "xy", strict=True):
            if image > 1.02 * kspace:
                warn_suspect(
                    f"the header of {path} has a field of view of {image:g} mm in {name} for the image (reconSpace), "
                    f"but of {kspace:g} mm for k-space (encodedSpace), which cannot be smaller. That of k-space is "
                    "used."
                )
        oversampling_by_matrix = self.encoded_matrix[0] / self.recon_matrix[0]
        oversampling_by_fov = self.encoded_fov_mm[0] / self.recon_fov_mm[0]
        if oversampling_by_matrix > 1.2 and abs(oversampling_by_fov - 1) < 0.02:
            warn_suspect(
                f"the header of {path} has {self.encoded_matrix[0]} readout samples for {self.recon_matrix[0]} "
                f"pixels, but the same field of view of {self.encoded_fov_mm[0]:g} mm for both: if the readout is "
                "oversampled, the field of view of encodedSpace is wrong, and with it the voxel size. No oversampling "
                "is removed."
            )

    def known_voxel_size(self, sizes_mm: tuple[float, ...], path: Path) -> tuple[float, float, float] | None:
        """Return the voxel size (slice, y, x), or `None` with a warning where it cannot be one in mm.

        Args:
            sizes_mm: edge lengths that follow from the header.
            path: path of the file, for messages.
        """
        if plausible_voxel_size(sizes_mm):
            z, y, x = (float(size) for size in sizes_mm)
            return z, y, x
        text = " x ".join(f"{size:.4g}" for size in sizes_mm)
        warn_suspect(
            f"the header of {path} gives voxels of {text} mm (encodedSpace: field of view {self.encoded_fov_mm} mm, "
            f"matrix {self.encoded_matrix}): it seems to be in another unit. The voxel size is taken as unknown."
        )
        return None


def read_header(xml: str | bytes, path: Path) -> CartesianHeader:
    """Read the first encoding of a header.

    Raises:
        ValueError: it is no such header, lacks what is needed, or states sizes that cannot be; `path` is named.
    """
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as error:  # ValueError: an encoding that is not known
        raise ValueError(f"{path} has a header that is not XML ({error}). Fetch or convert it again.") from error
    encodings = _children(root, "encoding")
    encoding = encodings[0] if encodings else None
    try:
        sizes = {
            (space, kind): tuple(_number(_text(encoding, space, kind, axis), convert) for axis in "xyz")
            for space in ("encodedSpace", "reconSpace")
            for kind, convert in (("matrixSize", int), ("fieldOfView_mm", float))
        }
        mode = _text(encoding, "parallelImaging", "calibrationMode")
        bandwidth = _text(root, "acquisitionSystemInformation", "relativeReceiverNoiseBandwidth")
        header = CartesianHeader(
            trajectory=(_text(encoding, "trajectory") or "").lower(),
            encoded_matrix=sizes["encodedSpace", "matrixSize"],
            encoded_fov_mm=sizes["encodedSpace", "fieldOfView_mm"],
            recon_matrix=sizes["reconSpace", "matrixSize"],
            recon_fov_mm=sizes["reconSpace", "fieldOfView_mm"],
            step_1=_limits(encoding, "kspace_encoding_step_1"),
            step_2=_limits(encoding, "kspace_encoding_step_2"),
            slice=_limits(encoding, "slice"),
            n_encodings=len(encodings),
            calibration_mode=None if mode is None else mode.lower(),
            noise_bandwidth=_number(bandwidth, float) if bandwidth else 1.0,
            patient_id=_text(root, "subjectInformation", "patientID"),
        )
    except TypeError as error:
        raise ValueError(f"{path} has a header without matrix sizes and fields of view ({error}).") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} has a header that cannot be used: {error}.") from error
    _check_sizes(header, path)
    return header


def _check_sizes(header: CartesianHeader, path: Path) -> None:
    lengths = (*header.encoded_fov_mm, *header.recon_fov_mm, header.noise_bandwidth)
    matrices = (*header.encoded_matrix, *header.recon_matrix)
    if min(*matrices, *lengths) <= 0:
        raise ValueError(f"{path} has a header with sizes that are not positive: {header}.")
    if max(matrices) > _LARGEST_MATRIX:
        raise ValueError(
            f"{path} has a header with a matrix of {header.encoded_matrix} (reconSpace {header.recon_matrix}), but at "
            f"most {_LARGEST_MATRIX} along an axis can be right."
        )


def _children(element: Any, name: str) -> list[Any]:
    """Children of that name, whatever the namespace."""
    return [child for child in element if isinstance(child.tag, str) and child.tag.rpartition("}")[2] == name]


def _text(element: Any, *names: str) -> str | None:
    for name in names:
        children = [] if element is None else _children(element, name)
        element = children[0] if children else None
    return None if element is None else (element.text or "").strip()


def _number(text: str | None, convert: Callable[[float], Any]) -> Any:
    """A finite number, whole numbers also as `8.0`; raises a TypeError for `None`."""
    value = float(text)  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no finite number")
    if convert is int and value != int(value):
        raise ValueError(f"{text!r} is no whole number")
    return convert(value)


def _limits(encoding: Any, counter: str) -> CounterLimits:
    values = [_text(encoding, "encodingLimits", counter, name) for name in ("minimum", "maximum", "center")]
    numbers = [None if value is None else _number(value, int) for value in values]
    if any(number is not None and not 0 <= number < _LARGEST_COUNTER for number in numbers):
        raise ValueError(f"encodingLimits of {counter} are {numbers}, but must be from 0 to {_LARGEST_COUNTER - 1}")
    return CounterLimits(*numbers)
