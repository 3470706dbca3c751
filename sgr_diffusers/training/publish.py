"""Write a folder with weights, record and card of a finished training, and upload it to the Hub."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from ..data.skm_tea import SYNTHETIC
from ..hub.errors import hub_errors, redact
from ..publishing.push import check_stage
from ..publishing.training_card import training_card
from ..utils.files import replaced_folder
from .options import TrainingOptions

__all__ = ["create_repository", "upload_run", "write_hub_folder"]

logger = logging.getLogger(__name__)
HUB_FOLDER = "hub"
KINDS = ("unet", "segmentation_model")


def create_repository(options: TrainingOptions) -> str | None:
    """Make the repository, or see that it is there: before the training, so that no typing error is found after it.

    Returns:
        Its full name; `None` where nothing is to be published.

    Raises:
        OSError: the token may not write there, or the Hub cannot be reached.
    """
    if not options.push_to_hub:
        return None
    from huggingface_hub import HfApi

    name = options.hub_model_id or Path(options.output_dir).absolute().name
    with hub_errors(f"--push-to-hub {name}"):
        url = HfApi(token=options.hub_token).create_repo(name, private=options.hub_private_repo or None, exist_ok=True)
    return url.repo_id


def write_hub_folder(output_dir: Path, record: dict[str, Any], repository: str) -> Path:
    """Put what a repository should hold into ``hub/``: weights, scheduler, last pictures, record, and a card.

    Pictures of scans come along only if these are synthetic; samples of the prior always do.

    Args:
        output_dir: output folder of a finished run.
        record: record of that run.
        repository: name of the repository, for the example in the card.

    Returns:
        The folder.

    Raises:
        ValueError: it cannot be published: something is wrong with the card, or a file holds a token.
    """
    kind = next(name for name in KINDS if (output_dir / name).is_dir())
    pictures = _last_pictures(output_dir)
    if record["data"].get("name") != SYNTHETIC:  # the others show scans of people beside their reconstructions
        pictures = [path for path in pictures if path.stem.endswith("_samples")]
    with replaced_folder(output_dir / HUB_FOLDER) as folder:
        for name in (kind, f"{kind}_best", "scheduler"):
            if (output_dir / name).is_dir():
                shutil.copytree(output_dir / name, folder / name)
        if pictures:
            (folder / "pictures").mkdir()
        for path in pictures:
            shutil.copy(path, folder / "pictures")
        card = training_card(record, kind, repository, [path.name for path in pictures])
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "training_record.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
        check_stage(folder, "network")
    return output_dir / HUB_FOLDER


def upload_run(options: TrainingOptions, record: dict[str, Any], repository: str | None) -> None:
    """Write the folder and upload it, if that was asked for. Called by the main process.

    Raises:
        RuntimeError: the upload failed; what was trained is on the disk, and the message says how to repeat it.
    """
    if repository is None:
        return
    from huggingface_hub import HfApi

    folder = write_hub_folder(Path(options.output_dir), record, repository)
    try:
        HfApi(token=options.hub_token).upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message=f"{record['steps']} training steps"
        )
    except Exception as error:  # of the network, of the server: many kinds
        raise RuntimeError(
            f"The training is complete, but the upload failed ({redact(str(error))}). Repeat it by `hf upload "
            f"{repository} {folder}`."
        ) from error
    logger.info("Published %s.", repository)


def _last_pictures(output_dir: Path) -> list[Path]:
    pictures = sorted((output_dir / "pictures").glob("*.png"))
    return [path for path in pictures if path.name.split("_")[0] == pictures[-1].name.split("_")[0]]
