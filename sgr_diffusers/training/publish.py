"""A finished training enters; a folder with weights, record and card leaves, and goes to the Hub."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from sgr_diffusers.training.files import replaced_folder
from sgr_diffusers.training.options import TrainingOptions

__all__ = ["create_repository", "upload_run", "write_hub_folder"]

logger = logging.getLogger(__name__)
HUB_FOLDER = "hub"
SHOWN = ("command", "seed", "steps", "images", "minutes", "machine", "versions")

KINDS = {
    "unet": {
        "title": "Diffusion prior for MRI",
        "task": "unconditional-image-generation",
        "tags": ["diffusion", "image-reconstruction"],
        "description": "A diffusion prior of complex MR images (real and imaginary part as channels) for "
        "segmentation-guided reconstruction.",
        "example": "from diffusers import DDIMScheduler, UNet2DModel\n\n"
        'unet = UNet2DModel.from_pretrained("{repository}", subfolder="unet")\n'
        'scheduler = DDIMScheduler.from_pretrained("{repository}", subfolder="scheduler")',
    },
    "segmentation_model": {
        "title": "Segmentation model for MRI",
        "task": "image-segmentation",
        "tags": ["medical", "image-reconstruction"],
        "description": "A segmentation model of magnitude MR images for segmentation-guided reconstruction.",
        "example": "from sgr_diffusers import SegmentationUNet\n\n"
        'model = SegmentationUNet.from_pretrained("{repository}", subfolder="segmentation_model")',
    },
}


def create_repository(options: TrainingOptions) -> str | None:
    """Make the repository, or see that it is there: before the training, so that no typing error is found after it.

    Returns:
        Its full name; `None` where nothing is to be published.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the token may not write there.
    """
    if not options.push_to_hub:
        return None
    from huggingface_hub import HfApi

    name = options.hub_model_id or Path(options.output_dir).absolute().name
    url = HfApi(token=options.hub_token).create_repo(name, private=options.hub_private_repo or None, exist_ok=True)
    return url.repo_id


def write_hub_folder(output_dir: Path, record: dict[str, Any], repository: str, template: Path) -> Path:
    """Put what a repository should hold into ``hub/``: weights, scheduler, last pictures, record, and a card.

    Args:
        output_dir: of a finished run.
        record: of it.
        repository: name, for the example in the card.
        template: of the card, in Jinja.

    Returns:
        The folder.
    """
    import jinja2

    kind = next(name for name in KINDS if (output_dir / name).is_dir())
    settings = {**record["arguments"], **record["options"]}
    hidden = ("output_dir", "data_dir", "resume_from_checkpoint", "report_to", "logging", "hub_", "push", "tracker")
    results = [row for row in record["history"] if any(key.startswith("val_") for key in row)]
    last = results[-1] if results else {}
    pictures = _last_pictures(output_dir)
    with replaced_folder(output_dir / HUB_FOLDER) as folder:
        for name in (kind, f"{kind}_best", "scheduler"):
            if (output_dir / name).is_dir():
                shutil.copytree(output_dir / name, folder / name)
        if pictures:
            (folder / "pictures").mkdir()
        for path in pictures:
            shutil.copy(path, folder / "pictures")
        card = (
            jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
            .from_string(template.read_text())
            .render(
                **{key: record[key] for key in SHOWN},
                **{key: KINDS[kind][key] for key in ("title", "task", "tags", "description")},
                data=record["data"],
                parameters=record["parameters"],
                example=KINDS[kind]["example"].format(repository=repository),
                settings={
                    key: value
                    for key, value in settings.items()
                    if value not in (None, False, (), []) and not key.startswith(hidden)
                },
                results=_flat(last),
                results_step=last.get("step"),
                pictures=[path.name for path in pictures],
            )
        )
        (folder / "README.md").write_text(card)
        (folder / "training_record.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    return output_dir / HUB_FOLDER


def upload_run(options: TrainingOptions, record: dict[str, Any], repository: str | None, template: Path) -> None:
    """Write the folder and upload it, if that was asked for. Called by the main process.

    Raises:
        RuntimeError: the upload failed; what was trained is on the disk, and the message says how to repeat it.
    """
    if repository is None:
        return
    from huggingface_hub import HfApi

    folder = write_hub_folder(Path(options.output_dir), record, repository, template)
    try:
        HfApi(token=options.hub_token).upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message=f"{record['steps']} training steps"
        )
    except Exception as error:  # of the network, of the server: many kinds
        raise RuntimeError(
            f"The training is complete, but the upload failed ({error}). Repeat it by `hf upload {repository} "
            f"{folder}`."
        ) from error
    logger.info("Published %s.", repository)


def _last_pictures(output_dir: Path) -> list[Path]:
    found = sorted((output_dir / "pictures").glob("*.png"))
    return [path for path in found if path.name.split("_")[0] == found[-1].name.split("_")[0]]


def _flat(results: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    rows = {}
    for key, value in results.items():
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{key} ")
        elif isinstance(value, float) and key != "minutes":
            rows[f"{prefix}{key}"] = f"{value:.4g}"
    return rows
