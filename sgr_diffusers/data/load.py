"""Loads the slices of a data folder, URL or Hub repository as a `datasets.Dataset` that reads them on access."""

import os
import re
from numbers import Integral, Real
from pathlib import Path

import datasets

from ..hub.errors import hub_errors
from .scan_files import read_annotations
from .selection import SliceSelection, parse_selection
from .skm_tea import CLASS_NAMES
from .skm_tea_builder import SkmTeaBuilder, fingerprint, skipped_of, warn_of_skipped

__all__ = ["load_skmtea", "resolve_root"]

_CLASSES = {"merged": "labels", "file": "file_labels", None: None}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def load_skmtea(
    data_dir_or_repo: str | os.PathLike,
    split: str,
    echo: int = 1,
    acceleration: float | int | None = None,
    slices: SliceSelection | str | int | slice | range | None = None,
    classes: str | None = "merged",
    streaming: bool = False,
    num_proc: int | None = None,
    strict: bool = True,
    check_content: bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load slices of the SKM-TEA raw-data track, or of a folder in its layout.

    The index holds references alone (some 12 MB for the full data set); arrays are read when a row is. Select the
    columns you need before iterating, since every column of a row is read:
    `load_skmtea(...).select_columns(["target", "labels"])`.

    ================= ========================= ============= ========================================================
    column            shape                     dtype         what, and its unit
    ================= ========================= ============= ========================================================
    ``kspace``        ``(coil, ky, kz)``        complex64     scanner's unit; zero where `mask` is false
    ``coil_maps``     ``(coil, ky, kz)``        complex64     coil sensitivities, no unit
    ``target``        ``(ky, kz)``              complex64     fully sampled image, scanner's unit
    ``mask``          ``(ky, kz)``              bool          true where measured, padded about the centre
    ``labels``        ``(ky, kz)``              uint8         0 background, then see `classes`
    ``scan_id``                                 str           for example "MTR_005"
    ``subject_id``                              str           a subject may have several scans
    ``slice``                                   int           along the first axis of the files, from 0
    ``acceleration``                            float         of the stored mask; 1 where none was applied
    ``voxel_size_mm`` 3                         float         (slice, ky, kz), mm
    ``orientation``   3                         str           directions of these axes, for example SI, AP, LR
    ``echo``                                    int           1 or 2
    ================= ========================= ============= ========================================================

    Without a format the arrays come in numpy; with `with_format("torch")` and `with_format("numpy")` all integers
    become int64, as `datasets` has it. Complex and boolean tensors take over the memory of what was read. A
    `DataLoader` makes tensors by itself, and of rows without a format it stacks a batch once rather than twice.

    `map` reads the columns that its function uses, `filter` reads all unless `input_columns` names some of them; both
    write references of the columns above, not their arrays. The function returns new columns, or the row with new
    entries (without a format only): Arrow has no complex numbers, so new complex columns cannot be written.

    Args:
        data_dir_or_repo: a folder in the SKM-TEA layout; a URL of one, such as `hf://datasets/org/name`; or a dataset
            repository on the Hub: one that holds tarballs, such as `arjundd/skm-tea-mini`, is fetched and unpacked.
        split: name of an annotation file, such as "train"; without `streaming` also parts and sums, as in
            "train[:100]+val".
        echo: number of the echo, 1 or 2; the paper uses 1.
        acceleration: acceleration of the stored mask to undersample by, for example 8; it counts the acquired grid,
            not the padded one. `None`: k-space as it is stored, measured where it is not zero.
        slices: `None` for all; "paper" for the paper's protocol (of all slices with at least 82 foreground pixels,
            counted through all scans of the split, every 8th: 869 test slices, see `selection.PAPER`); n for every
            n-th of each scan; a slice or range; or a `SliceSelection`, for classes and least foreground. What looks at
            labels reads them first.
        classes: "merged" for labels of the four classes of `CLASS_NAMES`, or of the classes that the annotations name;
            "file" for the labels of the file; `None` for no column `labels`, as where there are no segmentations.
        streaming: flag to return an `IterableDataset`, one shard a scan, and look at a scan only when its turn comes.
        num_proc: number of processes that make the index, at most one a scan.
        strict: `False` leaves out scans and slices that cannot be used, and ends with a `SkippedDataWarning` that
            counts and names them.
        check_content: read all arrays of each slice when the index is made, to find values that are not finite and
            labels that cannot be. Otherwise these are found on access. `None`: only where `strict` is false.
        cache_dir: folder of the index; `None` for that of `datasets`. An index is used again as long as annotations,
            files and arguments are the same.

    Raises:
        FileNotFoundError: there is no such folder, or it has no annotations.
        OSError: the Hub refuses or cannot be reached.
        ValueError: an argument is out of range, or a scan cannot be used; scan and file are named.
    """
    if not isinstance(split, str):
        raise TypeError(f"`split` must be text, as 'train' or 'train[:100]+val', got {split!r}.")
    names = re.findall(r"(?:^|\+)\s*([^\[+\s]+)\s*(?:\[[^\]]*\])?\s*(?=\+|$)", split)
    if not names or not all(name.isidentifier() for name in names):
        raise ValueError(f"`split` must be made of names, as in 'train' or 'train[:100]+val', got {split!r}.")
    if echo not in (1, 2):
        raise ValueError(f"`echo` must be 1 or 2, got {echo}.")
    if acceleration is not None and not (isinstance(acceleration, Real) and acceleration >= 1):
        raise ValueError(f"`acceleration` must be at least 1, or `None` for k-space as it is, got {acceleration!r}.")
    if num_proc is not None and not (isinstance(num_proc, Integral) and num_proc >= 1):
        raise ValueError(f"`num_proc` must be a whole number of at least 1, or `None`, got {num_proc!r}.")
    if classes not in _CLASSES:
        raise ValueError(f"`classes` must be one of {list(_CLASSES)}, got {classes!r}.")
    selection = parse_selection(slices)
    root = resolve_root(data_dir_or_repo, streaming)

    splits = tuple(dict.fromkeys(names))
    class_names = _class_names(root, splits)
    selection.check_classes(class_names)
    builder = SkmTeaBuilder(
        cache_dir=None if cache_dir is None else str(cache_dir),
        dataset_name="skm_tea",
        root=root,
        splits=splits,
        echo=echo,
        acceleration=None if acceleration is None else float(acceleration),
        selection=selection,
        labels=_CLASSES[classes],
        class_names=class_names,
        strict=strict,
        check_content=not strict if check_content is None else check_content,
        streaming=streaming,
        fingerprint="" if streaming else fingerprint(root, splits),
    )
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare(num_proc=num_proc)
    warn_of_skipped(skipped_of(builder))
    if not any(part.num_examples for part in builder.info.splits.values()):
        return datasets.Dataset.from_dict({name: [] for name in builder.info.features}, features=builder.info.features)
    return builder.as_dataset(split=split)


def _class_names(root: str, splits: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes that the segmentations of all splits have."""
    entries = [entry for split in splits for entry in read_annotations(root, split)]
    names = {entry.get("segmentation_classes", CLASS_NAMES) for entry in entries} or {CLASS_NAMES}
    if len(names) > 1:
        raise ValueError(f"`split` joins splits of {root} with different classes {sorted(names)}. Load them apart.")
    return names.pop()


def resolve_root(data_dir_or_repo: str | os.PathLike, streaming: bool = False) -> str:
    """Return the folder or URL that holds `annotations/` of a data set; tarballs are fetched and unpacked.

    Raises:
        FileNotFoundError: it is neither a folder, nor a URL, nor the name of a repository.
        OSError: the Hub refuses or cannot be reached.
        ValueError: tarballs are to be streamed.
    """
    if not isinstance(data_dir_or_repo, str | os.PathLike):
        kind = type(data_dir_or_repo).__name__
        raise TypeError(f"`data_dir_or_repo` must be a folder or the name of a repository, got {kind}.")
    text = os.fspath(data_dir_or_repo)
    if "://" in text:
        return text
    if os.path.isdir(text):
        return str(Path(text).absolute())
    if not _REPOSITORY.fullmatch(text):
        raise FileNotFoundError(
            f"`data_dir_or_repo` {text} is neither a folder nor the name of a repository such as org/name."
        )
    from .mini_set import default_folder, fetch_mini, find_tarballs

    folder = default_folder(text)
    if (folder / "annotations").is_dir():  # written last: all is there
        return str(folder)
    from huggingface_hub import HfApi

    with hub_errors(f"`data_dir_or_repo` {text}"):
        info = HfApi().dataset_info(text)
    if not find_tarballs([file.rfilename for file in info.siblings or []]):
        return f"hf://datasets/{text}"
    if streaming:
        raise ValueError(
            f"`streaming`: {text} holds tarballs, which cannot be read in parts. Load it without `streaming`."
        )
    return str(fetch_mini(folder, text))
