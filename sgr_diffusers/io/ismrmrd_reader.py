"""Reader of ISMRMRD files of Cartesian k-space, 2-D or 3-D.

The axes of ISMRMRD are readout, phase encoding (kspace_encode_step_1) and partitions (kspace_encode_step_2).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Complex, Complex64, Shaped

from .cartesian_header import CartesianHeader
from .ismrmrd_acquisitions import has_flag, read_heads, read_lines, select_lines
from .ismrmrd_sorting import SortedLines, is_three_dimensional, sort_lines
from .orientation import nearest_directions, patient_affine
from .raw_slices import RawSlices, common_mask, slice_indices, warn_suspect
from .readout import crop_field_of_view, readout_to_image
from .slice_geometry import common_directions, regular_step, slice_stack

__all__ = ["count_stack_slices", "noise_whitening_matrix", "read_ismrmrd"]

_HIGHEST_NOISE_PEAK = 100.0  # |sample|^2 over its mean; of a million samples of noise the highest has about 14

Slices = range | slice | Iterable[int] | None


def read_ismrmrd(
    path: str | os.PathLike,
    slices: Slices = None,
    echo: int = 1,
    repetition: int = 0,
    noise: str | os.PathLike | None = None,
    prewhiten: bool = True,
    remove_oversampling: bool = True,
    group: str | None = None,
) -> RawSlices:
    """Read the slices of a Cartesian scan; which positions were sampled becomes the mask.

    2-D scans give one slice for each slice of the scan, in the order of their positions: rows are the phase encoding,
    columns the readout. 3-D scans are turned into image space along the readout, as SKM-TEA's files are: slices lie
    along the readout, rows are the phase encoding, columns the partitions. Positions that partial Fourier or an
    asymmetric echo left out are not measured. In 3-D scans an asymmetric echo costs resolution along the readout,
    across slices. Averages are averaged.

    Args:
        path: path of the file.
        slices: slices to read, as a range, a slice or indices from 0; `None` for all.
        echo: number of the echo from 1, the contrast of ISMRMRD.
        repetition: number of the repetition from 0.
        noise: another ISMRMRD file with the noise scan; `None`: noise acquisitions in `path`, if there are any.
        prewhiten: turn coils into virtual ones with independent noise of variance 1 in real and in imaginary part;
            without a noise scan nothing is done.
        remove_oversampling: flag to crop the field of view along the readout to that of the image.
        group: HDF5 group of the scan; `None` for the only one there is.

    Returns:
        Slices without maps and fully sampled image. Voxel size, orientation and affine come from the file; the affine
        only where it holds for all slices.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError, BlockingIOError: this user may not read the file, or another program is writing it.
        ValueError: the file is damaged, not ISMRMRD, not Cartesian, or holds no k-space of this echo and repetition;
            its header, the labels of its acquisitions and their samples contradict each other; or it holds several
            cardiac phases or sets. Contradictions that leave an image possible are a `SuspectDataWarning`.
    """
    path = Path(path)
    header, heads = read_heads(path, group)
    header.check_imaging(path)
    rows = select_lines(header, heads, echo, repetition, path)
    whitening = _whitening(path, header, heads, int(rows[0]), noise, group) if prewhiten else None
    read = _read_slab if is_three_dimensional(header, heads[rows], path) else _read_stack
    n_kept = header.readout_kept if remove_oversampling else header.encoded_matrix[0]
    raw = read(header, _Echo(path, group, heads, rows, whitening), n_kept, slices)
    raw = replace(raw, patient_id=header.patient_id)
    n_averages = len(np.unique(heads["idx"]["average"][rows]))
    return raw if whitening is None else replace(raw, noise_std=n_averages**-0.5)


def count_stack_slices(path: Path, echo: int, repetition: int, group: str | None) -> int | None:
    """Count the slices of a 2-D scan; arguments as for `read_ismrmrd`.

    Returns:
        The number of slices; `None` for a 3-D scan, whose slices are cut from all of its lines.

    Raises:
        FileNotFoundError, PermissionError, BlockingIOError, ValueError: as `read_ismrmrd`.
    """
    header, heads = read_heads(path, group)
    header.check_imaging(path)
    chosen = heads[select_lines(header, heads, echo, repetition, path)]
    return None if is_three_dimensional(header, chosen, path) else len(np.unique(chosen["idx"]["slice"]))


def noise_whitening_matrix(
    samples: Complex[np.ndarray, "coil sample"], time_ratio: float | int = 1.0, bandwidth: float | int = 1.0
) -> Complex64[np.ndarray, "coil coil"]:
    """Compute the matrix that makes the noise of coils independent, with variance 1 in real and imaginary part.

    Args:
        samples: samples of noise alone.
        time_ratio: dwell time of the imaging scan over that of the noise scan.
        bandwidth: relative bandwidth of the receiver for noise.

    Raises:
        ValueError: the covariance is singular: a coil without noise, or fewer samples than coils.
    """
    n_coils, n_samples = samples.shape
    try:
        if n_samples < n_coils:
            raise np.linalg.LinAlgError
        samples = samples.astype(np.complex128)
        covariance = samples @ samples.conj().T / max(n_samples - 1, 1)
        inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the noise scan of {n_coils} coils and {n_samples} samples has a singular covariance: a coil without "
            "signal, or too few samples. Pass `prewhiten=False`."
        ) from None
    return (inverse * np.sqrt(2 * time_ratio * bandwidth)).astype(np.complex64)


def _whitening(
    path: Path,
    header: CartesianHeader,
    heads: Shaped[np.ndarray, " line"],
    first_row: int,
    noise: str | os.PathLike | None,
    group: str | None,
) -> Complex64[np.ndarray, "coil coil"] | None:
    """Whitening matrix of the noise acquisitions of this or another file; `None` where there are none."""
    noise_path, noise_header, noise_heads = path, header, heads
    if noise is not None:
        noise_path, group = Path(noise), None
        noise_header, noise_heads = read_heads(noise_path, group)
    rows = np.flatnonzero(has_flag(noise_heads, "ACQ_IS_NOISE_MEASUREMENT"))
    if not rows.size:
        if noise is not None:
            raise ValueError(f"`noise` {noise} holds no noise measurement.")
        return None
    lines = read_lines(noise_path, group, noise_heads, rows)
    if len({line.shape[0] for line in lines.values()}) > 1:
        raise ValueError(f"the noise acquisitions of {noise_path} have different numbers of coils.")
    samples = np.concatenate([lines[row] for row in sorted(lines)], axis=1)
    n_coils = int(heads["active_channels"][first_row])
    if samples.shape[0] != n_coils:
        raise ValueError(f"the noise scan has {samples.shape[0]} coils, {path} has {n_coils}. Pass `prewhiten=False`.")
    power = np.abs(samples) ** 2
    if (power.max(axis=1) > _HIGHEST_NOISE_PEAK * np.maximum(power.mean(axis=1), 1e-30)).any():
        warn_suspect(
            f"the noise acquisitions of {noise_path} have samples more than {_HIGHEST_NOISE_PEAK:g} times as strong "
            "as their mean: they seem to hold signal, so that whitening is wrong. Pass `prewhiten=False`."
        )
    noise_time, time = float(noise_heads["sample_time_us"][rows[0]]), float(heads["sample_time_us"][first_row])
    ratio = time / noise_time if noise_time > 0 else 1.0
    return noise_whitening_matrix(samples, ratio if 0 < ratio < np.inf else 1.0, noise_header.noise_bandwidth)


@dataclass(frozen=True)
class _Echo:
    """The acquisitions of one echo and repetition in a file.

    Attributes:
        path: path of the file.
        group: HDF5 group of the scan.
        heads: headers of all acquisitions of the file.
        rows: rows of `heads` that belong to the echo.
        whitening: matrix that makes the noise of coils independent; `None` for samples as they are.
    """

    path: Path
    group: str | None
    heads: Shaped[np.ndarray, " line"]
    rows: Shaped[np.ndarray, " row"]
    whitening: Complex64[np.ndarray, "coil coil"] | None

    def lines(self, rows: Shaped[np.ndarray, " row"]) -> dict[int, np.ndarray]:
        """Read the samples of some rows, `(coil, sample)` each."""
        lines = read_lines(self.path, self.group, self.heads, rows)
        return lines if self.whitening is None else {row: self.whitening @ line for row, line in lines.items()}


def _read_stack(header: CartesianHeader, echo: _Echo, n_kept: int, slices: Slices) -> RawSlices:
    """Read 2-D slices, only those asked for."""
    heads, rows, path = echo.heads, echo.rows, echo.path
    stack = slice_stack(header, heads[rows], path)
    indices = slice_indices(slices, len(stack.numbers), path)
    numbers = tuple(dict.fromkeys(stack.numbers[index] for index in indices))
    chosen = rows[np.isin(heads["idx"]["slice"][rows], numbers)]
    lines = echo.lines(chosen)
    result = sort_lines(header, heads, lines, numbers, False, path)
    kspace, within = crop_field_of_view(result.kspace[:, :, 0], result.readout, n_kept)
    again = [numbers.index(stack.numbers[index]) for index in indices]  # a slice may be asked for twice
    kspace, masks = kspace[again], result.sampled[again, 0][..., None] & within
    pixel_mm = header.encoded_fov_mm[1] / kspace.shape[2], header.encoded_fov_mm[0] / header.encoded_matrix[0]
    voxel_size_mm = header.known_voxel_size((stack.spacing_mm, *pixel_mm), path)
    affine = None
    if voxel_size_mm is not None:
        affine = stack.affine(indices, pixel_mm, (kspace.shape[2] // 2, kspace.shape[3] // 2))
    return _raw(kspace, masks, indices, voxel_size_mm, stack.orientation, affine, path, len(stack.numbers))


def _read_slab(header: CartesianHeader, echo: _Echo, n_kept: int, slices: Slices) -> RawSlices:
    """Read a 3-D slab, cut into slices along the readout."""
    heads, rows, path = echo.heads, echo.rows, echo.path
    numbers = tuple(np.unique(heads["idx"]["slice"][rows]).tolist())
    if len(numbers) != 1:
        raise ValueError(f"{path} has {len(numbers)} slabs; only one can be read. Split the file by `slice`.")
    indices = slice_indices(slices, n_kept, path)
    lines = echo.lines(rows)
    result: SortedLines = sort_lines(header, heads, lines, numbers, True, path)
    hybrid = readout_to_image(result.kspace[0], result.readout, n_kept)[..., list(indices)]
    hybrid = np.ascontiguousarray(hybrid.transpose(3, 0, 2, 1))  # (slice, coil, phase, partition)
    fov, matrix = header.encoded_fov_mm, header.encoded_matrix
    size = (fov[0] / matrix[0], fov[1] / matrix[1], fov[2] / matrix[2])
    voxel_size_mm = header.known_voxel_size(size, path)
    directions = common_directions(heads[rows], path)
    orientation = None if directions is None else nearest_directions(directions)
    affine, step = None, regular_step(indices)
    position = heads["position"][rows[0]].astype(float)
    if directions is not None and voxel_size_mm is not None and step is not None and np.isfinite(position).all():
        middle = ((n_kept // 2 - indices[0]) / step, matrix[1] // 2, matrix[2] // 2)
        affine = patient_affine(directions, (size[0] * step, *size[1:]), position, middle)
    masks: Bool[np.ndarray, "1 y x"] = result.sampled[0].T[None]
    return _raw(hybrid, masks, indices, voxel_size_mm, orientation, affine, path, n_kept)


def _raw(
    kspace: Complex64[np.ndarray, "slice coil y x"],
    masks: Bool[np.ndarray, "mask y x"],
    indices: tuple[int, ...],
    voxel_size_mm: tuple[float, float, float] | None,
    orientation: tuple[str, str, str] | None,
    affine: np.ndarray | None,
    path: Path,
    n_slices: int,
) -> RawSlices:
    return RawSlices(
        kspace=torch.from_numpy(np.ascontiguousarray(np.where(masks[:, None], kspace, 0), np.complex64)),
        mask=torch.from_numpy(common_mask(masks)),
        slice_indices=indices,
        voxel_size_mm=voxel_size_mm,
        orientation=orientation,
        scan_id=path.stem,
        n_slices=n_slices,
        affine=affine,
    )
