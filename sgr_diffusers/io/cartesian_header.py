"""The XML header of an ISMRMRD or fastMRI file enters; matrix sizes, fields of view and centres leave."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CartesianHeader", "read_header"]


@dataclass(frozen=True)
class CartesianHeader:
    """What the reading of Cartesian k-space needs of the header; axes (x, y, z): readout, phase encoding, partitions.

    Attributes:
        trajectory: "cartesian" or another.
        encoded_matrix: of k-space, readout oversampling included.
        encoded_fov_mm: field of view that belongs to it.
        recon_matrix: of the image that the scanner makes.
        recon_fov_mm: field of view that belongs to it.
        center_1: value of kspace_encode_step_1 at the k-space centre; `None`: the middle of the matrix.
        center_2: the same of kspace_encode_step_2.
        maximum_1: largest value of kspace_encode_step_1; `None` if not stated.
        calibration_mode: of parallel imaging: "embedded", "separate", "external", "interleaved", or `None`.
        noise_bandwidth: relative bandwidth of the receiver for noise.
    """

    trajectory: str
    encoded_matrix: tuple[int, int, int]
    encoded_fov_mm: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov_mm: tuple[float, float, float]
    center_1: int | None
    center_2: int | None
    maximum_1: int | None
    calibration_mode: str | None
    noise_bandwidth: float

    @property
    def readout_kept(self) -> int:
        """Readout samples that remain when the oversampling is removed."""
        share = self.recon_fov_mm[0] / self.encoded_fov_mm[0]
        kept = round(self.encoded_matrix[0] * share) if 0 < share < 1 else self.encoded_matrix[0]
        return max(kept, 1)


def read_header(xml: str | bytes, path: Path) -> CartesianHeader:
    """Read the first encoding of a header.

    Raises:
        ValueError: it is no such header, or lacks what is needed; `path` is named.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} has a header that is not XML ({error}). Fetch or convert it again.") from error

    def find(*names: str) -> str | None:
        element = root
        for name in names:
            element = next((child for child in element if child.tag.rpartition("}")[2] == name), None)
            if element is None:
                return None
        return (element.text or "").strip()

    def number(*names: str) -> int | None:
        text = find(*names)
        return None if text is None else int(float(text))

    try:
        sizes = {}
        for space in ("encodedSpace", "reconSpace"):
            for kind, convert in (("matrixSize", int), ("fieldOfView_mm", float)):
                sizes[space, kind] = tuple(convert(float(find("encoding", space, kind, axis))) for axis in "xyz")
        limits = ("encoding", "encodingLimits")
        mode = find("encoding", "parallelImaging", "calibrationMode")
        bandwidth = find("acquisitionSystemInformation", "relativeReceiverNoiseBandwidth")
        header = CartesianHeader(
            trajectory=(find("encoding", "trajectory") or "").lower(),
            encoded_matrix=sizes["encodedSpace", "matrixSize"],
            encoded_fov_mm=sizes["encodedSpace", "fieldOfView_mm"],
            recon_matrix=sizes["reconSpace", "matrixSize"],
            recon_fov_mm=sizes["reconSpace", "fieldOfView_mm"],
            center_1=number(*limits, "kspace_encoding_step_1", "center"),
            center_2=number(*limits, "kspace_encoding_step_2", "center"),
            maximum_1=number(*limits, "kspace_encoding_step_1", "maximum"),
            calibration_mode=None if mode is None else mode.lower(),
            noise_bandwidth=float(bandwidth) if bandwidth else 1.0,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a header without matrix sizes and fields of view ({error}).") from error
    if min(*header.encoded_matrix, *header.encoded_fov_mm, *header.recon_fov_mm) <= 0:
        raise ValueError(f"{path} has a header with sizes that are not positive: {header}.")
    return header
