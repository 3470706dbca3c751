"""Builds the `datasets` index of the slices of a folder or URL in the SKM-TEA layout, one row for each slice.

`load_skmtea` is the way to use this builder; it is here that `datasets` is imported.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from . import scan_files
from .lazy_features import LazySlice
from .scan_files import DataFault
from .scan_labels import check_labels_file, file_labels
from .selection import SliceSelection
from .skm_tea import CLASS_NAMES

__all__ = ["SkippedDataWarning", "SkmTeaBuilder", "SkmTeaConfig", "fingerprint", "skipped_of", "warn_of_skipped"]

_INDEX_VERSION = 1  # of the rows: another number, and no index of an older version of this module is used
ARRAYS = ("kspace", "coil_maps", "target", "mask")


class SkippedDataWarning(UserWarning):
    """Scans or slices were left out because `strict` is false.

    Attributes:
        skipped: a dictionary each: scan_id, file, reason, and slice (`None` for the whole scan).
    """

    def __init__(self, skipped: list[dict[str, Any]]) -> None:
        """The message counts them and quotes the first."""
        n_scans = sum(entry["slice"] is None for entry in skipped)
        quoted = "; ".join(f"scan {entry['scan_id']}, {entry['file']}: {entry['reason']}" for entry in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        super().__init__(f"skipped {n_scans} scans and {len(skipped) - n_scans} single slices: {quoted}{more}")
        self.skipped = skipped


@dataclass
class SkmTeaConfig(datasets.BuilderConfig):
    """What decides on the rows of an index; its hash is the name of the cached index.

    Attributes:
        root: folder or URL in the SKM-TEA layout.
        splits: names of the splits to index.
        echo: number of the echo, 1 or 2.
        acceleration: acceleration of the stored mask, `None` for k-space as it is.
        selection: selection of the slices to index.
        labels: "labels" for the classes of `class_names`, "file_labels" for those of the file, `None` for no labels.
        class_names: names of the classes of the data.
        strict: flag that makes bad data an error; otherwise they are skipped and counted.
        check_content: flag that has every array read once before its slice enters the index.
        streaming: flag that has rows generated on the fly.
        fingerprint: fingerprint of annotations and files, see `fingerprint`.
        index_version: version of the index that this module builds.
    """

    root: str = ""
    splits: tuple[str, ...] = ()
    echo: int = 1
    acceleration: float | None = None
    selection: SliceSelection = field(default_factory=SliceSelection)
    labels: str | None = "labels"
    class_names: tuple[str, ...] = CLASS_NAMES
    strict: bool = True
    check_content: bool = False
    streaming: bool = False
    fingerprint: str = ""
    index_version: int = _INDEX_VERSION


class SkmTeaBuilder(datasets.GeneratorBasedBuilder):
    """One row a slice, one shard a scan; rows hold references, see `LazySlice`."""

    BUILDER_CONFIG_CLASS = SkmTeaConfig

    def _info(self) -> datasets.DatasetInfo:
        features = {name: LazySlice(self.config.root, name) for name in ARRAYS}
        if self.config.labels is not None:
            features["labels"] = LazySlice(self.config.root, self.config.labels, list(self.config.class_names))
        values = {"scan_id": "string", "subject_id": "string", "slice": "int16", "acceleration": "float32"}
        features |= {name: datasets.Value(dtype) for name, dtype in values.items()}
        features["voxel_size_mm"] = datasets.List(datasets.Value("float64"), length=3)
        features["orientation"] = datasets.List(datasets.Value("string"), length=3)
        features["echo"] = datasets.Value("int8")
        return datasets.DatasetInfo(
            description="Axial slices of the SKM-TEA raw-data track, read from its files on access.",
            homepage="https://github.com/StanfordMIMI/skm-tea",
            features=datasets.Features(features),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        generators = []
        for split in self.config.splits:
            scans = scan_files.read_annotations(self.config.root, split)
            if not scans:
                raise ValueError(f"the annotations of the split {split!r} of {self.config.root} list no scan.")
            chosen = self._pooled(scans) if self.config.selection.pooled else [None] * len(scans)
            # lists of the same length: `datasets` shares them out among processes and nodes scan by scan
            kwargs = {"scans": [json.dumps(scan) for scan in scans], "chosen": chosen}
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=kwargs))
        return generators

    def _pooled(self, scans: list[dict[str, Any]]) -> list[list[int] | None]:
        """Slices of each scan where the stride runs through all of them; `None` for a scan that cannot be read."""
        chosen: list[list[int] | None] = []
        passed = 0
        for scan in scans:
            try:
                self._check_scan(scan)
                candidates = self._candidates(scan)
            except DataFault:
                if self.config.strict:
                    raise
                chosen.append(None)
                continue
            every = self.config.selection.every
            chosen.append(candidates[-passed % every :: every].tolist())
            passed += len(candidates)
        return chosen

    def _check_scan(self, scan: dict[str, Any]) -> None:
        scan_id, shape = scan["scan_id"], tuple(scan["matrix_shape"])
        path = scan_files.kspace_path(self.config.root, scan_id)
        scan_files.check_kspace_file(scan_id, path, shape, self.config.echo, self.config.acceleration)
        if self.config.labels is not None and not self.config.selection.needs_labels:
            labels = scan_files.labels_path(self.config.root, scan_id)
            check = file_labels if self.config.check_content else check_labels_file
            check(scan_id, labels, shape)

    def _candidates(self, scan: dict[str, Any]) -> np.ndarray:
        selection, shape, counts = self.config.selection, tuple(scan["matrix_shape"]), None
        if selection.needs_labels:
            path = scan_files.labels_path(self.config.root, scan["scan_id"])
            counts = file_labels(scan["scan_id"], path, shape).counts
        return selection.candidates(shape[0], counts, self.config.class_names)

    def _generate_examples(
        self, scans: list[str], chosen: list[list[int] | None]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        skipped = []
        for text, numbers in zip(scans, chosen, strict=True):
            scan = json.loads(text)
            try:
                self._check_scan(scan)
                if numbers is None:
                    numbers = self._candidates(scan)[:: self.config.selection.every].tolist()
            except DataFault as fault:
                if self.config.strict:
                    raise
                skipped.append(_skipped(fault, None))
                continue
            for number in numbers:
                row = self._row(scan, number)
                try:
                    if self.config.check_content:
                        for name in ARRAYS:
                            self.info.features[name].decode_example(row[name])
                except DataFault as fault:
                    if self.config.strict:
                        raise
                    skipped.append(_skipped(fault, number))
                    continue
                yield f"{scan['scan_id']}-{number}", row
        if not skipped:
            return
        if self.config.streaming:
            warn_of_skipped(skipped)
        else:  # beside the index, where a later load from the cache finds it, too
            name = hashlib.sha256(json.dumps(skipped).encode()).hexdigest()[:16]
            Path(self._output_dir, f"skipped-{name}.json").write_text(json.dumps(skipped))

    def _prepare_split_single(self, **arguments: Any) -> Iterator[Any]:
        """As in `datasets`, but a `DataFault` comes out as such and not buried in an error of its own."""
        try:
            yield from super()._prepare_split_single(**arguments)
        except datasets.exceptions.DatasetGenerationError as error:
            cause = error
            while cause is not None and not isinstance(cause, DataFault):
                cause = cause.__cause__ or cause.__context__
            raise error if cause is None else cause  # noqa: B904 (its own cause is the story)

    def _row(self, scan: dict[str, Any], number: int) -> dict[str, Any]:
        acceleration = self.config.acceleration
        reference = {"scan": scan["scan_id"], "slice": number, "echo": self.config.echo, "acceleration": acceleration}
        row = {name: reference for name in (*ARRAYS, *(["labels"] if self.config.labels is not None else []))}
        return {
            **row,
            "scan_id": scan["scan_id"],
            "subject_id": str(scan["subject_id"]),
            "slice": number,
            "acceleration": 1.0 if acceleration is None else acceleration,
            "voxel_size_mm": scan["voxel_spacing"],
            "orientation": scan["orientation"],
            "echo": self.config.echo,
        }


def _skipped(fault: DataFault, number: int | None) -> dict[str, Any]:
    return {"scan_id": fault.scan_id, "file": fault.file, "reason": fault.reason, "slice": number}


def skipped_of(builder: SkmTeaBuilder) -> list[dict[str, Any]]:
    """Return the entries that were left out of the index of a builder."""
    files = sorted(Path(builder.cache_dir).glob("skipped-*.json"))
    return [entry for file in files for entry in json.loads(file.read_text())]


def warn_of_skipped(skipped: list[dict[str, Any]]) -> None:
    """Say what was skipped, if anything."""
    if skipped:
        warnings.warn(SkippedDataWarning(skipped), stacklevel=3)


def fingerprint(root: str, splits: tuple[str, ...]) -> str:
    """Hash of the annotations of some splits and of name, size and time of change of their scans' files.

    Behind a URL, of the annotations and of what a listing of the folders says.
    """
    digest = hashlib.sha256()
    entries = [entry for split in splits for entry in scan_files.read_annotations(root, split)]
    digest.update(json.dumps(entries, sort_keys=True, default=str).encode())
    for entry in entries if "://" not in root else []:
        for path in (scan_files.kspace_path(root, entry["scan_id"]), scan_files.labels_path(root, entry["scan_id"])):
            state = scan_files.file_state(path) if os.path.exists(path) else None
            digest.update(f"{path} {state}".encode())
    if "://" in root:
        import fsspec

        file_system, folder = fsspec.core.url_to_fs(root)
        for part in ("files_recon_calib-24", "segmentation_masks/raw-data-track"):
            try:
                listing = file_system.ls(scan_files.join(folder, part), detail=True)
            except FileNotFoundError:
                continue  # the scans will say so
            listing = sorted(str(sorted(info.items(), key=lambda item: item[0])) for info in listing)
            digest.update("\n".join(listing).encode())
    return digest.hexdigest()
