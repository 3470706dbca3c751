"""Describes the NIfTI files of a reconstruction as derivatives of BIDS: a JSON file beside each, and labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.files import write_json

__all__ = ["describe_derivatives"]

_BIDS_VERSION = "1.10.0"
_QUANTITIES = {
    "image": "magnitude image",
    "segmentation": "labels of all tissues in the image",
    "standard_deviation": "standard deviation around the mean of the samples",
}


def describe_derivatives(folder: Path, source: str, labels: Mapping[int, str], version: str) -> None:
    """Write dataset_description.json, dseg.tsv and, beside each NIfTI file `<reconstruction>_<quantity>`, its JSON.

    Args:
        folder: folder of the NIfTI files.
        source: name of the file of raw data.
        labels: names of the classes by their labels in segmentations; without any no dseg.tsv is written.
        version: version of this package.
    """
    made_by = {"Name": "sgr_diffusers", "Version": version, "Description": "Bounds of tissues. Not for clinical use."}
    description = {"Name": "Segmentation-guided reconstruction", "BIDSVersion": _BIDS_VERSION}
    write_json(
        folder / "dataset_description.json", description | {"DatasetType": "derivative", "GeneratedBy": [made_by]}
    )
    if labels:
        rows = [f"{label}\t{name}\n" for label, name in labels.items()]
        (folder / "dseg.tsv").write_text("index\tname\n" + "".join(rows), encoding="utf-8")
    for file in sorted(folder.glob("*.nii.gz")):
        stem = file.name.removesuffix(".nii.gz")
        quantity = next(name for name in _QUANTITIES if stem.endswith(f"_{name}"))
        reconstruction = stem.removesuffix(f"_{quantity}")
        sidecar: dict[str, Any] = {"Description": f"{reconstruction.replace('_', ' ')}: {_QUANTITIES[quantity]}"}
        if quantity == "segmentation":
            sidecar |= {"Sources": [f"{reconstruction}_image.nii.gz"], "Manual": False}
        else:
            sidecar |= {"Sources": [source], "SkullStripped": False, "Units": "arbitrary"}
        write_json(folder / f"{stem}.json", sidecar)
