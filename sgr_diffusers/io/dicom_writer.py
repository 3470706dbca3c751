"""Writer of DICOM images and segmentations, which lie where the images of a source series lie."""

import copy
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ..utils.late_import import require
from .dicom_series import Placement

__all__ = ["write_dicom_images", "write_dicom_segmentation"]

_MAKER = "sgr_diffusers"
_PIXEL_TAGS = (
    "PixelData",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "IconImageSequence",
    "WindowCenterWidthExplanation",
    "VOILUTSequence",
    "ModalityLUTSequence",
    "PixelPaddingValue",
    "RealWorldValueMappingSequence",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
)
# Class of a segmentation model -> names in the SNOMED codes of pydicom: category, type and region of the body.
_STRUCTURE = "AnatomicalStructure"
_CODES = {
    "patellar_cartilage": (_STRUCTURE, "Cartilage", "Patella"),
    "femoral_cartilage": (_STRUCTURE, "Cartilage", "Femur"),
    "tibial_cartilage": (_STRUCTURE, "Cartilage", "Tibia"),
    "meniscus": (_STRUCTURE, "Meniscus", None),
    "tumour": ("MorphologicallyAbnormalStructure", "Neoplasm", "Brain"),
}
_OTHER_CODES = (_STRUCTURE, "SoftTissue", None)


def write_dicom_images(
    folder: Path, images: Mapping[str, Float[np.ndarray, "slice y x"]], placement: Placement, version: str
) -> None:
    """Write a series of derived MR images for each reconstruction, a folder each; all share one intensity scale.

    Args:
        folder: folder to write to.
        images: magnitudes by the name of the reconstruction.
        placement: images of the source series that the slices are.
        version: version of this package.
    """
    from pydicom.uid import generate_uid
    from pydicom.valuerep import format_number_as_ds

    peak = max(float(image.max()) for image in images.values())
    slope = peak / np.iinfo(np.uint16).max or 1.0
    now = datetime.datetime.now()
    for name, image in images.items():
        uid, series = generate_uid(), folder / name
        series.mkdir(parents=True)
        stored = np.rint(placement.turned(image) / slope).astype("<u2")
        width = max(round(float(np.quantile(stored, 0.995))), 2)
        for number, (plane, source) in enumerate(zip(stored, placement.headers, strict=True), start=1):
            header = _derived_header(source, now, version)
            header.SeriesInstanceUID, header.InstanceNumber = uid, number
            header.SeriesNumber = 9000 + list(images).index(name)
            header.SeriesDescription = f"SGR {name.replace('_', ' ')}"[:64]
            header.WindowCenter = format_number_as_ds(float(width * slope / 2))
            header.WindowWidth = format_number_as_ds(float(width * slope))
            header.RescaleIntercept, header.RescaleType = "0", "US"
            header.RescaleSlope = format_number_as_ds(float(slope))
            header.set_pixel_data(np.ascontiguousarray(plane), "MONOCHROME2", 16)
            header.save_as(series / f"{number:04d}.dcm", enforce_file_format=True)


def _derived_header(source: Any, now: datetime.datetime, version: str) -> Any:
    """Header of a derived image: patient, study, geometry and sequence of the source, and an identity of its own."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    header = copy.deepcopy(source)
    header.remove_private_tags()
    for tag in [entry.tag for entry in header if entry.keyword in _PIXEL_TAGS or entry.tag.group & 0xFF01 == 0x6000]:
        del header[tag]
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    header.ContentDate = header.SeriesDate = now.strftime("%Y%m%d")
    header.ContentTime = header.SeriesTime = now.strftime("%H%M%S")
    header.DerivationDescription = f"Reconstructed from raw data by {_MAKER} {version}. Not for clinical use."
    return header


def write_dicom_segmentation(
    path: Path, segments: Mapping[tuple[str, str], Bool[np.ndarray, "slice y x"]], placement: Placement, version: str
) -> None:
    """Write a DICOM segmentation that refers to the source series, with a segment for each class and bound.

    Args:
        path: file to make.
        segments: pixels by class and target, such as `("meniscus", "lower")`; they may overlap.
        placement: images of the source series that the slices are.
        version: version of this package.
    """
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    highdicom = require("highdicom", "dicom")
    algorithm = highdicom.AlgorithmIdentificationSequence(_MAKER, codes.cid7162.ArtificialIntelligence, version)
    descriptions = []
    for number, (name, target) in enumerate(segments, start=1):
        label = name.replace("_", " ") + ("" if target == "none" else f", {target} bound")
        category, kind, region = _CODES.get(name, _OTHER_CODES)
        descriptions.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=label,
                segmented_property_category=getattr(codes.SCT, category),
                segmented_property_type=getattr(codes.SCT, kind),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_uid=generate_uid(),
                tracking_id=label,
                anatomic_regions=None if region is None else [getattr(codes.SCT, region)],
            )
        )
    pixels = np.stack([placement.turned(mask) for mask in segments.values()], axis=-1)
    segmentation = highdicom.seg.Segmentation(
        source_images=[_complete(header) for header in placement.headers],
        pixel_array=pixels.astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=9900,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_MAKER,
        software_versions=version,
        device_serial_number="0",
        content_label="SGR_BOUNDS",
        content_description="Bounds of tissue volumes. Not for clinical use.",
        omit_empty_frames=False,
        series_description="SGR bounds",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_as(path)


def _complete(header: Any) -> Any:
    """Header in which tags that may be empty are not missing, as anonymised files have them."""
    header = copy.copy(header)
    for keyword in (
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
    ):
        if keyword not in header:
            setattr(header, keyword, "")
    return header
