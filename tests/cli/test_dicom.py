"""`sgr reconstruct --dicom`: images and segmentations come to lie where the images of the source series lie."""

import os

import nibabel
import numpy as np
import pytest

from sgr_diffusers import cli
from tests.helpers.raw_files import acquisition, body_image, fft, header_xml, write_ismrmrd
from tests.helpers.tiny_pipeline import save_tiny_pipeline

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")
highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install '.[dicom]'")

from tests.helpers.dicom_files import ORIENTATION, ORIGIN, STEP, write_series  # noqa: E402

N_SLICES, N_Y, N_X = 4, 16, 12
# Readout, phase encoding and slice as the columns, rows and images of the series.
PLACE = {"read_dir": (0, 1, 0), "phase_dir": (0, 0, -1), "slice_dir": (1, 0, 0)}
CENTRE = np.array([0, N_X // 2 * 1.5, -(N_Y // 2) * 2.0])


def volume():
    """Slices (slice, y, x), each a little different and without any symmetry."""
    body = body_image(N_Y, N_X).real
    return np.stack([np.roll(body, k, axis=0) * (1 + 0.3 * k) for k in range(N_SLICES)])


def position(number):
    """Centre of a slice of the raw file, which is that pixel of an image where the FFT has its centre."""
    return ORIGIN + CENTRE + number * STEP


def write_raw(path, images, place=position, **directions):
    kspace = fft(images[:, None] * np.array([1, 1j])[:, None, None], (-2, -1))
    lines = [
        acquisition(one[:, row], row, slice=n, position=place(n), **PLACE | directions)
        for n, one in enumerate(kspace)
        for row in range(N_Y)
    ]
    xml = header_xml((N_X, N_Y, 1), (N_X, N_Y, 1), fov=(N_X * 1.5, N_Y * 2.0, 3.0))
    subject = "<subjectInformation><patientID>P1</patientID></subjectInformation>"
    return write_ismrmrd(path, xml.replace(" <encoding>", f" {subject}<encoding>", 1), lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("model") / "pipeline")


@pytest.fixture
def sgr(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(raw, series, *arguments):
        arguments = ["--model", str(model), "--steps", "2", "--output", "out", "--dicom", str(series), *arguments]
        return cli.main(["reconstruct", str(raw), *arguments])

    return call


def images_of(folder):
    """Images of a series in the order of their numbers, and their stack in the unit of the raw data."""
    headers = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda header: header.InstanceNumber)
    return headers, np.stack([header.pixel_array * float(header.RescaleSlope) for header in headers])


def test_images_and_segments_lie_where_the_source_lies(sgr, tmp_path):
    source = write_series(tmp_path / "series", volume())
    raw = write_raw(tmp_path / "raw.h5", volume())
    assert sgr(raw, source, "--slices", "1:4") == 0
    headers = [pydicom.dcmread(file) for file in sorted(source.iterdir())]
    stems = [path.name for path in (tmp_path / "out" / "dicom").iterdir() if path.is_dir()]
    assert len(stems) == 8 and {f"{stem}_image.nii.gz" for stem in stems} < set(os.listdir("out"))
    for stem in stems:
        derived, stack = images_of(tmp_path / "out" / "dicom" / stem)
        nifti = nibabel.load(f"out/{stem}_image.nii.gz")
        np.testing.assert_allclose(stack, nifti.get_fdata(), atol=stack.max() / 1e4)
        assert len({header.SeriesInstanceUID for header in (*derived, headers[0])}) == 2
        for image, old in zip(derived, headers[1:], strict=True):
            for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "EchoTime"):
                assert image[keyword].value == old[keyword].value
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
                np.testing.assert_allclose(image[keyword].value, old[keyword].value)
            assert image.ImageType[0] == "DERIVED" and image.SOPInstanceUID != old.SOPInstanceUID
            assert (0x0029, 0x1010) not in image

    segmentation = highdicom.seg.segread("out/dicom/segmentation.dcm")
    assert segmentation.number_of_segments == 8
    uids = [header.SOPInstanceUID for header in headers[1:]]
    pixels = segmentation.get_pixels_by_source_instance(uids)
    descriptions = {one.segment_label: one for one in segmentation.SegmentSequence}
    descriptions = {label: highdicom.seg.SegmentDescription.from_dataset(one) for label, one in descriptions.items()}
    for number, (label, description) in enumerate(descriptions.items()):
        name, target = label.removesuffix(" bound").split(", ")
        labels = nibabel.load(f"out/{name.replace(' ', '_')}_{target}_segmentation.nii.gz").get_fdata()
        class_number = list(dict.fromkeys(one.split(", ")[0] for one in descriptions)).index(name) + 1
        np.testing.assert_array_equal(pixels[..., number], labels == class_number)
        assert description.segmented_property_type.scheme_designator == "SCT"
    assert descriptions["meniscus, upper bound"].segmented_property_type.value == "74135004"
    geometry = segmentation.get_volume_geometry()
    expected = ORIGIN + STEP
    np.testing.assert_allclose(geometry.map_indices_to_reference(np.array([[0, 0, 0]]))[0], expected, atol=1e-3)


def test_reversed_axes_of_the_raw_file_are_turned(sgr, tmp_path):
    """Rows that run from foot to head, and slices from left to right, by the positions that the file states."""
    source = write_series(tmp_path / "series", volume())
    turned = {"phase_dir": (0, 0, 1), "slice_dir": (-1, 0, 0)}
    raw = write_raw(
        tmp_path / "raw.h5",
        volume()[::-1, ::-1],
        lambda number: position(N_SLICES - 1 - number) + np.array([0, 0, 2]),  # an even number of rows
        **turned,
    )
    assert sgr(raw, source, "--target", "none") == 0
    headers, stack = images_of(tmp_path / "out" / "dicom" / "unguided")
    stack = stack[np.argsort([header.ImagePositionPatient[0] for header in headers])]
    assert np.corrcoef(stack.ravel(), volume().ravel())[0, 1] > 0.99


@pytest.mark.filterwarnings("default::sgr_diffusers.io.raw_slices.SuspectDataWarning")
@pytest.mark.parametrize("transposed", [False, True])
def test_a_raw_file_without_place_takes_it_from_the_series(sgr, tmp_path, transposed, capsys):
    """Whichever way its axes run: the images that are most alike tell."""
    images = volume().swapaxes(1, 2)[:, ::-1] if transposed else volume()[::-1, :, ::-1]
    source = write_series(tmp_path / "series", volume())
    np.savez(tmp_path / "raw.npz", kspace=fft(images[:, None] * np.array([1, 1j])[:, None, None], (-2, -1)))
    assert sgr("raw.npz", source, "--slices", "0:3", "--classes", "4") == 0
    assert "does not say where its slices lie" in capsys.readouterr().err
    headers, stack = images_of(tmp_path / "out" / "dicom" / "meniscus_lower")
    numbers = [round((header.ImagePositionPatient[0] - ORIGIN[0]) / STEP[0]) for header in headers]
    assert numbers == ([0, 1, 2] if transposed else [3, 2, 1])
    assert np.corrcoef(stack.ravel(), volume()[numbers].ravel())[0, 1] > 0.99
    nifti = nibabel.load("out/meniscus_lower_image.nii.gz")
    assert nifti.header["sform_code"] == 1
    # a voxel of the NIfTI file and the pixel of the DICOM image that it is lie at the same place
    k, row, column = np.unravel_index(np.argmax(stack), stack.shape)
    place = np.array(headers[k].ImagePositionPatient) + row * 2.0 * np.array(ORIENTATION[3:])
    place = (place + column * 1.5 * np.array(ORIENTATION[:3])) * [-1, -1, 1]
    index = np.rint(np.linalg.solve(nifti.affine, [*place, 1])[:3]).astype(int)
    np.testing.assert_allclose(nifti.get_fdata()[tuple(index)], stack.max(), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient": "P2"}, "is of patient P2, but raw of P1"),
        ({"ImageOrientationPatient": lambda n: [1, 0, 0, 0, 0, -1] if n else ORIENTATION}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": lambda n: [1, 0, 0, 0, 1, 0]}, "do not lie at equal distances along a line"),
        ({"ImagePositionPatient": lambda n: (ORIGIN + n**2 * STEP).tolist()}, "do not lie at equal distances"),
        ({"ImagePositionPatient": lambda n: (ORIGIN + [0, 9, 0] + n * STEP).tolist()}, "6 voxels away"),
        ({"PixelSpacing": lambda n: [2.0, 1.7]}, "by their positions"),
        ({"FrameOfReferenceUID": lambda n: None if n == 2 else "1.2.3"}, "002.dcm lacks FrameOfReferenceUID"),
        ({"SeriesInstanceUID": lambda n: f"1.2.{n % 2}"}, "different values of SeriesInstanceUID"),
        ({"SOPClassUID": lambda n: "1.2.840.10008.5.1.4.1.1.4.1"}, "single-frame MR images"),
    ],
)
def test_a_series_that_does_not_fit_is_refused(sgr, tmp_path, capsys, change, message):
    patient = change.pop("patient", "P1")
    source = write_series(tmp_path / "series", volume(), patient, **change)
    raw = write_raw(tmp_path / "raw.h5", volume())
    assert sgr(raw, source, "--target", "none") == 2
    assert message in " ".join(capsys.readouterr().err.split()) and not os.path.exists("out")


def test_a_file_without_place_and_a_series_of_another_size_are_refused(sgr, tmp_path, capsys):
    kspace = fft(volume()[:, None].astype(complex), (-2, -1))
    np.savez(tmp_path / "raw.npz", kspace=kspace)
    for source, message in (
        (volume()[:3], "has 3 images, but raw has 4 slices"),
        (volume()[:, :, :10], "16 x 10 pixels"),
    ):
        series = write_series(tmp_path / str(source.shape), source)
        assert sgr("raw.npz", series, "--target", "none") == 2
        assert message in capsys.readouterr().err and not os.path.exists("out")
    series = write_series(tmp_path / "full", volume())
    assert sgr("raw.npz", series, "--target", "none", "--voxel-size", "3", "2", "2") == 2
    assert "voxels of 3 x 2 x 2 mm" in capsys.readouterr().err
    assert sgr("raw.npz", tmp_path / "nothing", "--target", "none") == 2
    assert "`dicom` must be a folder" in capsys.readouterr().err and not os.path.exists("out")
