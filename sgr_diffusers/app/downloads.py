"""Writes the result of a run as a zip of NIfTI images and a csv of volumes."""

import tempfile
import zipfile
from pathlib import Path

from ..reconstruction.results import write_images, write_table
from ..reconstruction.run import write_record
from .runs import CaseResult

__all__ = ["write_downloads"]

_README = """For research. Not a medical device, not for clinical use: no number or image of it may enter a decision
about a patient.

<tissue>_lower_image.nii.gz, <tissue>_upper_image.nii.gz   magnitude of the lower and of the upper reconstruction
<tissue>_lower_segmentation.nii.gz, ..._upper_...           labels of all tissues in each of them
unguided_...                                               plain reconstruction, where there is no fully sampled image
volumes.csv                                                volumes in mm^3 of the slice
settings.json                                              what made them

{position}
"""
_KNOWN = "The files lie where the slice lay in the patient, as the raw file says."
_UNKNOWN = "The raw file does not say where the slice lay in the patient, and neither do these files ({geometry})."


def write_downloads(result: CaseResult, folder: Path) -> tuple[Path, Path]:
    """Write `<case>_bounds.zip` and `<case>_volumes.csv`, names made safe, into a folder that is there.

    Returns:
        The two paths.
    """
    measurement, scan = result.request.measurement, result.scan
    stem = f"{Path(measurement.case.name).stem}_slice{measurement.slice_number}"
    table, archive = folder / f"{stem}_volumes.csv", folder / f"{stem}_bounds.zip"
    write_table(table, result.rows())
    with tempfile.TemporaryDirectory(dir=folder) as name:
        content = Path(name)
        for volume in (result.bounds, result.plain):
            if volume is not None:
                write_images(content, volume, scan.orientation, scan.affine)
        write_record(
            content,
            result.request.settings(),
            file=measurement.case.name,
            slices=list(scan.slice_indices),
            echo=measurement.echo,
            mask=measurement.mask_name,
            voxel_size_mm=scan.voxel_size_mm,
        )
        position = _KNOWN if scan.affine is not None else _UNKNOWN.format(geometry=scan.known_geometry)
        (content / "README.txt").write_text(_README.format(position=position))
        (content / "volumes.csv").write_bytes(table.read_bytes())
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:  # the NIfTI files are compressed already
            for entry in sorted(content.iterdir()):
                file.write(entry, f"{stem}/{entry.name}")
    return archive, table
