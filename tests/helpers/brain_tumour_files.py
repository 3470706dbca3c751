"""Tiny files like those of the public brain tumour data set: random blobs, no patient."""

from pathlib import Path

import h5py
import numpy as np

SIZE = 40


def image_and_tumour(number: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A head-like ellipse, brighter in the upper half, with a bright rectangle for a tumour."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = (400 + 200 * (y < 0) + rng.integers(0, 50, (size, size))) * ((y / 0.45) ** 2 + (x / 0.35) ** 2 < 1)
    tumour = np.zeros((size, size), bool)
    tumour[size // 4 : size // 2, size // 2 : size // 2 + size // 8] = True
    return (image + 300 * tumour).astype(np.int16), tumour


def write_mat_file(path: Path, patient_id: str, label: int, number: int) -> None:
    """A MATLAB v7.3 file: a block of 512 bytes, then HDF5 with transposed arrays and text as numbers."""
    image, tumour = image_and_tumour(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cjdata/PID"] = np.array([[ord(letter)] for letter in patient_id], np.uint16)
        file["cjdata/label"] = np.array([[float(label)]])
        file["cjdata/image"] = image.T
        file["cjdata/tumorMask"] = tumour.T.astype(np.uint8)
        file["cjdata/tumorBorder"] = np.zeros((1, 8))


def write_published_files(folder: Path, patients, with_folds: bool = True) -> Path:
    """The folder as it is unpacked; `patients` lists (identifier, label, fold, number of slices)."""
    number, folds = 0, []
    for patient_id, label, fold, n_slices in patients:
        for _ in range(n_slices):
            number += 1
            write_mat_file(folder / f"brainTumorDataPublic_{number % 2}" / f"{number}.mat", patient_id, label, number)
            folds.append(fold)
    if with_folds:
        with h5py.File(folder / "cvind.mat", "w", userblock_size=512) as file:
            file["cvind"] = np.array([folds], float)
    return folder


def write_packed_file(path: Path, patients) -> Path:
    """All slices in one file; `patients` lists (number, kind, fold, number of slices)."""
    rows = [(patient, kind, fold) for patient, kind, fold, n_slices in patients for _ in range(n_slices)]
    images, tumours = zip(*(image_and_tumour(number) for number in range(1, len(rows) + 1)), strict=True)
    with h5py.File(path, "w") as file:
        file["image"] = (np.stack(images) // 5).astype(np.uint8)
        file["tumour"] = np.packbits(np.stack(tumours), axis=-1)
        file["patient"] = np.array([row[0] for row in rows], np.int16)
        file["kind"] = np.array([row[1] for row in rows], "S10")
        file["fold"] = np.array([row[2] for row in rows], np.int8)
    return path
