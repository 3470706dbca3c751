"""Writes the brain tumour data set in the SKM-TEA layout: one scan for each patient, one class, five splits.

| fold                           | split       | slices of a patient     |
|--------------------------------|-------------|-------------------------|
| 1 and 2                        | train       | all                     |
| 3, the first 16 patients       | val         | all                     |
| 3, the others                  | calibration | one, drawn by the seed  |
| 4, the first 23 patients       | calibration | one, drawn by the seed  |
| 4, the others                  | test        | one, drawn by the seed  |
| 5                              | heldout     | one, drawn by the seed  |

Patients are in the order of their identifiers. Where the folds are not known, all patients are in the split test.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...utils.disk import only_run
from ..scan_writer import check_data_folder, remove_leftovers, write_annotations, write_scan_files
from .files import SOURCE, TumourPatient, read_patients
from .simulation import AcquisitionConfig, SimulatedScanner, patient_generator

__all__ = ["CLASS_NAMES", "import_brain_tumour", "split_patients"]

CLASS_NAMES = ("tumour",)
N_TUNE, N_CALIBRATION_OF_FOLD_4 = 16, 23
WITH_ALL_SLICES = ("train", "val")
DESCRIPTION = "Brain tumours (J. Cheng, figshare 1512427), acquisition simulated by sgr_diffusers"


def split_patients(patients: Sequence[TumourPatient]) -> dict[str, list[TumourPatient]]:
    """Split of each patient, by fold; see the head of this module.

    Args:
        patients: patients in the order of their identifiers.

    Raises:
        ValueError: a fold is not one of 1 to 5.
    """
    splits: dict[str, list[TumourPatient]] = defaultdict(list)
    n_in_fold: Counter[int | None] = Counter()
    for patient in patients:
        number, fold = n_in_fold[patient.fold], patient.fold
        n_in_fold[fold] += 1
        if fold not in (None, 1, 2, 3, 4, 5):
            raise ValueError(f"patient {patient.patient_id} has the fold {fold}, one from 1 to 5 was expected.")
        name = {None: "test", 1: "train", 2: "train", 5: "heldout"}.get(fold, "")
        if fold == 3:
            name = "val" if number < N_TUNE else "calibration"
        if fold == 4:
            name = "calibration" if number < N_CALIBRATION_OF_FOLD_4 else "test"
        splits[name].append(patient)
    return dict(splits)


def import_brain_tumour(
    source: str | os.PathLike,
    output: str | os.PathLike,
    config: AcquisitionConfig | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Read the data set, simulate its acquisition and write the result; an interrupted import goes on where it was.

    Args:
        source: folder of the published files, or a packed file (see `read_patients`).
        output: folder to write to.
        config: settings of the simulation; `None` for the defaults.
        progress: flag that shows a progress bar.

    Returns:
        Number of patients in each split.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, or `output` holds scans of other settings.
        FileExistsError: `output` holds something else than a data set.
    """
    config = config or AcquisitionConfig()
    check_data_folder(output)
    splits = split_patients(read_patients(source))
    names = [_scan_id(patient) for patients in splits.values() for patient in patients]
    if len(set(names)) < len(names):
        raise ValueError(f"`source` {source} has patients whose identifiers differ only in special characters.")
    info = {"description": DESCRIPTION, "source": SOURCE, "config": asdict(config)}
    info["simulated"] = "phase, coils, noise and undersampling; the planes of the slices are mixed and not recorded"
    with only_run(output), tqdm(total=len(names), desc="patients", disable=not progress) as bar:
        for split, patients in splits.items():
            images = []
            for patient in patients:
                images.append(_write_patient(output, patient, config, split))
                bar.update()
            write_annotations(output, split, info, images, segmentation_classes=CLASS_NAMES)
        remove_leftovers(output)
    return {split: len(patients) for split, patients in splits.items()}


def _scan_id(patient: TumourPatient) -> str:
    return "BT_" + re.sub(r"\W", "_", patient.patient_id)


def _write_patient(
    output: str | os.PathLike, patient: TumourPatient, config: AcquisitionConfig, split: str
) -> dict[str, Any]:
    """Write the scan of a patient; returns its entry of the annotations."""
    chosen = list(range(len(patient.slices)))
    if split not in WITH_ALL_SLICES:
        chosen = [int(patient_generator(config.seed, patient.patient_id, "slice").integers(len(chosen)))]
    names = [patient.slices[index].name for index in chosen]
    scanner = SimulatedScanner(config, patient.patient_id)
    scan_id, shape, orientation = _scan_id(patient), (len(chosen), config.size, config.size), ("SI", "AP", "RL")
    write_scan_files(
        output,
        scan_id,
        {**asdict(config), "slices": names},
        shape,
        (1, config.n_coils),
        (scanner.measure(*patient.slices[index].read(), index) for index in chosen),
        scanner.masks,
        config.voxel_size_mm,
        orientation,
    )
    return {
        "file_name": Path(f"{scan_id}.h5").name,
        "scan_id": scan_id,
        "subject_id": patient.patient_id,
        "voxel_spacing": list(config.voxel_size_mm),
        "matrix_shape": list(shape),
        "orientation": list(orientation),
        "tumour": patient.kind,
        "fold": patient.fold,
        "slices": names,
    }
