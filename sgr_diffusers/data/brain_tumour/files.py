"""Reads the brain tumour data set: MATLAB v7.3 files as published, or one packed HDF5 file."""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Bool, Float

from ...io.file_checks import check_regular_file

__all__ = ["SOURCE", "TumourPatient", "TumourSlice", "read_patients"]

SOURCE = "J. Cheng, brain tumor dataset, figshare 1512427, doi 10.6084/m9.figshare.1512427 (CC BY 4.0)"
KINDS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
FOLDS_FILE = "cvind.mat"


@dataclass(frozen=True)
class TumourSlice:
    """One slice on disk.

    Attributes:
        name: name of the slice in its source.
        read: function that reads the magnitude image `(y, x)` and the outline `(y, x)`.
    """

    name: str
    read: Callable[[], tuple[Float[np.ndarray, "y x"], Bool[np.ndarray, "y x"]]]


@dataclass(frozen=True)
class TumourPatient:
    """All slices of a patient.

    Attributes:
        patient_id: identifier of the patient in the source.
        kind: kind of the tumour, "meningioma", "glioma" or "pituitary".
        fold: fold of the published cross-validation, 1 to 5; `None` where it is not known.
        slices: slices in the order of the source. Their planes (axial, coronal, sagittal) are mixed.
    """

    patient_id: str
    kind: str
    fold: int | None
    slices: tuple[TumourSlice, ...]


def read_patients(source: str | os.PathLike) -> list[TumourPatient]:
    """Find the patients of the data set, in the order of their identifiers. Images are read later, slice by slice.

    Args:
        source: folder that holds the published .mat files, also in folders below, with `cvind.mat` for the folds; or
            a packed HDF5 file with `image`, `tumour` (packed bits), `patient`, `fold` and `kind`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: there is no slice in it, a file cannot be understood, or a patient is in several folds.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"`source` {path} is not there.")
    if not path.is_dir():
        check_regular_file(path, "source")
    rows = _published_slices(path) if path.is_dir() else _packed_slices(path)
    grouped = defaultdict(list)
    for patient_id, *row in rows:
        grouped[patient_id].append(row)
    patients = []
    for patient_id in sorted(grouped):
        kinds, folds, slices = zip(*grouped[patient_id], strict=True)
        if len(set(folds)) > 1 or len(set(kinds)) > 1:
            raise ValueError(
                f"`source` {path}: patient {patient_id} has slices of the folds {sorted(set(folds), key=str)} and of "
                f"the kinds {sorted(set(kinds))}, one of each was expected. Fetch the files again."
            )
        patients.append(TumourPatient(patient_id, kinds[0], folds[0], slices))
    return patients


def _published_slices(folder: Path) -> list[tuple[str, str, int | None, TumourSlice]]:
    """Patient, kind, fold and slice of each published file."""
    files = [path for path in folder.rglob("*.mat") if path.stem.isdigit()]
    if not files:
        raise ValueError(
            f"`source` {folder} holds no numbered .mat file. Fetch the data set from "
            "https://doi.org/10.6084/m9.figshare.1512427 and unpack its zip files there."
        )
    folds = _read_folds(folder)
    rows = []
    for path in sorted(files, key=lambda path: int(path.stem)):
        number = int(path.stem)
        if folds is not None and number > len(folds):
            raise ValueError(f"{path} has no fold: {FOLDS_FILE} has {len(folds)} entries. Fetch the files again.")
        with _open(path) as file:
            try:
                content = file["cjdata"]
                patient_id = "".join(chr(code) for code in content["PID"][()].ravel())
                kind = KINDS[int(content["label"][()].item())]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is not a file of the brain tumour data set ({error}).") from error
        fold = None if folds is None else int(folds[number - 1])
        rows.append((patient_id, kind, fold, TumourSlice(path.name, partial(_read_published, path))))
    return rows


def _read_folds(folder: Path) -> np.ndarray | None:
    """Fold of each numbered file; `None` without the file of the folds."""
    path = next(folder.rglob(FOLDS_FILE), None)
    if path is None:
        return None
    with _open(path) as file:
        if "cvind" not in file:
            raise ValueError(f"{path} holds no `cvind`, the fold of each slice. Fetch the file again.")
        return file["cvind"][()].ravel()


def _read_published(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _open(path) as file:
        content = file["cjdata"]
        # MATLAB stores columns first: HDF5 shows its arrays transposed
        image, tumour = content["image"][()].T, content["tumorMask"][()].T
    if image.ndim != 2 or image.shape != tumour.shape:
        raise ValueError(
            f"{path}: `image` and `tumorMask` must have the same 2-D shape, got {image.shape} and {tumour.shape}."
        )
    return image.astype(np.float32), tumour != 0


def _packed_slices(path: Path) -> list[tuple[str, str, int | None, TumourSlice]]:
    """Patient, kind, fold and slice of each row of a packed file."""
    with _open(path) as file:
        missing = {"image", "tumour", "patient", "fold", "kind"} - set(file)
        if missing:
            raise ValueError(f"`source` {path} is not a packed brain tumour file: it lacks {sorted(missing)}.")
        columns = [file[name][()].tolist() for name in ("patient", "fold", "kind")]

    def reader(row: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        def read() -> tuple[np.ndarray, np.ndarray]:
            with _open(path) as file:
                tumour = np.unpackbits(file["tumour"][row], axis=-1)
                return file["image"][row].astype(np.float32), tumour.astype(bool)

        return read

    return [
        (f"{patient:04d}", kind.decode(), fold, TumourSlice(f"row {row}", reader(row)))
        for row, (patient, fold, kind) in enumerate(zip(*columns, strict=True))
    ]


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 (MATLAB v7.3) file ({error}). Fetch it again.") from error
