import os
import zipfile

import h5py
import numpy as np
import pytest

from sgr_diffusers.app.limits import AppLimits
from sgr_diffusers.app.uploads import describe_case, safe_name
from sgr_diffusers.app.views import case_summary
from sgr_diffusers.io.raw_slices import SuspectDataWarning
from sgr_diffusers.reconstruction.demo import CASE
from tests.helpers.layout_fixture import TINY_SHAPE
from tests.helpers.raw_files import random_complex


def test_what_a_scan_offers(scan):
    case = describe_case(scan, AppLimits(), "../../My <scan>.h5")
    assert (case.name, case.n_slices, case.size, case.n_coils) == ("My_scan_.h5", *TINY_SHAPE[:1], TINY_SHAPE[1:], 2)
    assert case.masks == ("poisson_4.0x", "poisson_8.0x", "poisson_12.0x", "poisson_16.0x")
    assert (case.n_echoes, case.voxel_size_mm, case.is_fully_sampled) == (2, (2.5, 1.6, 1.5), True)


def test_what_arrays_offer(tmp_path):
    np.save(tmp_path / "scan.npy", random_complex(3, 4, 8, 6))
    case = describe_case(tmp_path / "scan.npy", AppLimits())
    assert (case.n_slices, case.masks, case.n_echoes) == (3, (), 1)
    assert case.voxel_size_mm is None and not case.is_fully_sampled


def test_the_bundled_case(tmp_path):
    case = describe_case(CASE, AppLimits())
    assert case.n_slices == 2 and case.is_fully_sampled and case.voxel_size_mm == (2.5, 1.6, 1.6)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("scan 1.h5", "scan_1.h5"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("<img src=x onerror=alert(1)>.h5", "_img_src_x_onerror_alert_1_.h5"),
        (".hidden", "hidden"),
        ("..", "file"),
        ("a" * 100 + ".npz", "a" * 56 + ".npz"),
    ],
)
def test_names_are_made_safe(name, safe):
    assert safe_name(name) == safe


def pickled(path):
    np.save(path.with_suffix(".npy"), np.array([{}], dtype=object))
    return path.with_suffix(".npy")


def text(path):
    path.with_suffix(".h5").write_text("not HDF5")
    return path.with_suffix(".h5")


def picture(path):
    path.with_suffix(".png").touch()
    return path.with_suffix(".png")


def linked(path):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["kspace"] = h5py.ExternalLink("/etc/passwd", "kspace")
    return path.with_suffix(".h5")


def huge_hdf5(path):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("kspace", (1000, 8, 1000, 1000), np.complex64, chunks=True)
    return path.with_suffix(".h5")


def bomb(path):
    with zipfile.ZipFile(path.with_suffix(".npz"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kspace.npy", b"\0" * 3_000_000)
    return path.with_suffix(".npz")


def many_pixels(path):
    np.save(path.with_suffix(".npy"), np.zeros((1, 1, 100, 100), np.complex64))
    return path.with_suffix(".npy")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (pickled, "cannot be read"),
        (text, "cannot be opened as HDF5"),
        (picture, "must end in .h5"),
        (linked, "refers to another file"),
        (huge_hdf5, "unpacks to 64000 MB, but at most 2 MB"),
        (bomb, "unpacks to 3 MB, but at most 2 MB"),
        (many_pixels, "a slice of upload.npy has 100 x 100 pixels and 1 coils"),
    ],
)
def test_bad_files_are_refused_in_words_that_can_be_shown(tmp_path, write, said):
    path = write(tmp_path / "upload")
    with pytest.raises(ValueError, match=said) as caught:
        describe_case(path, AppLimits(max_content_mb=2, max_pixels=9999))
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_files_whose_coil_maps_would_have_to_be_estimated_have_a_limit_of_their_own(tmp_path, scan):
    limits = AppLimits(max_pixels_without_maps=500)
    assert describe_case(scan, limits).n_coils == 2  # 768 values, with maps
    np.save(tmp_path / "one.npy", random_complex(1, 1, 24, 32))
    assert describe_case(tmp_path / "one.npy", limits).n_coils == 1
    np.save(tmp_path / "two.npy", random_complex(1, 2, 24, 16))
    with pytest.raises(ValueError, match=r"two.npy has 24 x 16 pixels and 2 coils, but no coil maps, .*at most 500"):
        describe_case(tmp_path / "two.npy", limits)
    np.save(tmp_path / "many.npy", random_complex(1, 64, 12, 12))  # 9216 values, of four times the cost
    assert describe_case(tmp_path / "many.npy", AppLimits(max_pixels_without_maps=40_000)).n_coils == 64
    with pytest.raises(ValueError, match=r"64 coils, but no coil maps"):
        describe_case(tmp_path / "many.npy", AppLimits(max_pixels_without_maps=30_000))


def test_a_file_beyond_the_limit(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 50, 50), np.complex64))
    with pytest.raises(ValueError, match=r"has 0 MB, but at most 0 MB"):
        describe_case(tmp_path / "a.npy", AppLimits(max_upload_mb=0.05))
    with pytest.raises(ValueError, match="`max_minutes` must be positive, got 0"):
        AppLimits(max_minutes=0)


def test_what_a_file_says_against_its_data_is_shown(tmp_path):
    kspace = random_complex(1, 2, 48, 40)
    np.savez(tmp_path / "scan.npz", kspace=np.where(np.arange(40) % 2, kspace, 0), mask=np.ones((48, 40)))
    with pytest.warns(SuspectDataWarning):
        case = describe_case(tmp_path / "scan.npz", AppLimits())
    [suspicion] = case.suspicions
    assert "`mask` for scan.npz says" in suspicion and "Beware: `mask` for scan.npz says" in case_summary(case)


def test_names_of_any_case_and_of_ismrmrd_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    with open("w/A.NPY", "wb") as file:
        np.save(file, random_complex(2, 8, 6))
    assert describe_case("w/A.NPY", AppLimits()).n_coils == 2
    with pytest.raises(ValueError, match=r"scan\.mrd is not a file"):
        describe_case("w/scan.mrd", AppLimits())
    (tmp_path / "w" / "b.npy").write_text("no numbers")
    with pytest.raises(ValueError, match=r"^b\.npy cannot be read: it is damaged, or not numpy's\. Write it again\.$"):
        describe_case("w/b.npy", AppLimits())


@pytest.mark.parametrize("name", ["scan.h5", "scan.npy", "scan.npz"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="must be a regular file, but is a named pipe"):
        describe_case(tmp_path / name, AppLimits())
