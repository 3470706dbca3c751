"""Reads single slices of the arrays of a scan of the SKM-TEA raw-data track, from a folder or a URL.

Nothing is kept but open handles and padded masks, so that random access needs little memory. Every error is a
`DataFault`, which names the scan and the file.
"""

import json
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Complex64

from ..io.file_checks import check_regular_file, hdf5_open_fault
from ..io.hdf5_file import read_fault
from ..io.raw_slices import check_voxel_size
from ..mri.masks import pad_mask

if TYPE_CHECKING:
    import h5py

__all__ = [
    "DataFault",
    "array_shape",
    "check_kspace_file",
    "close_files",
    "file_state",
    "join",
    "kspace_path",
    "labels_path",
    "mask_names",
    "open_bytes",
    "read_annotations",
    "read_coil_maps",
    "read_kspace",
    "read_mask",
    "read_noise_free",
    "read_target",
    "split_names",
]

_USUAL_SPLITS = ("train", "val", "test")
_KEYS = {"kspace": "(slice, y, x, echo, coil)", "maps": "(slice, y, x, coil, 1)", "target": "(slice, y, x, echo, 1)"}


class DataFault(ValueError):
    """Something is wrong with the files of a scan.

    Attributes:
        scan_id: name of the scan.
        file: path or URL of the file.
        reason: description of what is wrong, and of the way out.
    """

    def __init__(self, scan_id: str, file: str, reason: str) -> None:
        """The message holds all three."""
        super().__init__(f"scan {scan_id}, {file}: {reason}")
        self.scan_id, self.file, self.reason = scan_id, file, reason

    def __reduce__(self) -> tuple:
        """Worker processes send it to their parent."""
        return DataFault, (self.scan_id, self.file, self.reason)


def join(root: str, *parts: str) -> str:
    """Return the path below a folder or a URL."""
    return "/".join([root.rstrip("/"), *parts])


def kspace_path(root: str, scan_id: str) -> str:
    """Return the path of a scan's HDF5 file."""
    return join(root, "files_recon_calib-24", f"{scan_id}.h5")


def labels_path(root: str, scan_id: str) -> str:
    """Return the path of a scan's segmentation, a NIfTI file."""
    return join(root, "segmentation_masks", "raw-data-track", f"{scan_id}.nii.gz")


def read_annotations(root: str, split: str) -> list[dict[str, Any]]:
    """Read the entries of the annotation file of a split, and check the fields that are used.

    Raises:
        FileNotFoundError: the file of "train", "val" or "test" is missing.
        ValueError: there is no split of another name, or the file cannot be understood.
    """
    path = join(root, "annotations", "v1.0.0", f"{split}.json")
    try:
        with open_bytes(path) as file:
            text = file.read()
    except FileNotFoundError:
        others = split_names(root)
        if others:
            message = f"{path} is missing: `split` must be one that {root} has, {', '.join(others)}, got {split!r}."
            raise (FileNotFoundError if split in _USUAL_SPLITS else ValueError)(message) from None
        raise FileNotFoundError(
            f"{path} is missing: `root` must be a folder in the SKM-TEA layout, got {root}. `sgr data fetch-mini` "
            "fetches four scans, `sgr synthesize` writes synthetic ones."
        ) from None
    try:
        entries, content = [], json.loads(text)
        classes = {}
        if "segmentation_classes" in content:  # else no entry: hashes of other annotations stay what they were
            classes["segmentation_classes"] = tuple(map(str, content["segmentation_classes"]))
        for entry in content["images"]:
            shape = tuple(int(n) for n in entry["matrix_shape"])
            spacing = check_voxel_size(entry["voxel_spacing"], "voxel_spacing", f" of scan {entry['scan_id']}")
            orientation = tuple(str(direction) for direction in entry["orientation"])
            if {len(shape), len(spacing), len(orientation)} != {3}:
                raise ValueError(f"scan {entry['scan_id']}: three axes expected")
            known = {"scan_id": str(entry["scan_id"]), "subject_id": entry.get("subject_id")}
            known |= {"matrix_shape": shape, "voxel_spacing": spacing, "orientation": orientation}
            entries.append({**known, "findings": entry.get("findings"), **classes})
        return entries
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a SKM-TEA annotation file ({error!r}).") from error


def split_names(root: str) -> list[str]:
    """Return the splits that a local folder has annotations of, the usual ones first; none for a URL."""
    names = {path.stem for path in Path(root, "annotations", "v1.0.0").glob("*.json")} if "://" not in root else set()
    usual = [name for name in _USUAL_SPLITS if name in names]
    return usual + sorted(names - set(usual))


def open_bytes(path: str) -> Any:
    """Open a file, local or behind a URL, to read bytes."""
    if "://" not in path:
        return open(check_regular_file(path), "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def file_state(path: str) -> tuple[int, ...]:
    """Return a value that changes when a local file changes; it is constant for a URL.

    Raises:
        FileNotFoundError: there is no such local file.
    """
    if "://" in path:
        return ()
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns, state.st_ino


# -- k-space files -----------------------------------------------------------------------------------------------


class _OpenFile:
    """Handle of a k-space file and the datasets found in it."""

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self.lock = threading.Lock()
        self.state: tuple[int, ...] | None = None
        self.file: Any = None  # an h5py.File
        self.datasets: dict[str, h5py.Dataset] = {}

    def refresh(self, path: str, state: tuple[int, ...]) -> None:
        """Open the file if it is not open as it is now. The old handle goes first: HDF5 would share what it knows."""
        import h5py

        with self.lock:
            if self.state == state:
                return
            if self.file is not None:
                self.file.close()
            self.state, self.file, self.datasets = None, None, {}
            if "://" not in path:
                check_regular_file(path)  # a pipe would block
            self.file = h5py.File(path if "://" not in path else open_bytes(path), "r")
            self.state = state


@lru_cache(maxsize=64)
def _open_in_process(path: str, process_id: int) -> _OpenFile:
    return _OpenFile()


def _open(scan_id: str, path: str) -> _OpenFile:
    """The file as it is now, by a handle of this process alone: HDF5 handles do not survive a fork."""
    opened = _open_in_process(path, os.getpid())
    try:
        opened.refresh(path, file_state(path))
        return opened
    except FileNotFoundError:
        raise DataFault(scan_id, path, "the file is missing. Fetch it, or take the scan out of the split.") from None
    except (OSError, ValueError) as error:
        raise DataFault(scan_id, path, _why_not_open(path, error)) from error


def _why_not_open(path: str, error: OSError | ValueError) -> str:
    if "://" in path:
        return f"cannot be opened as HDF5 ({error}). Look at the URL, or fetch the file."
    try:
        check_regular_file(path)
    except (OSError, ValueError) as fault:
        return str(fault)
    return hdf5_open_fault(Path(path), error)[1] + "." if isinstance(error, OSError) else str(error)


def close_files() -> None:
    """Let go of all open files and of what is remembered of them."""
    _open_in_process.cache_clear()
    _padded_mask.cache_clear()


def _dataset(scan_id: str, path: str, key: str) -> "h5py.Dataset":
    opened = _open(scan_id, path)
    if key not in opened.datasets:
        data = opened.file.get(key)
        if data is None or not hasattr(data, "shape"):
            raise DataFault(
                scan_id, path, f"holds no dataset `{key}`, only {sorted(opened.file)}: not a SKM-TEA raw-data file."
            )
        opened.datasets[key] = data
    return opened.datasets[key]


def array_shape(scan_id: str, path: str, key: str) -> tuple[int, ...]:
    """Return the shape of "kspace", "maps" or "target" in the file."""
    return _dataset(scan_id, path, key).shape


def mask_names(scan_id: str, path: str) -> tuple[str, ...]:
    """Return the names of the stored masks, such as "poisson_4.0x", by increasing acceleration."""
    masks = _open(scan_id, path).file.get("masks", {})
    return tuple(sorted(masks, key=lambda name: (len(name), name)))


def check_kspace_file(
    scan_id: str, path: str, matrix_shape: tuple[int, int, int], echo: int, acceleration: float | int | None
) -> None:
    """Compare the structure of a k-space file with its annotation, without reading its arrays.

    Raises:
        DataFault: the file cannot be opened, lacks a dataset, the echo or the mask, or has another shape or dtype.
    """
    shapes = {key: _dataset(scan_id, path, key).shape for key in _KEYS}
    for key, axes in _KEYS.items():
        if len(shapes[key]) != 5 or shapes[key][:3] != tuple(matrix_shape):
            raise DataFault(
                scan_id,
                path,
                f"`{key}` must be {axes} with the matrix {tuple(matrix_shape)} of the annotations, got shape "
                f"{shapes[key]}. Correct the annotation or fetch the file again.",
            )
        dtype = _dataset(scan_id, path, key).dtype
        if dtype.kind != "c":
            raise DataFault(scan_id, path, f"`{key}` must be complex, got {dtype}.")
    n_echoes, n_coils = shapes["kspace"][3:]
    for key, expected in (("maps", (n_coils, 1)), ("target", (n_echoes, 1))):
        if shapes[key][3:] != expected:
            raise DataFault(scan_id, path, f"`{key}` must end in the axes {expected}, got shape {shapes[key]}.")
    if echo > n_echoes:
        raise DataFault(scan_id, path, f"`echo` {echo} was asked for, but the file has echoes 1..{n_echoes}.")
    if acceleration is not None:
        read_mask(scan_id, path, acceleration)


_own = threading.local()


def _scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory of this thread to read into, which is neither allocated nor cleared anew for each slice."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    if getattr(_own, "buffer", None) is None or _own.buffer.nbytes < n_bytes:
        _own.buffer = np.empty(n_bytes, np.uint8)
    return _own.buffer[:n_bytes].view(dtype).reshape(shape)


def _read(scan_id: str, path: str, key: str, index: int, echo: int | None) -> np.ndarray:
    """One slice `(y, x, rest)` of one echo; to be copied before the next is read."""
    data = _dataset(scan_id, path, key)
    try:
        shape, chunks = data.shape, data.chunks
        if echo is None or chunks is None or chunks[3] >= shape[3]:  # echoes side by side: faster as a whole
            block = _scratch(shape[1:], data.dtype)
            data.read_direct(block, np.s_[index])
            return block if echo is None else block[:, :, echo - 1]
        block = _scratch((*shape[1:3], shape[4]), data.dtype)
        data.read_direct(block, np.s_[index, :, :, echo - 1])
        return block
    except (OSError, IndexError, ValueError, TypeError) as error:
        raise DataFault(scan_id, path, f"slice {index} of `{key}` {read_fault(data, error)}.") from error


def _finite(array: np.ndarray, scan_id: str, path: str, key: str, index: int) -> np.ndarray:
    """Return the array if all values are finite. An inner product shows that in a fraction of the time."""
    flat = array.reshape(-1).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.dot(flat, flat))
    if not finite and not np.isfinite(array).all():  # squares may overflow
        raise DataFault(
            scan_id, path, f"slice {index} of `{key}` has values that are not finite. Leave the slice out."
        )
    return array


def read_kspace(
    scan_id: str, path: str, index: int, echo: int, mask: Bool[np.ndarray, "y x"] | None = None
) -> Complex64[np.ndarray, "coil y x"]:
    """Read the k-space of a slice in the scanner's unit, coils first; zero where `mask` is false."""
    kspace = np.moveaxis(_read(scan_id, path, "kspace", index, echo), -1, 0)
    if mask is None:
        measured = np.array(kspace, np.complex64, order="C")
    else:
        measured = np.zeros(kspace.shape, np.complex64)
        np.copyto(measured, kspace, where=mask)
    return _finite(measured, scan_id, path, "kspace", index)


def read_coil_maps(scan_id: str, path: str, index: int) -> Complex64[np.ndarray, "coil y x"]:
    """Read the coil sensitivity maps of a slice, without unit."""
    maps = np.moveaxis(_read(scan_id, path, "maps", index, None)[..., 0], -1, 0)
    return _finite(np.array(maps, np.complex64, order="C"), scan_id, path, "maps", index)


def read_target(scan_id: str, path: str, index: int, echo: int) -> Complex64[np.ndarray, "y x"]:
    """Read the fully sampled, coil-combined image of a slice in the scanner's unit."""
    target = np.array(_read(scan_id, path, "target", index, echo)[..., 0], np.complex64, order="C")
    return _finite(target, scan_id, path, "target", index)


def read_noise_free(scan_id: str, path: str, index: int, echo: int) -> Complex64[np.ndarray, "y x"] | None:
    """Read the image of `read_target` without noise, known of synthetic scans alone; `None` for others."""
    if "noise_free" not in _open(scan_id, path).file:
        return None
    image = np.array(_read(scan_id, path, "noise_free", index, echo)[..., 0], np.complex64, order="C")
    return _finite(image, scan_id, path, "noise_free", index)


def read_mask(scan_id: str, path: str, acceleration: float | int | str) -> Bool[np.ndarray, "y x"]:
    """Read a stored sampling mask, zero-padded about the centre to the matrix of k-space; true where measured.

    Args:
        scan_id: name of the scan, for messages.
        path: path or URL of the HDF5 file.
        acceleration: acceleration of the mask, or its name.

    Raises:
        DataFault: there is no mask of this acceleration, or it does not fit.
    """
    _open(scan_id, path)  # says what is wrong with the file itself
    name = acceleration if isinstance(acceleration, str) else f"poisson_{float(acceleration):.1f}x"
    return _padded_mask(scan_id, path, file_state(path), name)


@lru_cache(maxsize=64)
def _padded_mask(scan_id: str, path: str, state: tuple[int, ...], name: str) -> np.ndarray:
    stored = _open(scan_id, path).file.get("masks", {})
    if name not in stored:
        raise DataFault(scan_id, path, f"has no masks/{name}, only {sorted(stored)}. Pass another `acceleration`.")
    try:
        mask = pad_mask(stored[name][()], _dataset(scan_id, path, "kspace").shape[1:3])
    except (ValueError, OSError) as error:
        raise DataFault(scan_id, path, f"masks/{name} cannot be used: {error}") from error
    mask.flags.writeable = False
    return mask
