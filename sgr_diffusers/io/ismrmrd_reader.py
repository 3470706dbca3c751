"""An ISMRMRD file of Cartesian k-space, 2-D or 3-D, enters; complex64 k-space slices leave.

The axes of ISMRMRD are readout, phase encoding (kspace_encode_step_1) and partitions (kspace_encode_step_2).
"""

import itertools
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Complex64

from .cartesian_header import CartesianHeader, read_header
from .orientation import nearest_directions, patient_affine, unit_directions
from .raw_slices import RawSlices, check_finite, open_hdf5, slice_indices
from .readout import crop_field_of_view, readout_to_image

__all__ = ["noise_whitening_matrix", "read_ismrmrd"]

# Names of the flags in `ismrmrd`; acquisitions with one of these hold no k-space of the image.
_NOT_IMAGING = (
    "ACQ_IS_NOISE_MEASUREMENT",
    "ACQ_IS_NAVIGATION_DATA",
    "ACQ_IS_PHASECORR_DATA",
    "ACQ_IS_HPFEEDBACK_DATA",
    "ACQ_IS_DUMMYSCAN_DATA",
    "ACQ_IS_RTFEEDBACK_DATA",
    "ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA",
    "ACQ_IS_PHASE_STABILIZATION_REFERENCE",
    "ACQ_IS_PHASE_STABILIZATION",
)


def read_ismrmrd(
    path: str | os.PathLike,
    slices: range | slice | Iterable[int] | None = None,
    echo: int = 1,
    repetition: int = 0,
    noise: str | os.PathLike | None = None,
    prewhiten: bool = True,
    remove_oversampling: bool = True,
    group: str = "dataset",
) -> RawSlices:
    """Read the slices of a Cartesian scan; which positions were sampled becomes the mask.

    2-D scans give one slice for each slice of the scan: rows are the phase encoding, columns the readout. 3-D scans
    are turned into image space along the readout, as SKM-TEA's files are: slices lie along the readout, rows are the
    phase encoding, columns the partitions. Positions that partial Fourier or an asymmetric echo left out are not
    measured. In 3-D scans an asymmetric echo costs resolution along the readout, across slices. Averages are averaged.

    Args:
        path: the file.
        slices: which slices, as a range, a slice or indices from 0; `None` for all.
        echo: from 1, the contrast of ISMRMRD.
        repetition: from 0.
        noise: another ISMRMRD file with the noise scan; `None`: noise acquisitions in `path`, if there are any.
        prewhiten: turn coils into virtual ones with independent noise of variance 1 in real and in imaginary part;
            without a noise scan nothing is done.
        remove_oversampling: crop the field of view along the readout to that of the image.
        group: HDF5 group of the scan.

    Returns:
        Slices without maps and target. Voxel size, orientation and affine come from the file; the affine only where
        it holds for all slices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not ISMRMRD, not Cartesian, holds no k-space of this echo and repetition, positions
            outside its matrix or values that are not finite; it holds several cardiac phases or sets; or slices were
            sampled differently.
    """
    path = Path(path)
    header, heads, lines = _read_lines(path, group)
    if header.trajectory != "cartesian":
        raise ValueError(f"{path} has a {header.trajectory or 'nameless'} trajectory, but must be Cartesian.")
    flags = _flags()
    whitening = None
    if prewhiten:
        noise_header, noise_heads, noise_lines = (header, heads, lines)
        if noise is not None:
            noise_header, noise_heads, noise_lines = _read_lines(Path(noise), group)
        rows = np.flatnonzero(_has(noise_heads, flags["ACQ_IS_NOISE_MEASUREMENT"]))
        if rows.size:
            whitening = (
                np.concatenate([noise_lines[row] for row in rows], axis=1),
                float(noise_heads["sample_time_us"][rows[0]]),
                noise_header.noise_bandwidth,
            )
        elif noise is not None:
            raise ValueError(f"`noise` {noise} holds no noise measurement.")
    skip = np.zeros(len(heads), bool)
    for name in _NOT_IMAGING:
        skip |= _has(heads, flags[name])
    only_calibration = _has(heads, flags["ACQ_IS_PARALLEL_CALIBRATION"]) & ~_has(
        heads, flags["ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING"]
    )
    if header.calibration_mode in ("separate", "external"):  # of another contrast, perhaps
        skip |= only_calibration
    counters = heads["idx"]
    skip |= heads["encoding_space_ref"] != 0  # of another matrix than the header's first
    skip |= (counters["contrast"] != echo - 1) | (counters["repetition"] != repetition)
    rows = np.flatnonzero(~skip)
    if not rows.size:
        raise ValueError(
            f"`echo` {echo}, `repetition` {repetition}: {path} holds no k-space of these. It has echoes "
            f"{sorted(set((counters['contrast'] + 1).tolist()))} and repetitions "
            f"{sorted(set(counters['repetition'].tolist()))}."
        )
    for name in ("phase", "set"):  # as of a heartbeat, or of flow encoding: no averages of one image
        found = sorted(set(counters[name][rows].tolist()))
        if len(found) > 1:
            raise ValueError(
                f"{path} holds several images of each slice, with the counter `{name}` {found}. Split it."
            )
    if whitening is not None:
        samples, noise_time, bandwidth = whitening
        if samples.shape[0] != lines[rows[0]].shape[0]:
            raise ValueError(
                f"the noise scan has {samples.shape[0]} coils, {path} has {lines[rows[0]].shape[0]}. Pass "
                "`prewhiten=False`."
            )
        ratio = float(heads["sample_time_us"][rows[0]]) / noise_time if noise_time > 0 else 1.0
        matrix = noise_whitening_matrix(samples, ratio if ratio > 0 else 1.0, bandwidth)
        lines = {row: matrix @ lines[row] for row in rows}
    kspace, sampled, readout = _sort(header, heads, lines, rows, path)
    first = heads[rows[0]]
    n_kept = header.readout_kept if remove_oversampling else header.encoded_matrix[0]
    if header.encoded_matrix[2] > 1:
        return _three_dimensional(header, kspace, sampled, readout, n_kept, first, slices, path)
    return _two_dimensional(header, kspace, sampled, readout, n_kept, heads[rows], slices, path)


def noise_whitening_matrix(
    samples: Complex[np.ndarray, "coil sample"], time_ratio: float | int = 1.0, bandwidth: float | int = 1.0
) -> Complex64[np.ndarray, "coil coil"]:
    """Matrix that makes the noise of coils independent, with variance 1 in the real and in the imaginary part.

    Args:
        samples: noise alone.
        time_ratio: dwell time of the imaging scan over that of the noise scan.
        bandwidth: relative bandwidth of the receiver for noise.

    Raises:
        ValueError: the covariance is singular: a coil without noise, or fewer samples than coils.
    """
    samples = samples.astype(np.complex128)
    covariance = samples @ samples.conj().T / max(samples.shape[1] - 1, 1)
    try:
        inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the noise scan of {samples.shape[0]} coils and {samples.shape[1]} samples has a singular covariance: a "
            "coil without signal, or too few samples. Pass `prewhiten=False`."
        ) from None
    return (inverse * np.sqrt(2 * time_ratio * bandwidth)).astype(np.complex64)


def _flags() -> dict[str, int]:
    with warnings.catch_warnings():  # its import changes the filters of everybody
        from ismrmrd import constants
    names = (*_NOT_IMAGING, "ACQ_IS_PARALLEL_CALIBRATION", "ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING", "ACQ_IS_REVERSE")
    return {name: getattr(constants, name) for name in names}


def _has(heads: np.ndarray, flag: int) -> Bool[np.ndarray, " line"]:
    return (heads["flags"] & np.uint64(1 << (flag - 1))) != 0


def _read_lines(path: Path, group: str) -> tuple[CartesianHeader, np.ndarray, Any]:
    """Header, heads of the acquisitions, and their data `(coil, sample)`."""
    open_hdf5(path).close()  # says what is wrong with the file
    with warnings.catch_warnings():
        import ismrmrd
    try:
        with ismrmrd.Dataset(str(path), group, mode="r") as dataset:
            header = read_header(dataset.read_xml_header(), path)
            dataset.number_of_acquisitions()
            # in one go: the package itself reads each acquisition twice, one by one
            content = dataset._dataset["data"][()]
    except (LookupError, OSError) as error:
        raise ValueError(f"{path} is truncated, or no ISMRMRD file with a group `{group}` ({error}).") from error
    heads, lines = content["head"], []
    for head, data in zip(heads, content["data"], strict=True):
        shape = (int(head["active_channels"]), int(head["number_of_samples"]))
        if data.size != 2 * shape[0] * shape[1]:
            raise ValueError(f"{path} has an acquisition of {data.size} numbers for {shape}: it is damaged.")
        lines.append(np.ascontiguousarray(data, np.float32).view(np.complex64).reshape(shape))
    return header, heads, lines


def _sort(
    header: CartesianHeader, heads: np.ndarray, lines: Any, rows: np.ndarray, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lines to k-space (slice, coil, partition, phase, readout), positions (slice, partition, phase), readout mask."""
    n_x, n_y, n_z = header.encoded_matrix
    counters = heads["idx"][rows]
    center_1 = n_y // 2 if header.center_1 is None else header.center_1
    center_2 = n_z // 2 if header.center_2 is None else header.center_2
    phase = counters["kspace_encode_step_1"].astype(int) - center_1 + n_y // 2
    partition = counters["kspace_encode_step_2"].astype(int) - center_2 + n_z // 2 if n_z > 1 else np.zeros_like(phase)
    if phase.min() < 0 or phase.max() >= n_y or partition.min() < 0 or partition.max() >= n_z:
        raise ValueError(
            f"{path} has positions outside its matrix {header.encoded_matrix}: phase {phase.min()} to {phase.max()}, "
            f"partition {partition.min()} to {partition.max()} after centring."
        )
    numbers = np.unique(counters["slice"])
    n_coils = lines[rows[0]].shape[0]
    kspace = np.zeros((len(numbers), n_coils, n_z, n_y, n_x), np.complex64)
    count = np.zeros((len(numbers), n_z, n_y), np.int64)
    measured: np.ndarray | None = None
    reverse = _has(heads, _flags()["ACQ_IS_REVERSE"])
    for place, row in enumerate(rows):
        head, line = heads[row], lines[row]
        center = int(head["center_sample"])
        use = np.arange(int(head["discard_pre"]), line.shape[1] - int(head["discard_post"]))
        if reverse[row]:
            line, center, use = line[:, ::-1], line.shape[1] - 1 - center, line.shape[1] - 1 - use[::-1]
        target = use - center + n_x // 2
        inside = (target >= 0) & (target < n_x)
        if line.shape[0] != n_coils or not inside.any():
            raise ValueError(f"{path}: acquisition {row} has other coils than the first, or no sample in the matrix.")
        here = np.zeros(n_x, bool)
        here[target[inside]] = True
        if measured is None:
            measured = here
        elif not np.array_equal(measured, here):
            raise ValueError(f"{path}: acquisition {row} covers other readout samples than the first.")
        at = int(np.searchsorted(numbers, counters["slice"][place])), partition[place], phase[place]
        kspace[at[0], :, at[1], at[2], target[inside]] += line[:, use[inside]].T
        count[at] += 1
    kspace /= np.maximum(count, 1)[:, None, ..., None]
    check_finite(kspace, "data", path, numbers.tolist())
    return kspace, count > 0, measured


def _two_dimensional(
    header: CartesianHeader,
    kspace: np.ndarray,
    sampled: np.ndarray,
    readout: np.ndarray,
    n_kept: int,
    heads: np.ndarray,
    slices: Any,
    path: Path,
) -> RawSlices:
    indices = slice_indices(slices, len(kspace), path)
    sampled = sampled[list(indices), 0]
    if not (sampled == sampled[0]).all():
        raise ValueError(f"the `slices` of {path} were sampled at different positions. Read them one by one.")
    kspace, within = crop_field_of_view(kspace[list(indices), :, 0], readout, n_kept)
    mask = sampled[0][:, None] & within
    size = (header.encoded_fov_mm[1] / kspace.shape[2], header.encoded_fov_mm[0] / header.encoded_matrix[0])
    positions, directions = [], unit_directions(heads[0])
    for number in np.unique(heads["idx"]["slice"]):
        positions.append(heads["position"][np.flatnonzero(heads["idx"]["slice"] == number)[0]].astype(float))
    spacing = header.recon_fov_mm[2] / max(header.recon_matrix[2], 1)
    across = None if directions is None else directions[2]
    if len(positions) > 1 and across is not None:
        steps = np.diff(np.stack(positions), axis=0)
        along = steps @ across
        if np.allclose(steps, steps[0], atol=1e-2) and abs(along[0]) > 1e-3:
            spacing, across = float(np.linalg.norm(steps[0])), steps[0] / np.linalg.norm(steps[0])
        else:  # interleaved, stacked at angles, or without positions: no affine holds for all
            directions = None
    voxel_size_mm = (spacing, *size)
    affine = None
    if directions is not None:
        step = indices[1] - indices[0] if len(indices) > 1 else 1
        regular = all(b - a == step for a, b in itertools.pairwise(indices))
        axes = (across, directions[1], directions[0])
        if regular:
            affine = patient_affine(
                axes, (spacing * step, *size), positions[indices[0]], (0, kspace.shape[2] // 2, kspace.shape[3] // 2)
            )
    orientation = None if directions is None else nearest_directions((across, directions[1], directions[0]))
    return _raw(kspace, mask, indices, voxel_size_mm, orientation, affine, path, len(positions))


def _three_dimensional(
    header: CartesianHeader,
    kspace: np.ndarray,
    sampled: np.ndarray,
    readout: np.ndarray,
    n_kept: int,
    head: np.void,
    slices: Any,
    path: Path,
) -> RawSlices:
    if len(kspace) != 1:
        raise ValueError(f"{path} has {len(kspace)} slabs; only one can be read. Split the file by `slice`.")
    indices = slice_indices(slices, n_kept, path)
    hybrid = readout_to_image(kspace[0], readout, n_kept)[..., list(indices)]  # (coil, partition, phase, slice)
    hybrid = np.ascontiguousarray(hybrid.transpose(3, 0, 2, 1))  # (slice, coil, phase, partition)
    fov, matrix = header.encoded_fov_mm, header.encoded_matrix
    voxel_size_mm = (fov[0] / matrix[0], fov[1] / matrix[1], fov[2] / matrix[2])
    directions, affine, orientation = unit_directions(head), None, None
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if directions is not None:
        orientation = nearest_directions(directions)
        if all(b - a == step for a, b in itertools.pairwise(indices)):
            middle = ((n_kept // 2 - indices[0]) / step, matrix[1] // 2, matrix[2] // 2)
            size = (voxel_size_mm[0] * step, *voxel_size_mm[1:])
            affine = patient_affine(directions, size, head["position"].astype(float), middle)
    return _raw(hybrid, sampled[0].T.copy(), indices, voxel_size_mm, orientation, affine, path, n_kept)


def _raw(
    kspace: np.ndarray,
    mask: np.ndarray,
    indices: tuple[int, ...],
    voxel_size_mm: tuple[float, float, float],
    orientation: tuple[str, str, str] | None,
    affine: np.ndarray | None,
    path: Path,
    n_slices: int,
) -> RawSlices:
    return RawSlices(
        kspace=torch.from_numpy(np.ascontiguousarray(np.where(mask, kspace, 0), np.complex64)),
        mask=torch.from_numpy(mask),
        coil_maps=None,
        target=None,
        slice_indices=indices,
        voxel_size_mm=tuple(float(size) for size in voxel_size_mm),
        orientation=orientation,
        scan_id=path.stem,
        n_slices=n_slices,
        affine=affine,
    )
