import h5py
import numpy as np
import pytest

from sgr_diffusers.data.brain_tumour.files import read_patients
from tests.helpers.brain_tumour_files import image_and_tumour, write_packed_file, write_published_files

PATIENTS = [("MR02B", 1, 4, 2), ("100360", 2, 3, 1), ("MR01A", 3, 5, 3)]


def test_published_files_are_grouped_by_patient(tmp_path):
    patients = read_patients(write_published_files(tmp_path, PATIENTS))
    assert [(one.patient_id, one.kind, one.fold, len(one.slices)) for one in patients] == [
        ("100360", "glioma", 3, 1),
        ("MR01A", "pituitary", 5, 3),
        ("MR02B", "meningioma", 4, 2),
    ]
    assert [one.name for one in patients[1].slices] == ["4.mat", "5.mat", "6.mat"]


def test_images_lie_as_matlab_shows_them(tmp_path):
    patients = read_patients(write_published_files(tmp_path, PATIENTS))
    for number, one in zip((4, 5, 6), patients[1].slices, strict=True):
        image, tumour = one.read()
        expected = image_and_tumour(number)
        assert image.dtype == np.float32 and tumour.dtype == bool
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(tumour, expected[1])


def test_without_folds_they_are_unknown(tmp_path):
    patients = read_patients(write_published_files(tmp_path, PATIENTS, with_folds=False))
    assert {one.fold for one in patients} == {None}


def test_packed_file(tmp_path):
    path = write_packed_file(tmp_path / "packed.h5", [(12, "glioma", 1, 2), (3, "pituitary", 2, 1)])
    patients = read_patients(path)
    assert [(one.patient_id, one.kind, one.fold, len(one.slices)) for one in patients] == [
        ("0003", "pituitary", 2, 1),
        ("0012", "glioma", 1, 2),
    ]
    image, tumour = patients[0].slices[0].read()
    expected = image_and_tumour(3)
    np.testing.assert_array_equal(image, expected[0] // 5)
    np.testing.assert_array_equal(tumour, expected[1])


def damage_fold(folder):
    with h5py.File(folder / "cvind.mat", "a") as file:
        file["cvind"][0, 1] = 2


def cut_folds(folder):
    with h5py.File(folder / "cvind.mat", "w") as file:
        file["cvind"] = np.ones((1, 2))


def truncate(folder):
    (folder / "brainTumorDataPublic_1" / "1.mat").write_bytes(b"MATLAB 5.0")


def other_content(folder):
    with h5py.File(folder / "brainTumorDataPublic_1" / "1.mat", "w") as file:
        file["other"] = 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_fold, r"patient MR02B has slices of the folds \[2, 4\]"),
        (cut_folds, r"has no fold: cvind\.mat has 2 entries"),
        (truncate, r"1\.mat is not a readable HDF5 \(MATLAB v7\.3\) file"),
        (other_content, r"1\.mat is not a file of the brain tumour data set"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    folder = write_published_files(tmp_path, PATIENTS)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        read_patients(folder)


def test_what_is_not_the_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no numbered \.mat file. Fetch the data set from https"):
        read_patients(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there"):
        read_patients(tmp_path / "nowhere")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = 1
    with pytest.raises(ValueError, match=r"is not a packed brain tumour file: it lacks \['fold', 'kind'"):
        read_patients(tmp_path / "other.h5")
