"""HDF5 files from anybody: opened only if they are self-contained, and read only as far as their data reaches."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from .file_checks import check_claimed_bytes, check_regular_file, hdf5_open_error

if TYPE_CHECKING:
    import h5py

__all__ = [
    "child",
    "find_group",
    "group_kind",
    "open_hdf5",
    "read_dataset",
    "read_fault",
    "read_selections",
    "read_text",
]

_MOST_LINKS = 20_000
_DEEPEST_LINK = 32


def open_hdf5(path: str | os.PathLike) -> "h5py.File":
    """Open a file for reading, if all that it holds lies in the file itself.

    A raw file may come from anybody. One with links to other files, or with datasets whose values lie in other files,
    would make whoever reads it hand out files of this machine.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError, BlockingIOError: this user may not read the file, or another program is writing it.
        ValueError: the file is truncated or not HDF5, refers to other files, or is nested too deeply.
    """
    import h5py

    path = check_regular_file(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise hdf5_open_error(path, error) from error
    try:
        _check_self_contained(file, path)
    except BaseException:
        file.close()
        raise
    return file


def find_group(file: "h5py.File", path: Path, group: str | None) -> "h5py.Group":
    """Find the group of a file that holds a scan: a dataset `kspace`, or ISMRMRD's header `xml`.

    Args:
        file: the open HDF5 file.
        path: path of the file, for messages.
        group: name of the group; `None` for the root if it holds a scan, else for the only group that does.

    Raises:
        ValueError: there is no such group, or several groups hold a scan and none is named.
    """
    import h5py

    groups = {name.rpartition("/")[0] or "/" for name, _ in _links(file, path) if _last(name) in ("kspace", "xml")}
    choices = sorted(groups)
    if group is not None:
        node = child(file, group)
        if not isinstance(node, h5py.Group):
            raise ValueError(f"`group` {group!r}: {path} has no such group. It holds a scan in {choices}.")
        return node
    if "/" in groups or not groups:
        return file["/"]
    if len(groups) > 1:
        raise ValueError(f"`group` must be named, since {path} holds several scans: choose one of {choices}.")
    return file[choices[0]]


def group_kind(group: "h5py.Group", path: Path) -> str:
    """Tell the kind of scan in a group: "fastmri", "ismrmrd", "arrays" or "skm_tea".

    Raises:
        ValueError: there is nothing in the group that can be read.
    """
    if "ismrmrd_header" in group:
        return "fastmri"
    if "xml" in group:
        return "ismrmrd"
    kspace = child(group, "kspace")
    if not hasattr(kspace, "ndim"):
        raise ValueError(
            f"{path} has neither a dataset `kspace` nor a group of ISMRMRD with `xml` and `data`, only "
            f"{sorted(group)}: no raw data that can be read."
        )
    return "arrays" if kspace.ndim < 5 and not hasattr(child(group, "masks"), "keys") else "skm_tea"


def child(group: "h5py.Group", name: str) -> Any:
    """Return a member of a group; `None` where there is none, for a dead link or for an unknown type of data."""
    try:
        item = group.get(name)
        getattr(item, "dtype", None)
        return item
    except (KeyError, ValueError, TypeError, OSError, RuntimeError):  # such as soft links in a circle
        return None


def read_dataset(data: "h5py.Dataset", path: Path) -> Any:
    """Read a dataset as a whole: an array, or the value of a scalar. Raises as `read_selections`."""
    check_claimed_bytes(max(_n_bytes(data, data.shape), _chunk_bytes(data)), path, f"`{_name(data)}`")
    return _read(data, path, ())


def read_selections(
    data: "h5py.Dataset", path: Path, selections: list[tuple[int | slice, ...]]
) -> Shaped[np.ndarray, "selection ..."]:
    """Read one selection after the other and stack them; HDF5 is slow on fancy indices.

    Args:
        data: the dataset.
        path: path of the file, for messages.
        selections: index of each axis, a number or a full slice; all of the same shape.

    Raises:
        ValueError: the selections would take far more memory than the file has data, the dataset is compressed by a
            plugin that is not there, or it is damaged.
    """
    kept = [n for n, index in zip(data.shape, selections[0], strict=False) if isinstance(index, slice)]
    shape = (len(selections), *kept, *data.shape[len(selections[0]) :])
    check_claimed_bytes(max(_n_bytes(data, shape), _chunk_bytes(data)), path, f"`{_name(data)}`")
    dtype = np.complex64 if data.dtype.kind == "c" else data.dtype
    array = np.empty(shape, dtype)
    for number, selection in enumerate(selections):
        array[number] = _read(data, path, selection)
    return array


def read_text(data: "h5py.Dataset", path: Path) -> str | bytes:
    """Read a dataset that holds one text.

    Raises:
        ValueError: it holds something else.
    """
    value = read_dataset(data, path) if hasattr(data, "shape") else None
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.flat[0]
    if not isinstance(value, str | bytes):
        raise ValueError(f"`{_name(data)}` of {path} must be one text, got {type(value).__name__}.")
    return value


def _read(data: "h5py.Dataset", path: Path, selection: tuple[int | slice, ...]) -> Any:
    if _missing_filters(data):
        with contextlib.suppress(ImportError):  # registers what it has
            import hdf5plugin  # noqa: F401
    try:
        return data[selection]
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"`{_name(data)}` of {path} {read_fault(data, error)}.") from error


def read_fault(data: "h5py.Dataset", error: Exception) -> str:
    """Tell why a dataset cannot be read, in a text that goes on after its name: a missing filter is no damage."""
    missing = _missing_filters(data)
    if missing:
        return (
            f"is compressed by the HDF5 filter {missing[0]}, which is not installed here; the file is not damaged. "
            "Install it (pip install hdf5plugin), or have the file written anew with gzip: h5repack -f GZIP=4"
        )
    return f"cannot be read: the file is damaged ({error}). Download it again"


def _missing_filters(data: "h5py.Dataset") -> list[str]:
    """Number and name of each filter of a dataset that this machine does not have."""
    import h5py

    settings = data.id.get_create_plist()
    filters = [settings.get_filter(number) for number in range(settings.get_nfilters())]
    return [
        f"{code} ({name.decode(errors='replace')})" if name else str(code)
        for code, _, _, name in filters
        if not h5py.h5z.filter_avail(code)
    ]


def _check_self_contained(file: "h5py.File", path: Path) -> None:
    """Refuse links out of the file, external storage, and virtual datasets of other files."""
    import h5py

    try:
        for name, link in _links(file, path):
            outside = isinstance(link, h5py.ExternalLink)
            item = file[name] if isinstance(link, h5py.HardLink) else None
            if isinstance(item, h5py.Dataset):
                outside = bool(item.external) or (
                    item.is_virtual and any(source.file_name != "." for source in item.virtual_sources())
                )
            if outside:
                raise ValueError(
                    f"`{name}` of {path} refers to another file, which is not followed. Copy what it refers to into "
                    "the file (`h5copy -f ext` does so with links)."
                )
    except (SystemError, TypeError, RuntimeError, LookupError, OSError) as error:
        raise ValueError(f"`path` {path} is damaged, or has links of an unknown kind ({error!r}).") from error


def _links(file: "h5py.File", path: Path) -> list[tuple[str, Any]]:
    """Name and link of every member of a file; no soft or external link is followed."""
    links: list[tuple[str, Any]] = []

    def visit(name: str, link: Any) -> bool | None:  # an exception would not get through HDF5
        links.append((name, link))
        return True if len(links) > _MOST_LINKS or name.count("/") >= _DEEPEST_LINK else None

    if file.visititems_links(visit):
        raise ValueError(
            f"`path` {path} has groups nested deeper than {_DEEPEST_LINK} or more than {_MOST_LINKS} members: not a "
            "file of raw data."
        )
    return links


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _name(data: "h5py.Dataset") -> str:
    return str(getattr(data, "name", "")).lstrip("/")


def _n_bytes(data: "h5py.Dataset", shape: tuple[int, ...] | None) -> int:
    return int(np.prod(shape or (), dtype=object)) * data.dtype.itemsize


def _chunk_bytes(data: "h5py.Dataset") -> int:
    """Bytes of a chunk, which is unpacked as a whole."""
    return _n_bytes(data, data.chunks) if data.chunks else 0
