"""Renders the card of a network from the record of its training."""

from collections.abc import Sequence
from typing import Any

from ..data.skm_tea import SKM_TEA, SYNTHETIC
from .cards import SKM_TEA_LICENCE, render_card

__all__ = ["training_card"]

_KINDS: dict[str, dict[str, Any]] = {
    "unet": {
        "title": "Diffusion prior for MRI",
        "task": "unconditional-image-generation",
        "tags": ["mri", "diffusion", "image-reconstruction", "medical"],
        "description": "A diffusion prior of complex MR images (real and imaginary part as channels) for "
        "segmentation-guided reconstruction.",
        "example": "from diffusers import DDIMScheduler, UNet2DModel\n\n"
        'unet = UNet2DModel.from_pretrained("{repository}", subfolder="unet")\n'
        'scheduler = DDIMScheduler.from_pretrained("{repository}", subfolder="scheduler")',
    },
    "segmentation_model": {
        "title": "Segmentation model for MRI",
        "task": "image-segmentation",
        "tags": ["mri", "segmentation", "image-reconstruction", "medical"],
        "description": "A segmentation model of magnitude MR images for segmentation-guided reconstruction.",
        "example": "from sgr_diffusers import SegmentationUNet\n\n"
        'folder = "{repository}"\n'
        'model = SegmentationUNet.from_pretrained(folder, subfolder="segmentation_model")',
    },
}
# Of this machine and of the run, not of what was learned.
_HIDDEN = ("output_dir", "data_dir", "resume_from_checkpoint", "report_to", "logging", "hub_", "push", "tracker")


def training_card(record: dict[str, Any], kind: str, repository: str, pictures: Sequence[str] = ()) -> str:
    """Render the card of one network.

    Args:
        record: record of the training, from `training.record.training_record`.
        kind: kind of the network, "unet" or "segmentation_model"; also the folder of its weights.
        repository: name of the repository, for the example.
        pictures: names of files in `pictures/`.

    Raises:
        ValueError: the template asks for what was not recorded.
    """
    from huggingface_hub import ModelCardData

    about, name = _KINDS[kind], record["data"].get("name")
    licences: dict[str | None, dict[str, Any]] = {SYNTHETIC: {"license": "apache-2.0"}, SKM_TEA: SKM_TEA_LICENCE}
    metadata = ModelCardData(
        library_name="diffusers", pipeline_tag=about["task"], tags=about["tags"], **licences.get(name, {})
    )
    results = [row for row in record["history"] if any(key.startswith("val_") for key in row)]
    last = results[-1] if results else {}
    given = {**record["arguments"], **record["options"]}
    values = {
        **{key: about[key] for key in ("title", "description")},
        "metadata": metadata.to_yaml(),
        "record": record,
        "data": {**record["data"], "is_synthetic": name == SYNTHETIC},
        "machine": "{processes} x {device} ({cores} cores, {platform})".format(**record["machine"]),
        "versions": ", ".join(f"{key} {value}" for key, value in record["versions"].items()),
        "example": about["example"].format(repository=repository),
        "settings": {
            key: value
            for key, value in given.items()
            if value not in (None, False, (), []) and not key.startswith(_HIDDEN)
        },
        "results": _flat(last),
        "results_step": last.get("step"),
        "pictures": list(pictures),
    }
    return render_card("training_card.md.jinja", values)


def _flat(results: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for key, value in results.items():
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{key} ")
        elif isinstance(value, float) and key != "minutes":
            rows[f"{prefix}{key}"] = f"{value:.4g}"
    return rows
