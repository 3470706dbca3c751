"""Prepares what may be published of a folder in the SKM-TEA layout, with its card.

Synthetic data goes whole. Of people's data only an index goes, made from the annotations: which scans and slices there
are. k-space, images and segmentations of people are refused, whatever the caller says.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from .cards import SKM_TEA_LICENCE, render_card, template_folder

__all__ = ["INDEX_COLUMNS", "check_synthetic", "stage_index", "stage_synthetic"]

SPLITS = ("train", "val", "test")
INDEX_COLUMNS = ("split", "scan_id", "slice", "n_slices", "matrix_shape", "voxel_size_mm", "orientation")
PICTURE = "synthetic_knee.png"
# Of the layout, what `sgr synthesize` writes, and the card.
_SYNTHETIC_FILES = (
    "annotations/v1.0.0/*.json",
    "files_recon_calib-24/SYN_*.h5",
    "segmentation_masks/raw-data-track/SYN_*.nii.gz",
    "README.md",
    PICTURE,
)
_GATE_PROMPT = (
    "This index was made from SKM-TEA, which is shared under a research use agreement of Stanford University. By "
    "asking for access you confirm that you have agreed to it, that you use the index for research only, and that you "
    "will not try to identify anybody."
)
_GATE_FIELDS = {
    "Name": "text",
    "Affiliation": "text",
    "Country": "country",
    "I have agreed to the research use agreement of SKM-TEA": "checkbox",
    "I use it for research only, not for clinical decisions": "checkbox",
}


def stage_synthetic(folder: str | Path, stage: Path, repo_id: str) -> None:
    """Put a synthetic data set and its card together, as links to its files.

    Args:
        folder: folder of the data set, written by `sgr synthesize`.
        stage: empty folder to fill.
        repo_id: name of the repository, for the card.

    Raises:
        ValueError: something in the folder was not written by `sgr synthesize`.
    """
    from huggingface_hub import DatasetCardData

    folder = Path(folder)
    config = check_synthetic(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() != "README.md":
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).symlink_to(path.resolve())
    if not (stage / PICTURE).exists():
        shutil.copyfile(template_folder() / PICTURE, stage / PICTURE)
    metadata = DatasetCardData(
        license="apache-2.0",
        task_categories=["image-segmentation", "image-to-image"],
        tags=["mri", "k-space", "knee", "synthetic", "medical"],
        pretty_name="Synthetic knees in the SKM-TEA layout",
    )
    values = {
        "repo_id": repo_id,
        "config": config,
        "scans": {s: len(rows) for s, rows in _annotations(folder).items()},
    }
    card = render_card("synthetic_card.md.jinja", values | {"metadata": metadata.to_yaml()})
    (stage / "README.md").write_text(card, encoding="utf-8")


def check_synthetic(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder in which every file was written by `sgr synthesize`.

    Raises:
        ValueError: naming a file that was not.
    """
    import h5py

    _annotations(folder)
    allowed = {path for pattern in _SYNTHETIC_FILES for path in folder.glob(pattern)}
    refusal = (
        "Only data that `sgr synthesize` wrote is published; k-space, images and segmentations of people never are. "
        "An index of them is: sgr publish dataset FOLDER --index."
    )
    foreign = sorted(path for path in folder.rglob("*") if path.is_file() and path not in allowed)
    if foreign:
        raise ValueError(f"{foreign[0]} was not written by `sgr synthesize`. {refusal}")
    configs = set()
    for path in sorted(folder.glob("files_recon_calib-24/*.h5")):
        with h5py.File(path) as file:
            configs.add(file.attrs.get("config"))
        if None in configs:
            raise ValueError(f"{path} does not say how it was synthesized. {refusal}")
    if len(configs) != 1:
        raise ValueError(f"{folder} must hold scans of one configuration, got {len(configs)}. Publish each alone.")
    return json.loads(configs.pop())


def stage_index(folder: str | Path, stage: Path, repo_id: str) -> None:
    """Make an index of a folder in the SKM-TEA layout from its annotations alone, with its card.

    Args:
        folder: folder with `annotations/v1.0.0/*.json`, the only files that are opened.
        stage: empty folder to fill.
        repo_id: name of the repository, for the card.

    Raises:
        ValueError: there are no annotations, they miss an entry, or are of other scans than SKM-TEA's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from huggingface_hub import DatasetCardData

    annotations = _annotations(Path(folder))
    n_rows = 0
    (stage / "data").mkdir()
    for split, images in annotations.items():
        rows = [row for image in images for row in _slice_rows(split, image)]
        n_rows += len(rows)
        columns = {name: [row[name] for row in rows] for name in INDEX_COLUMNS}
        pq.write_table(pa.table(columns), stage / "data" / f"{split}-00000-of-00001.parquet")
    metadata = DatasetCardData(
        **SKM_TEA_LICENCE,
        task_categories=["image-segmentation", "image-to-image"],
        tags=["mri", "knee", "index", "medical"],
        pretty_name="Index of SKM-TEA",
        extra_gated_prompt=_GATE_PROMPT,
        extra_gated_fields=_GATE_FIELDS,
    )
    values = {"name": "SKM-TEA", "repo_id": repo_id, "rows": n_rows}
    scans = {split: len(images) for split, images in annotations.items()}
    values |= {"scans": scans, "n_scans": sum(scans.values()), "metadata": metadata.to_yaml()}
    (stage / "README.md").write_text(render_card("index_card.md.jinja", values), encoding="utf-8")


def _slice_rows(split: str, image: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        shape = [int(n) for n in image["matrix_shape"]]
        same: dict[str, Any] = {
            "split": split,
            "scan_id": str(image["scan_id"]),
            "n_slices": shape[0],
            "matrix_shape": shape,
            "voxel_size_mm": [float(size) for size in image["voxel_spacing"]],
            "orientation": [str(direction) for direction in image["orientation"]],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"an entry of the annotations of {split} is not as SKM-TEA has it: {error!r}.") from error
    if not re.fullmatch(r"MTR_\d{3}", same["scan_id"]):
        raise ValueError(
            f"{same['scan_id']!r} in the annotations of {split} is no scan of SKM-TEA. An index is made of SKM-TEA "
            "alone: names of other scans may tell who was scanned. Synthetic scans are published without --index."
        )
    return [{**same, "slice": number} for number in range(shape[0])]


def _annotations(folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = {split: folder / "annotations" / "v1.0.0" / f"{split}.json" for split in SPLITS}
    existing = {split: file for split, file in files.items() if file.is_file()}
    if not existing:
        raise ValueError(f"{folder} has no annotations/v1.0.0/*.json: not a folder in the SKM-TEA layout.")
    try:
        return {split: json.loads(file.read_text(encoding="utf-8"))["images"] for split, file in existing.items()}
    except (ValueError, KeyError) as error:
        raise ValueError(f"the annotations of {folder} cannot be read: {error!r}.") from error
