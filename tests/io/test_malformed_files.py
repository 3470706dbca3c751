"""Files as they should not be: the reader names the file and says what is wrong, in a `ValueError` or an `OSError`."""

import io
import json
import os
import struct
import warnings
import zipfile

import h5py
import numpy as np
import pytest

from sgr_diffusers.io.raw_file import read_raw, stored_choices
from tests.helpers.raw_files import acquisition, body_image, fft, header_xml, random_complex, write_ismrmrd

N_Y, N_X = 12, 10
KSPACE = np.stack([fft(body_image(N_Y, N_X), (-2, -1))] * 2)  # (coil, y, x)
XML = header_xml((N_X, N_Y, 1), (N_X, N_Y, 1))


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy_header(shape, dtype="<c8"):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def archive(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return stream.getvalue()


def hdf5(**content):
    """Bytes of an HDF5 file; names that begin with `at_` are attributes."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, value in content.items():
            if name.startswith("at_"):
                file.attrs[name[3:]] = value
            elif isinstance(value, tuple):
                file.create_dataset(name, *value)
            else:
                file[name] = value
    return stream.getvalue()


def fastmri(xml=XML, kspace=None, **more):
    return hdf5(kspace=KSPACE.swapaxes(-1, -2)[None] if kspace is None else kspace, ismrmrd_header=xml, **more)


def header(find, replace):
    assert find in XML
    return fastmri(XML.replace(find, replace))


MATRIX = f"<matrixSize><x>{N_X}</x>"
SKM = {"kspace": random_complex(2, N_Y, N_X, 1, 2), "masks/poisson_4.0x": np.ones((N_Y, N_X), np.uint8)}

# name of the file -> bytes -> essential words of the message
FILES = {
    "nothing in it": ("scan.h5", b"", "it is empty"),
    "text": ("scan.h5", b"some words", "damaged or of another format"),
    "a web page": ("scan.h5", b"<!DOCTYPE html><html>log in", "it is a web page.*login"),
    "a pointer": ("scan.h5", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
    "packed by gzip": ("scan.h5", b"\x1f\x8b\x08" + bytes(30), "compressed by gzip.*gunzip"),
    "packed by zstd": ("scan.mrd", b"\x28\xb5\x2f\xfd" + bytes(30), "compressed by zstd.*unzstd"),
    "DICOM": ("scan.h5", bytes(128) + b"DICM" + bytes(100), "a DICOM file: images, not raw k-space"),
    "old MATLAB": ("scan.mat", b"MATLAB 5.0 MAT-file" + bytes(200), "MATLAB file before version 7.3"),
    "truncated HDF5": ("scan.h5", hdf5(kspace=random_complex(2, 40, 40))[:9000], "truncated file"),
    "HDF5 signature alone": ("scan.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "cannot be opened as HDF5"),
    "HDF5 of other data": ("scan.h5", hdf5(images=np.ones(3)), r"neither a dataset `kspace` nor .*only \['images'\]"),
    "k-space that is a group": ("scan.h5", hdf5(**{"kspace/a": np.ones(3)}), "neither a dataset `kspace` nor"),
    "no shape": ("scan.h5", hdf5(kspace=1 + 1j), r"`kspace` .* must be complex .*got complex128 \(\)"),
    "an axis of length 0": ("scan.h5", hdf5(kspace=np.zeros((0, 4, 4), np.complex64)), "must be complex .*0, 4, 4"),
    "real k-space": ("scan.h5", hdf5(kspace=np.ones((2, 4, 4))), "must be complex .*float64"),
    "k-space of text": ("scan.h5", hdf5(kspace="abc"), "must be complex"),
    "6 axes": ("scan.h5", hdf5(kspace=np.ones((1,) * 6, np.complex64)), "must have 5 axes"),
    "never written": (
        "scan.h5",
        hdf5(kspace=((60, 8, 4000, 400), np.complex64)),
        "would take 6144 MB.* file has only",
    ),
    "huge chunk": (
        "scan.h5",
        hdf5(**{"kspace": KSPACE, "mask": ((30000, 30000), np.uint8)}),
        "`mask` .*would take 900 MB",
    ),
    "voxel size 1e300": ("scan.h5", hdf5(kspace=KSPACE, at_voxel_size_mm=[1e300, 1, 1]), "`voxel_size_mm` .*1e[+]300"),
    "voxel size abc": ("scan.h5", hdf5(kspace=KSPACE, at_voxel_size_mm="abc"), "`voxel_size_mm` .* got 'abc'"),
    "voxel size NaN": ("scan.h5", hdf5(kspace=KSPACE, at_voxel_size_mm=[1, np.nan, 1]), "`voxel_size_mm` .* nan"),
    "two voxel sizes": (
        "scan.h5",
        hdf5(kspace=KSPACE, at_voxel_size_mm=[1.0, 2.0]),
        r"`voxel_size_mm` .*\[1.0, 2.0\]",
    ),
    "voxel size in metres": (
        "scan.npz",
        npz(kspace=KSPACE, voxel_size_mm=[3e-3, 1e-3, 1e-3]),
        "`voxel_size_mm` .*0.003",
    ),
    "negative voxel size": (
        "scan.npz",
        npz(kspace=KSPACE, voxel_size_mm=[3, -1, 1]),
        r"`voxel_size_mm` .*\[3, -1, 1\]",
    ),
    "voxel size of objects": ("scan.npz", npz(kspace=KSPACE, voxel_size_mm=np.array([{}])), "cannot be read"),
    "fastMRI: voxel size abc": ("scan.h5", fastmri(at_voxel_size_mm="abc"), "`voxel_size_mm` .* got 'abc'"),
    "SKM-TEA: voxel size abc": ("scan.h5", hdf5(**SKM, at_voxel_size_mm="abc"), "`voxel_size_mm` .* got 'abc'"),
    "centre in the corner": ("scan.npy", npy(np.fft.ifftshift(KSPACE, (-2, -1))), r"peaks at \(0, 0\).*fftshift"),
    "not finite": ("scan.npy", npy(np.full((2, 4, 4), np.nan, np.complex64)), r"not finite in the slices \[0\]"),
    "beyond complex64": ("scan.npy", npy(np.full((2, 4, 4), 1e300 + 0j)), r"not finite in the slices \[0\]"),
    "objects": ("scan.npy", npy(np.array([{}], dtype=object)), "cannot be read"),
    "a shape without data": ("scan.npy", npy_header((60, 8, 4000, 400)), "cannot be read"),
    "a negative shape": ("scan.npy", npy_header((2, -4, 4)), "cannot be read|must be complex"),
    "truncated npy": ("scan.npy", npy(KSPACE)[:-8], "cannot be read"),
    "text as npy": ("scan.npy", b"some words", "damaged, or not numpy's"),
    "gzip as npy": ("scan.npy", b"\x1f\x8b\x08" + bytes(30), "compressed by gzip"),
    "text as npz": ("scan.npz", b"some words", "damaged, or not numpy's"),
    "zip of other things": ("scan.npz", archive(a=b"text").replace(b".npy", b".txt"), "zip archive without arrays"),
    "no k-space": ("scan.npz", npz(image=KSPACE), "holds no array `kspace`"),
    "a member that claims more": ("scan.npz", archive(kspace=npy_header((2, 40, 40)) + bytes(8)), "claims 25600"),
    "a member that unpacks to much": (
        "scan.npz",
        archive(kspace=npy_header((2, 8, 1000, 750)) + bytes(96_000_000)),
        "`kspace` .*would take 96 MB",
    ),
    "mask of another size": (
        "scan.npz",
        npz(kspace=KSPACE, mask=np.ones((4, 4))),
        r"`mask` .*shape \(12, 10\).*\(4, 4\)",
    ),
    "mask of weights": ("scan.npz", npz(kspace=KSPACE, mask=np.full((N_Y, N_X), 0.5)), "`mask` .* with other values"),
    "mask of one value": ("scan.npz", npz(kspace=KSPACE, mask=np.array(1)), "`mask` .* must be 0 and 1"),
    "a line mask of rows": (
        "scan.npz",
        npz(kspace=KSPACE, mask=np.ones(N_Y)),
        r"\(10,\) for columns or \(12, 1\) for rows",
    ),
    "mask of text": ("scan.npz", npz(kspace=KSPACE, mask=np.array(["a"] * N_X)), "`mask` .* must be 0 and 1"),
    "maps of other coils": ("scan.npz", npz(kspace=KSPACE, maps=KSPACE[:1]), r"`coil_maps` .*\(1, 2, 12, 10\)"),
    "target of another size": ("scan.npz", npz(kspace=KSPACE, target=KSPACE[0, 1:]), r"`target` .*\(1, 12, 10\)"),
    "header of numbers": (
        "scan.h5",
        hdf5(kspace=KSPACE[None], ismrmrd_header=np.ones(3)),
        "`ismrmrd_header` .*one text",
    ),
    "header that is a group": (
        "scan.h5",
        hdf5(**{"kspace": KSPACE[None], "ismrmrd_header/a": 1}),
        "not a fastMRI file",
    ),
    "header cut off": ("scan.h5", fastmri(XML[:200]), "not XML"),
    "header without sizes": ("scan.h5", fastmri("<ismrmrdHeader><encoding/></ismrmrdHeader>"), "without matrix sizes"),
    "header of another file": ("scan.h5", fastmri("<html/>"), "without matrix sizes"),
    "radial": ("scan.h5", header("cartesian", "radial"), "radial trajectory, but must be Cartesian"),
    "a matrix of 1e400": ("scan.h5", header(MATRIX, "<matrixSize><x>1e400</x>"), "'1e400' is no finite number"),
    "a matrix of text": ("scan.h5", header(MATRIX, "<matrixSize><x>ten</x>"), "header that cannot be used: .*ten"),
    "a matrix of 7.5": ("scan.h5", header(MATRIX, "<matrixSize><x>7.5</x>"), "'7.5' is no whole number"),
    "a matrix of 0": ("scan.h5", header(MATRIX, "<matrixSize><x>0</x>"), "not positive"),
    "a matrix of a million": (
        "scan.h5",
        header(MATRIX, "<matrixSize><x>1000000</x>"),
        "1000000, 12, 1.*at most 32768",
    ),
    "limits below 0": ("scan.h5", header("<minimum>0", "<minimum>-3"), "kspace_encoding_step_1 are .-3, 11, 6."),
    "rows that the header has not": ("scan.h5", header(MATRIX, "<matrixSize><x>5</x>"), "10 rows, but .* 5 readout"),
    "partitions": ("scan.h5", fastmri(header_xml((N_X, N_Y, 4), (N_X, N_Y, 4))), "4 partitions .*2-D slices"),
    "fastMRI: a mask of weights": ("scan.h5", fastmri(mask=np.full(N_Y, 0.5)), "`mask` .* only 0 and 1"),
    "fastMRI: a mask of others": ("scan.h5", fastmri(mask=np.ones(7)), r"must have 12 columns .*\(7,\)"),
    "ISMRMRD without data": ("scan.h5", hdf5(**{"dataset/xml": [XML]}), "holds no acquisitions"),
    "ISMRMRD with other data": (
        "scan.h5",
        hdf5(**{"dataset/xml": [XML], "dataset/data": np.ones(3)}),
        "`data` of .* are no acquisitions of ISMRMRD",
    ),
    "ISMRMRD without text": (
        "scan.h5",
        hdf5(**{"dataset/xml": [1], "dataset/data": np.ones(3)}),
        "`dataset/xml` .*one text",
    ),
    "SKM-TEA without coils": (
        "scan.h5",
        hdf5(**{**SKM, "kspace": np.ones((2, 4, 4), np.complex64)}),
        "must have 5 axes",
    ),
    "maps of real numbers": ("scan.h5", hdf5(**SKM, maps=np.ones((2, N_Y, N_X, 2, 1))), "`maps` .* must be complex"),
    "cfl without hdr": ("scan.cfl", bytes(80), r"scan\.hdr is missing"),
    "hdr without cfl": ("scan.hdr", b"# Dimensions\n2 5\n", r"scan\.cfl is missing"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_message_says_what_is_wrong(tmp_path, name):
    file, content, words = FILES[name]
    path = tmp_path / file
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, OSError), match=f"(?s){words}") as caught:
            stored_choices(path)  # looks at the structure alone
            read_raw(path)
    assert path.stem in str(caught.value)
    assert len(str(caught.value)) < 800


# argument of `read_raw` -> essential words of the message
ARGUMENTS = {
    "path": (None, "`path` must be the name of a file, got None"),
    "slices": ("x", "`slices` must be a range, a slice or whole numbers from 0, got 'x'"),
    "slices ": ([1.5], r"`slices` must be a range, a slice or whole numbers from 0, got \[1.5\]"),
    "slices  ": (slice(None, None, 0), "`slices` must not have the step 0"),
    "echo": ("x", "`echo` must be a whole number, got 'x'"),
    "mask": ([4.0], r"`mask` must be an acceleration, the name of a stored mask or `None`, got \[4.0\]"),
    "repetition": (0.5, "`repetition` must be a whole number, got 0.5"),
    "group": (5, "`group` must be the name of an HDF5 group or `None`, got 5"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_a_wrong_type(tmp_path, name, unchecked_types):
    path = tmp_path / "scan.h5"
    path.write_bytes(hdf5(**SKM))
    value, words = ARGUMENTS[name]
    with pytest.raises((TypeError, ValueError), match=words):
        read_raw(**{"path": path, name.strip(): value})


CFL = {
    "no dimensions": (b"nothing", 80, "does not state its dimensions"),
    "dimensions of text": (b"# Dimensions\ntwo\n", 80, "does not state its dimensions"),
    "negative dimensions": (b"# Dimensions\n-2 -5\n", 80, "has 80 bytes, but"),
    "other dimensions": (b"# Dimensions\n2 6\n", 80, "has 80 bytes, but scan.hdr says 96"),
    "more than numpy has": (b"# Dimensions\n" + b"1 " * 70 + b"\n", 8, "has 8 bytes, but"),
    "not text": (b"\xff\xfe\x00", 80, "is not a text file"),
}


@pytest.mark.parametrize("name", CFL)
def test_pairs_of_bart(tmp_path, name):
    header, n_bytes, words = CFL[name]
    (tmp_path / "scan.hdr").write_bytes(header)
    (tmp_path / "scan.cfl").write_bytes(bytes(n_bytes))
    with pytest.raises(ValueError, match=words):
        read_raw(tmp_path / "scan")


@pytest.mark.parametrize("name", ["scan.h5", "scan.npy", "scan.npz", "scan.mrd", "scan", "scan.cfl"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    if name == "scan.cfl":
        os.mkfifo(tmp_path / "scan.hdr")
    with pytest.raises(ValueError, match="must be a regular file, but is a named pipe"):
        read_raw(tmp_path / name)


ANNOTATIONS = {
    "no JSON": ("words", "not a SKM-TEA annotation file"),
    "nested": ("[" * 100_000 + "]" * 100_000, "not a SKM-TEA annotation file"),
    "a list": ("[1, 2]", "not a SKM-TEA annotation file"),
    "entries of numbers": ('{"images": [1]}', "not a SKM-TEA annotation file"),
    "voxels of text": ({"voxel_spacing": ["a", "b", "c"]}, "voxel_spacing.*must be three edge lengths"),
    "voxels of nothing": ({"voxel_spacing": [0.8, 0, 0.3]}, "voxel_spacing.*must be three edge lengths"),
    "another orientation": ({"orientation": ["SI", "SI", "LR"]}, "`orientation` must hold"),
    "another matrix": ({"matrix_shape": [2, 512, 160]}, r"\(2, 12, 10\), but .* says \(2, 512, 160\)"),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_of_skm_tea(tmp_path, name):
    content, words = ANNOTATIONS[name]
    if isinstance(content, dict):
        entry = {"scan_id": "scan", "voxel_spacing": [0.8, 0.3, 0.3], "orientation": ["SI", "AP", "LR"], **content}
        content = json.dumps({"images": [entry]})
    for folder in ("files", "annotations/v1.0.0"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "annotations/v1.0.0/train.json").write_text(content)
    (tmp_path / "files/scan.h5").write_bytes(hdf5(**SKM))
    with pytest.raises(ValueError, match=words):
        read_raw(tmp_path / "files/scan.h5")


def spoil(path, change):
    """Rewrite the acquisitions of an ISMRMRD file by a function of their array."""
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][()]
        change(rows)
        file["dataset/data"][...] = rows


HEADS = {
    "more samples than there are": (
        lambda rows: rows["head"]["number_of_samples"].__setitem__(3, 500),
        "12 acquisitions claim|its head says",
    ),
    "many more": (
        lambda rows: rows["head"]["number_of_samples"].__setitem__(slice(None), 60000),
        "acquisitions claim 11520000 bytes",
    ),
    "no coils": (lambda rows: rows["head"]["active_channels"].__setitem__(3, 0), r"its head says \(0, 10\)"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_acquisitions(tmp_path, name):
    change, words = HEADS[name]
    lines = [acquisition(KSPACE[:, step], step) for step in range(N_Y)]
    path = write_ismrmrd(tmp_path / "scan.h5", XML, lines)
    spoil(path, change)
    with pytest.raises(ValueError, match=words):
        read_raw(path)
