"""A small DICOM series of MR images, as a scanner would have made it of a known volume."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

# Rows run from head to foot, columns from front to back, images from right to left: sagittal, as knees are scanned.
ORIENTATION = [0, 1, 0, 0, 0, -1]
ORIGIN, STEP = np.array([-6.0, -20.0, 30.0]), np.array([3.0, 0, 0])
SPACING = [2.0, 1.5]  # between rows, between columns


def write_series(folder, volume, patient="P1", **changes):
    """Write images `(image, row, column)`; `changes` are functions from the number of an image to a value of a tag."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for number, plane in enumerate(volume):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = MRImageStorage
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.PatientID, header.PatientName, header.Modality = patient, "Doe^Jane", "MR"
        header.StudyDate, header.StudyTime = "20260102", "120000"
        header.SeriesNumber, header.InstanceNumber, header.SliceThickness, header.EchoTime = 3, number + 1, 3.0, 30.0
        header.ImageOrientationPatient, header.PixelSpacing = ORIENTATION, SPACING
        header.ImagePositionPatient = (ORIGIN + number * STEP).tolist()
        header.set_pixel_data((1000 * plane).astype("<u2"), "MONOCHROME2", 12)
        header.add_new((0x0029, 0x0010), "LO", "SCANNER")
        header.add_new((0x0029, 0x1010), "LO", "private")
        for keyword, value in changes.items():
            header.pop(keyword, None)
            if value(number) is not None:
                setattr(header, keyword, value(number))
        header.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder
