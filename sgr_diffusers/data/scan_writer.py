"""Writes scans and annotations in the SKM-TEA layout (see `skm_tea`); a file has its name only when it is complete."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.nifti import write_nifti
from ..utils.disk import LOCK_FILE
from ..utils.files import is_partial, recover_all, whole_file, write_json
from .scan_files import kspace_path, labels_path

__all__ = ["check_data_folder", "remove_leftovers", "write_annotations", "write_scan_files"]


def check_data_folder(root: str | os.PathLike, name: str = "output") -> None:
    """Refuse a folder that holds something else than a data set, such as a pipeline.

    Args:
        root: folder of the data set, which need not be there.
        name: name of the argument, for the message.

    Raises:
        FileExistsError: the folder holds files, but no scans.
    """
    layout = {
        Path(file).relative_to(root).parts[0] for file in (kspace_path(str(root), ""), labels_path(str(root), ""))
    }
    there = Path(root).iterdir() if Path(root).is_dir() else ()
    names = {entry.name for entry in there if not is_partial(entry) and entry.name != LOCK_FILE}
    if names and not names & layout:
        raise FileExistsError(
            f"`{name}` {root} is no data set, but holds files, such as {min(names)}. Choose another folder."
        )


def write_scan_files(
    root: str | os.PathLike,
    scan_id: str,
    config: Mapping[str, Any],
    matrix_shape: tuple[int, int, int],
    n_echoes_and_coils: tuple[int, int],
    slices: Iterable[Mapping[str, np.ndarray]],
    masks: Callable[[], Mapping[float, np.ndarray]],
    voxel_size_mm: tuple[float, float, float],
    orientation: tuple[str, str, str],
) -> None:
    """Write the k-space file and the segmentation of a scan; leave them as they are if they were written before.

    Args:
        root: folder of the data set.
        scan_id: name of the scan.
        config: settings that the content depends on, in plain values; kept in the file.
        matrix_shape: number of voxels (slice, y, x).
        n_echoes_and_coils: number of echoes and of coils.
        slices: arrays of each slice: "kspace" (y, x, echo, coil), "maps" (y, x, coil) and "target" (y, x, echo),
            complex64, and "labels" (y, x), uint8; "noise_free" (y, x, echo), the target without noise, if all slices
            have it. Nothing is computed of a scan that is there.
        masks: function that returns the stored mask of each acceleration.
        voxel_size_mm: size of a voxel (slice, y, x).
        orientation: directions of the three axes.

    Raises:
        ValueError: the scan is there and was written with another configuration.
    """
    import h5py

    path, labels_file = Path(kspace_path(str(root), scan_id)), Path(labels_path(str(root), scan_id))
    signature = json.dumps(config, sort_keys=True)
    if path.exists() and labels_file.exists():
        with h5py.File(path) as file:
            if file.attrs.get("config") != signature:
                raise ValueError(
                    f"{path}: already there, written with another configuration. Choose another folder or delete it."
                )
        return
    for file_path in (path, labels_file):
        file_path.parent.mkdir(parents=True, exist_ok=True)
    (n_echoes, n_coils), size = n_echoes_and_coils, matrix_shape[1:]
    labels = np.zeros(matrix_shape, np.uint8)
    with whole_file(path) as part:
        with h5py.File(part, "w") as file:
            file.attrs["config"] = signature
            arrays = {
                name: file.create_dataset(name, (*matrix_shape, *rest), "complex64", chunks=(1, *size, *chunk))
                for name, rest, chunk in (
                    ("kspace", (n_echoes, n_coils), (1, n_coils)),
                    ("maps", (n_coils, 1), (n_coils, 1)),
                    ("target", (n_echoes, 1), (1, 1)),
                )
            }
            for index, content in enumerate(slices):
                arrays["kspace"][index] = content["kspace"]
                arrays["maps"][index, ..., 0] = content["maps"]
                arrays["target"][index, ..., 0] = content["target"]
                if "noise_free" in content:
                    noise_free = file.require_dataset(
                        "noise_free", arrays["target"].shape, "complex64", chunks=(1, *size, 1, 1)
                    )
                    noise_free[index, ..., 0] = content["noise_free"]
                labels[index] = content["labels"]
            for acceleration, mask in masks().items():
                file[f"masks/poisson_{acceleration:.1f}x"] = mask.astype(np.uint8)
        write_nifti(labels_file, labels, voxel_size_mm, orientation=orientation)


def remove_leftovers(root: str | os.PathLike) -> None:
    """Delete what killed runs have left half written in a data set; to be called by the only run that writes there."""
    for path in (kspace_path(str(root), "any"), labels_path(str(root), "any")):
        recover_all(Path(path).parent)


def write_annotations(
    root: str | os.PathLike, split: str, info: Mapping[str, Any], images: Sequence[Mapping[str, Any]], **more: Any
) -> None:
    """Write the annotation file of a split.

    Args:
        root: folder of the data set.
        split: name of the split.
        info: description of the data set; "description" is its name.
        images: entry of each scan.
        **more: further entries of the file.
    """
    path = Path(root, "annotations", "v1.0.0", f"{split}.json")
    write_json(path, {"info": {"version": "1.0.0", **info}, **more, "images": images}, indent=1)
