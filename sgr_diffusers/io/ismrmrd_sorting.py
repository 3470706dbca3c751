"""Acquisitions of an ISMRMRD file put at their places in k-space; what their labels claim is held against the samples.

Axes are named as in ISMRMRD: readout, phase encoding (kspace_encode_step_1), partitions (kspace_encode_step_2).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Complex64, Float, Integer, Shaped

from .cartesian_header import CartesianHeader, CounterLimits
from .file_checks import check_claimed_bytes
from .ismrmrd_acquisitions import has_flag
from .kspace_checks import check_centre, slice_energy
from .raw_slices import check_finite, warn_suspect

__all__ = ["SortedLines", "is_three_dimensional", "sort_lines"]

_KSPACE_PER_FILE_BYTE = 64  # k-space may be undersampled so far
_DISAGREEMENT = 0.5  # energy of deviations from the mean, over that of the mean, of lines called averages
_UNLABELLED_DISAGREEMENT = 0.1  # the same, of lines that nothing tells apart
_CONTRAST = 9.0  # ratio of energies of neighbouring lines from which on they are of another contrast
_NEIGHBOURHOOD = 4  # lines
_MOST_COMPARED = 500  # calibration lines

Lines = dict[int, Complex64[np.ndarray, "coil sample"]]


@dataclass(frozen=True)
class SortedLines:
    """k-space on its grid.

    Attributes:
        kspace: k-space, complex64, zero where not measured.
        sampled: positions that were measured.
        readout: samples of the readout that were measured.
    """

    kspace: Complex64[np.ndarray, "slice coil partition phase readout"]
    sampled: Bool[np.ndarray, "slice partition phase"]
    readout: Bool[np.ndarray, " readout"]


@dataclass(frozen=True)
class _Places:
    """Places of acquisitions on the grid, each an array over the acquisitions."""

    rows: Integer[np.ndarray, " line"]
    slice: Integer[np.ndarray, " line"]
    partition: Integer[np.ndarray, " line"]
    phase: Integer[np.ndarray, " line"]

    def flat(self, shape: tuple[int, int, int]) -> Integer[np.ndarray, " line"]:
        return np.ravel_multi_index((self.slice, self.partition, self.phase), shape)

    def keep(self, kept: Bool[np.ndarray, " line"]) -> "_Places":
        return _Places(self.rows[kept], self.slice[kept], self.partition[kept], self.phase[kept])


@dataclass(frozen=True)
class _Readout:
    """How the samples of a kind of acquisition go to the grid: reversed or not, which of them, and whither."""

    is_reversed: bool
    use: Integer[np.ndarray, " sample"]
    target: Integer[np.ndarray, " sample"]


def is_three_dimensional(header: CartesianHeader, heads: Shaped[np.ndarray, " line"], path: Path) -> bool:
    """Tell whether acquisitions are partitions of a slab, by their counters; the header alone is not believed.

    Raises:
        ValueError: there are several partitions, but the header has one.
    """
    n_partitions, steps = header.encoded_matrix[2], np.unique(heads["idx"]["kspace_encode_step_2"])
    if len(steps) > 1 and n_partitions == 1:
        raise ValueError(
            f"{path} has acquisitions with kspace_encode_step_2 from {steps[0]} to {steps[-1]}, but the matrix "
            f"{header.encoded_matrix} of encodedSpace has one partition. Correct its z in the header."
        )
    if len(steps) == 1 and n_partitions > 1:
        warn_suspect(
            f"the header of {path} has {n_partitions} partitions (encodedSpace, z), but kspace_encode_step_2 is "
            f"{steps[0]} in all acquisitions: they are read as 2-D slices."
        )
    return len(steps) > 1


def sort_lines(
    header: CartesianHeader,
    heads: Shaped[np.ndarray, " line"],
    lines: Lines,
    numbers: tuple[int, ...],
    is_3d: bool,
    path: Path,
) -> SortedLines:
    """Put acquisitions at their places; several at one place are averaged if they are averages.

    Args:
        header: header of the file.
        heads: heads of all acquisitions of the file.
        lines: samples of those to sort, by their row in the file.
        numbers: slice counters, in the order that slices are to have.
        is_3d: flag that says whether there are partitions.
        path: path of the file, for messages.

    Raises:
        ValueError: labels, header and samples contradict each other: positions or samples outside the matrix,
            acquisitions of other coils or lengths, different lines at the same place, a k-space centre elsewhere.
    """
    n_x, n_y = header.encoded_matrix[:2]
    n_z = header.encoded_matrix[2] if is_3d else 1
    places = _encoded_places(header, heads, np.array(sorted(lines)), numbers, n_z, path)
    first = lines[int(places.rows[0])]
    for row in places.rows.tolist():
        if lines[row].shape[0] != first.shape[0]:
            raise ValueError(
                f"acquisition {row} of {path} has {lines[row].shape[0]} coils, but the first has {first.shape[0]}."
            )
    shape = (len(numbers), n_z, n_y)
    n_bytes = int(np.prod((*shape, first.shape[0], n_x), dtype=object)) * 8
    what = f"k-space of the matrix {header.encoded_matrix} (encodedSpace) for {len(lines)} acquisitions"
    check_claimed_bytes(n_bytes, path, what, per_byte=_KSPACE_PER_FILE_BYTE)
    readouts = _readouts(heads, lines, places.rows, header, path)
    places = _without_foreign_calibration(heads, lines, places, readouts, shape, path)
    readout = _common_readout(readouts, places.rows, header, path)
    _check_oversampling(heads[places.rows[0]], readouts[int(places.rows[0])], header, path)

    kspace = np.zeros((len(numbers), first.shape[0], n_z, n_y, n_x), np.complex64)
    count, squares = np.zeros(shape, np.int64), np.zeros(shape)
    for row, *position in zip(places.rows.tolist(), places.slice, places.partition, places.phase, strict=True):
        samples = _samples(lines[row], readouts[row])
        kspace[position[0], :, position[1], position[2], readouts[row].target] += samples.T
        count[tuple(position)] += 1
        squares[tuple(position)] += float(np.linalg.norm(samples)) ** 2
    kspace /= np.maximum(count, 1)[:, None, ..., None]
    check_finite(kspace, "data", path, numbers)
    _check_averages(heads, places, kspace, count, squares, path)
    energy = slice_energy(kspace)
    axes = ("partition", "phase encoding", "readout")
    check_centre(
        energy if is_3d else energy[0],
        path,
        axes if is_3d else axes[1:],
        "Correct `center` in encodingLimits of the header, or center_sample of the acquisitions.",
    )
    return SortedLines(kspace, count > 0, readout)


def _encoded_places(
    header: CartesianHeader, heads: np.ndarray, rows: np.ndarray, numbers: tuple[int, ...], n_z: int, path: Path
) -> _Places:
    n_y = header.encoded_matrix[1]
    counters = heads["idx"][rows]
    phase = _centred(counters["kspace_encode_step_1"].astype(int), header.step_1, n_y, "1", path)
    partition = np.zeros_like(phase)
    if n_z > 1:
        partition = _centred(counters["kspace_encode_step_2"].astype(int), header.step_2, n_z, "2", path)
    place_of = {number: position for position, number in enumerate(numbers)}
    return _Places(rows, np.array([place_of[number] for number in counters["slice"].tolist()]), partition, phase)


def _centred(steps: np.ndarray, limits: CounterLimits, n: int, name: str, path: Path) -> np.ndarray:
    """Counters moved so that the k-space centre comes to `n // 2`; checked against the limits of the header."""
    center = n // 2 if limits.center is None else limits.center
    first, last = int(steps.min()), int(steps.max())
    stated = f"limits {limits.minimum} to {limits.maximum}, centre {limits.center}, matrix {n}"
    if first - center + n // 2 < 0 or last - center + n // 2 >= n:
        raise ValueError(
            f"{path} has positions outside its matrix: kspace_encode_step_{name} runs from {first} to {last}, but the "
            f"header has {stated}."
        )
    gap = int(np.diff(np.unique(steps)).max(initial=1))
    outside = limits.minimum is not None and first < limits.minimum
    outside |= limits.maximum is not None and last > limits.maximum
    missing = limits.minimum is not None and first - limits.minimum > gap
    missing |= limits.maximum is not None and limits.maximum - last > gap
    if outside or missing:
        warn_suspect(
            f"kspace_encode_step_{name} of {path} runs from {first} to {last}, but the header has {stated}: "
            + ("the limits are wrong." if outside else "the file may be incomplete. What is missing is not measured.")
        )
    return steps - center + n // 2


def _readouts(
    heads: np.ndarray, lines: Lines, rows: np.ndarray, header: CartesianHeader, path: Path
) -> dict[int, _Readout]:
    """How each acquisition goes to the grid, found once for each kind of acquisition."""
    is_reversed = has_flag(heads, "ACQ_IS_REVERSE")
    kinds: dict[tuple[int, ...], list[int]] = {}
    for row in rows.tolist():
        head = heads[row]
        cut = int(head["discard_pre"]), int(head["discard_post"])
        kinds.setdefault((lines[row].shape[1], int(head["center_sample"]), *cut, int(is_reversed[row])), []).append(
            row
        )
    result: dict[int, _Readout] = {}
    for kind, members in kinds.items():
        readout = _readout(kind, [lines[row] for row in members], header, path)
        result |= dict.fromkeys(members, readout)
    return result


def _readout(kind: tuple[int, ...], lines: list[np.ndarray], header: CartesianHeader, path: Path) -> _Readout:
    n, center, before, after, is_reversed = kind
    n_x = header.encoded_matrix[0]
    use = np.arange(before, n - after)
    if not use.size or center >= n:
        raise ValueError(
            f"{path} has acquisitions of {n} samples with center_sample {center}, discard_pre {before} and "
            f"discard_post {after}: the centre or all samples lie outside."
        )
    if is_reversed:
        use = n - 1 - use[::-1]
    # center_sample of a reversed readout counts in the order stored, or, as converters write it, in the order after.
    candidates = [n - 1 - center, center] if is_reversed else [center]
    fitting = [c for c in candidates if use[0] - c + n_x // 2 >= 0 and use[-1] - c + n_x // 2 < n_x]
    if not fitting and center == 0 and n == n_x:
        warn_suspect(
            f"center_sample of {path} is 0 in acquisitions of {n} samples, as many as the matrix has: it was never "
            f"set. The middle, {n // 2}, is taken."
        )
        fitting = [n // 2]
    if not fitting:
        raise ValueError(
            f"{path} has acquisitions of {n} samples with center_sample {center}, which do not fit the matrix of "
            f"{n_x} (encodedSpace, x): readout oversampling must be part of that matrix and its field of view. "
            "Correct the header, or center_sample."
        )
    chosen = fitting[0]
    if len(set(fitting)) > 1:
        profile = sum((np.abs(line[:, :: -1 if is_reversed else 1]) ** 2).sum(axis=0) for line in lines)
        chosen = min(fitting, key=lambda c: abs(c - int(profile.argmax())))
    return _Readout(bool(is_reversed), use, use - chosen + n_x // 2)


def _samples(line: Complex64[np.ndarray, "coil sample"], readout: _Readout) -> Complex64[np.ndarray, "coil used"]:
    return (line[:, ::-1] if readout.is_reversed else line)[:, readout.use]


def _common_readout(
    readouts: dict[int, _Readout], rows: np.ndarray, header: CartesianHeader, path: Path
) -> Bool[np.ndarray, " readout"]:
    n_x = header.encoded_matrix[0]
    first = readouts[int(rows[0])].target
    for row in rows.tolist():
        target = readouts[row].target
        if not np.array_equal(target, first):
            raise ValueError(
                f"acquisition {row} of {path} covers other readout samples than the first: {target[0]} to "
                f"{target[-1]}, not {first[0]} to {first[-1]} of {n_x}."
            )
    covered = np.zeros(n_x, bool)
    covered[first] = True
    return covered


def _check_oversampling(head: np.void, readout: _Readout, header: CartesianHeader, path: Path) -> None:
    """A readout shorter than the matrix, but centred, is no asymmetric echo: the header has another oversampling."""
    n, n_x = int(head["number_of_samples"]), header.encoded_matrix[0]
    if n >= n_x or len(readout.use) < n or readout.target[n // 2] != n_x // 2:
        return
    text = (
        f"{path} has acquisitions of {n} samples about their centre, but a matrix of {n_x} (encodedSpace, x), "
        f"{header.readout_kept} of which are kept without oversampling"
    )
    if n == header.readout_kept:
        raise ValueError(f"{text}: the oversampling has been removed from the data. Correct encodedSpace.")
    warn_suspect(f"{text}: the outer samples are taken as not measured.")


def _without_foreign_calibration(
    heads: np.ndarray,
    lines: Lines,
    places: _Places,
    readouts: dict[int, _Readout],
    shape: tuple[int, int, int],
    path: Path,
) -> _Places:
    """Leave out calibration lines where imaging lines lie, and all of them where they are of another contrast."""
    calibration = has_flag(heads, "ACQ_IS_PARALLEL_CALIBRATION") & ~has_flag(
        heads, "ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING"
    )
    is_calibration = calibration[places.rows]
    if not is_calibration.any() or is_calibration.all():
        return places
    flat = places.flat(shape)
    imaging = dict(zip(flat[~is_calibration].tolist(), places.rows[~is_calibration].tolist(), strict=True))
    is_double = is_calibration & np.isin(flat, list(imaging))
    reason = None
    reference = readouts[int(places.rows[~is_calibration][0])].target
    if any(not np.array_equal(readouts[row].target, reference) for row in places.rows[is_calibration].tolist()):
        reason = "cover other readout samples"
    elif is_double.any():
        pairs = [
            (_samples(lines[row], readouts[row]), _samples(lines[imaging[position]], readouts[imaging[position]]))
            for row, position in zip(places.rows[is_double].tolist(), flat[is_double].tolist(), strict=True)
        ]
        ratio = sum(np.linalg.norm(a - b) ** 2 for a, b in pairs) / max(
            sum(np.linalg.norm(b) ** 2 for _, b in pairs), 1e-30
        )
        if ratio > _DISAGREEMENT:
            reason = f"differ from the imaging lines of the same places by {ratio:.2g} of their energy"
    else:
        ratio = _energy_beside_imaging(lines, places, is_calibration)
        if not 1 / _CONTRAST < ratio < _CONTRAST:
            reason = f"have {ratio:.2g} times the energy of the imaging lines beside them"
    if reason is None:
        return places.keep(~is_double)
    warn_suspect(
        f"the {int(is_calibration.sum())} calibration lines of {path} {reason}: they are of another contrast, and "
        "left out."
    )
    return places.keep(~is_calibration)


def _energy_beside_imaging(lines: Lines, places: _Places, is_calibration: np.ndarray) -> float:
    """Median ratio of the energy of a calibration line to that of the nearest imaging line."""
    energy = np.array([np.linalg.norm(lines[row]) ** 2 for row in places.rows.tolist()])
    imaging, calibration = np.flatnonzero(~is_calibration), np.flatnonzero(is_calibration)
    ratios = []
    for position in calibration[:: max(len(calibration) // _MOST_COMPARED, 1)]:
        distance = np.abs(places.phase[imaging] - places.phase[position])
        distance = distance + np.abs(places.partition[imaging] - places.partition[position])
        distance = np.where(places.slice[imaging] == places.slice[position], distance, np.iinfo(int).max)
        nearest = int(distance.argmin())
        if distance[nearest] <= _NEIGHBOURHOOD and energy[imaging[nearest]] > 0:
            ratios.append(energy[position] / energy[imaging[nearest]])
    return float(np.median(ratios)) if ratios else 1.0


def _check_averages(
    heads: np.ndarray,
    places: _Places,
    mean: Complex64[np.ndarray, "slice coil partition phase readout"],
    count: Integer[np.ndarray, "slice partition phase"],
    squares: Float[np.ndarray, "slice partition phase"],
    path: Path,
) -> None:
    """Lines at one place are averages of each other: where they differ, their labels are wrong."""
    several = count > 1
    if not several.any():
        return
    of_mean = (np.abs(np.moveaxis(mean, 1, -1)) ** 2).sum(axis=(-1, -2)) * count
    ratio = float((squares - of_mean)[several].sum() / max(of_mean[several].sum(), 1e-30))
    flat = places.flat(count.shape)
    keys = set(zip(flat.tolist(), heads["idx"]["average"][places.rows].tolist(), strict=True))
    is_labelled = len(keys) == len(places.rows)
    if is_labelled and ratio <= _DISAGREEMENT:
        return
    position = tuple(int(index) for index in np.unravel_index(int(count.argmax()), count.shape))
    text = (
        f"{path} has up to {int(count.max())} acquisitions with the same labels (kspace_encode_step_1, _2 and slice; "
        f"for example at partition {position[1]}, line {position[2]} of the matrix), which differ from their mean by "
        f"{ratio:.2g} of its energy"
    )
    if not is_labelled and ratio > _UNLABELLED_DISAGREEMENT:
        raise ValueError(
            f"{text}: they are no averages of one line. Labels are missing or wrong; convert the file again."
        )
    if is_labelled:
        warn_suspect(f"{text}, although the counter `average` calls them averages.")
    else:
        warn_suspect(f"{text}. They are averaged, although the counter `average` does not tell them apart.")
