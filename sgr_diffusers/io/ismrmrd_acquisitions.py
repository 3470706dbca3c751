"""Acquisitions of an ISMRMRD file: their heads, their samples, and which of them belong to the image asked for."""

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Complex64, Integer, Shaped

from .cartesian_header import CartesianHeader, read_header
from .file_checks import check_claimed_bytes
from .hdf5_file import child, find_group, open_hdf5, read_text
from .raw_slices import warn_suspect

if TYPE_CHECKING:
    import h5py

__all__ = ["flag_numbers", "has_flag", "read_heads", "read_lines", "select_lines"]

# Acquisitions with one of these flags hold no k-space of the image.
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
_COMPRESSED = ("ACQ_COMPRESSION1", "ACQ_COMPRESSION2", "ACQ_COMPRESSION3", "ACQ_COMPRESSION4")
_OTHERS = ("ACQ_IS_PARALLEL_CALIBRATION", "ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING", "ACQ_IS_REVERSE")
_HEAD_FIELDS = {
    "flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample",
    "encoding_space_ref", "trajectory_dimensions", "sample_time_us", "position", "read_dir", "phase_dir", "slice_dir",
    "idx",
}  # fmt: skip
_COUNTERS = {
    "kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition", "set",
}  # fmt: skip
_BLOCK_BYTES = 32 * 2**20
_TRAJECTORIES_LOOKED_AT = 16


def flag_numbers() -> dict[str, int]:
    """Return the numbers of the flags of acquisitions, by their names in the package `ismrmrd`."""
    with warnings.catch_warnings():  # its import changes the filters of everybody
        from ismrmrd import constants
    return {name: getattr(constants, name) for name in (*_NOT_IMAGING, *_COMPRESSED, *_OTHERS)}


def has_flag(heads: Shaped[np.ndarray, " line"], name: str) -> Bool[np.ndarray, " line"]:
    """Tell for each acquisition whether it has the flag."""
    return (heads["flags"] & np.uint64(1 << (flag_numbers()[name] - 1))) != 0


def read_heads(path: Path, group: str | None) -> tuple[CartesianHeader, Shaped[np.ndarray, " line"]]:
    """Read the header of a file and the heads of all its acquisitions, but no samples.

    Args:
        path: path of the file.
        group: HDF5 group of the scan; `None` for the only one.

    Raises:
        FileNotFoundError, PermissionError, BlockingIOError: as `open_hdf5`.
        ValueError: the file is damaged or no ISMRMRD file, or claims more samples than it has bytes.
    """
    with open_hdf5(path) as file:
        node = find_group(file, path, group)
        header = read_header(_header_text(node, path), path)
        data = _acquisitions(node, path)
        check_claimed_bytes(len(data) * data.dtype["head"].itemsize, path, "the heads of the acquisitions")
        try:
            heads = data.fields("head")[()]
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path} is truncated or damaged: its acquisitions cannot be read ({error}).") from error
    if not len(heads):
        raise ValueError(f"{path} holds no acquisitions.")
    claimed = int((heads["active_channels"].astype(np.int64) * heads["number_of_samples"]).sum()) * 8
    if claimed > path.stat().st_size:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, but its {len(heads)} acquisitions claim {claimed} bytes of "
            "samples: it is damaged."
        )
    return header, heads


def read_lines(
    path: Path, group: str | None, heads: Shaped[np.ndarray, " line"], rows: Integer[np.ndarray, " row"]
) -> dict[int, Complex64[np.ndarray, "coil sample"]]:
    """Read the samples of some acquisitions, by their row in the file.

    Raises:
        ValueError: an acquisition has another size than its head says, is compressed, or runs along no straight
            line of k-space, as a Cartesian one does.
    """
    for name in _COMPRESSED:
        if has_flag(heads[rows], name).any():
            raise ValueError(f"{path} has compressed acquisitions (flag {name}), which cannot be read. Unpack them.")
    lines = {}
    with open_hdf5(path) as file:
        data = _acquisitions(find_group(file, path, group), path)
        _check_trajectories(data, heads, rows, path)
        for block in _blocks(heads, rows):
            try:  # in one go: the package `ismrmrd` reads each acquisition twice, one by one
                samples = data.fields("data")[int(block[0]) : int(block[-1]) + 1]
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"{path} is truncated or damaged: its acquisitions cannot be read ({error})."
                ) from error
            for row in block:
                shape = int(heads[row]["active_channels"]), int(heads[row]["number_of_samples"])
                values = samples[row - block[0]]
                if values.size != 2 * shape[0] * shape[1] or not values.size:
                    raise ValueError(
                        f"{path} has an acquisition of {values.size} numbers, where its head says {shape} complex "
                        "ones (coils, samples): it is damaged."
                    )
                lines[int(row)] = np.ascontiguousarray(values, np.float32).view(np.complex64).reshape(shape)
    return lines


def select_lines(
    header: CartesianHeader, heads: Shaped[np.ndarray, " line"], echo: int, repetition: int, path: Path
) -> Integer[np.ndarray, " row"]:
    """Return the rows of the acquisitions that hold k-space of one image of each slice.

    Args:
        header: header of the file.
        heads: heads of all acquisitions.
        echo: number of the echo from 1, the contrast of ISMRMRD.
        repetition: number of the repetition from 0.
        path: path of the file, for messages.

    Raises:
        ValueError: there are none, and why each was left out; or they are of several images.
    """
    counters = heads["idx"]
    left_out: Counter[str] = Counter()
    kept = np.ones(len(heads), bool)
    reasons = [(f"have the flag {name}", has_flag(heads, name)) for name in _NOT_IMAGING]
    if header.calibration_mode in ("separate", "external"):  # of another contrast, perhaps
        only_calibration = has_flag(heads, "ACQ_IS_PARALLEL_CALIBRATION") & ~has_flag(
            heads, "ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING"
        )
        reasons.append((f"are calibration lines, {header.calibration_mode} as the header says", only_calibration))
    other_spaces = heads["encoding_space_ref"] != 0
    spaces = sorted(set(heads["encoding_space_ref"][other_spaces].tolist()))
    described = f"the header describes {header.n_encodings}, and only the first, 0, is read"
    reasons.append((f"belong to the encoding spaces {spaces} ({described})", other_spaces))
    for reason, is_so in reasons:
        left_out[reason] = int((kept & is_so).sum())
        kept &= ~is_so
    if any(space >= header.n_encodings for space in spaces) and kept.any():
        warn_suspect(
            f"{int(other_spaces.sum())} acquisitions of {path} belong to the encoding spaces {spaces}, but the header "
            f"describes {header.n_encodings}. They are left out."
        )
    echoes = sorted(set((counters["contrast"][kept] + 1).tolist()))
    repetitions = sorted(set(counters["repetition"][kept].tolist()))
    is_other = (counters["contrast"] != echo - 1) | (counters["repetition"] != repetition)
    left_out["are of another echo or repetition"] = int((kept & is_other).sum())
    rows = np.flatnonzero(kept & ~is_other)
    if not rows.size:
        why = "; ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
        there = f" There is k-space of the echoes {echoes} and repetitions {repetitions}." if echoes else ""
        raise ValueError(
            f"`echo` {echo}, `repetition` {repetition}: {path} holds no k-space of these. Of its {len(heads)} "
            f"acquisitions {why}.{there}"
        )
    for name in ("phase", "set"):  # as of a heartbeat, or of flow encoding: no averages of one image
        values = sorted(set(counters[name][rows].tolist()))
        if len(values) > 1:
            raise ValueError(
                f"{path} holds several images of each slice, with the counter `{name}` {values}. Split the file."
            )
    return rows


def _header_text(node: "h5py.Group", path: Path) -> str | bytes:
    xml = child(node, "xml")
    if not hasattr(xml, "shape"):
        raise ValueError(
            f"{path} is no ISMRMRD file: its group `{node.name}` has {sorted(node)}, but no header `xml`."
        )
    return read_text(xml, path)


def _acquisitions(node: "h5py.Group", path: Path) -> "h5py.Dataset":
    data = child(node, "data")
    if not hasattr(data, "dtype"):
        raise ValueError(
            f"{path} holds no acquisitions: its group `{node.name}` has {sorted(node)}, but no `data`. A file of "
            "images has no raw k-space."
        )
    names = data.dtype.names or ()
    fields = set(data.dtype["head"].names or ()) if "head" in names else set()
    counters = set(data.dtype["head"]["idx"].names or ()) if "idx" in fields else set()
    missing = ({"head", "data"} - set(names)) | (_HEAD_FIELDS - fields) | (_COUNTERS - counters)
    if missing or data.ndim != 1:
        raise ValueError(f"`data` of {path} are no acquisitions of ISMRMRD: {sorted(missing)} are missing.")
    return data


def _blocks(heads: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Runs of rows that follow each other, of at most 32 MB each."""
    n_bytes = heads["active_channels"][rows].astype(np.int64) * heads["number_of_samples"][rows] * 8
    blocks: list[list[int]] = []
    size = 0
    for row, more in zip(rows.tolist(), n_bytes.tolist(), strict=True):
        if not blocks or row != blocks[-1][-1] + 1 or size + more > _BLOCK_BYTES:
            blocks.append([])
            size = 0
        blocks[-1].append(row)
        size += more
    return [np.array(block) for block in blocks]


def _check_trajectories(data: Any, heads: np.ndarray, rows: np.ndarray, path: Path) -> None:
    """Hold "cartesian" against trajectories stored with the samples: lines must be straight and parallel."""
    dimensions = heads["trajectory_dimensions"]
    rows = rows[dimensions[rows] > 1]
    if not rows.size or "traj" not in data.dtype.names:
        return
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _TRAJECTORIES_LOOKED_AT)).astype(int)]
    directions = []
    for row in chosen:
        points = np.asarray(data.fields("traj")[int(row)], float)
        if points.size != int(dimensions[row]) * int(heads["number_of_samples"][row]):
            raise ValueError(f"{path} has a trajectory of {points.size} numbers in acquisition {row}: it is damaged.")
        points = points.reshape(-1, int(dimensions[row]))
        steps = np.diff(points, axis=0)
        length = np.linalg.norm(steps, axis=1).sum()
        chord = points[-1] - points[0]
        if not length > 0:
            continue
        if np.linalg.norm(chord) < 0.99 * length:
            raise ValueError(
                f"{path} says Cartesian, but the trajectory of its acquisition {row} is no straight line."
            )
        directions.append(chord / np.linalg.norm(chord))
    if any(abs(direction @ directions[0]) < 0.99 for direction in directions):
        raise ValueError(f"{path} says Cartesian, but the trajectories of its acquisitions are not parallel lines.")
