"""Converts checkpoint files of the paper's authors to a pipeline folder, and back. The work of `sgr convert`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..models.authors.checkpoint_files import read_state_dict
from ..models.authors.prior import PRIOR_ANCHORS, authors_flags, prior_from_authors, prior_to_authors
from ..models.authors.segmentation import SEGMENTATION_ANCHORS, segmentation_from_authors, segmentation_to_authors
from ..models.prior import create_scheduler
from ..models.segmentation import SegmentationUNet
from ..utils.files import RECORD_FILE, check_replaceable, whole_folder
from .pipeline_sgr_mri import SGRMRIPipeline

__all__ = ["convert_from_authors", "convert_to_authors"]


def convert_from_authors(
    prior: str | Path,
    output: str | Path,
    segmentation: str | Path | None = None,
    num_head_channels: int | None = None,
    new_attention_order: bool = False,
    sample_size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    strides: Sequence[int] | None = None,
    flip_average: bool = False,
    prior_entry: str | None = None,
    segmentation_entry: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a folder that `SGRMRIPipeline.from_pretrained` loads, with the scheduler of the paper's experiments.

    Args:
        prior: checkpoint of a guided diffusion UNet that predicts the noise in 1000 steps with linear betas.
        output: folder to make.
        segmentation: checkpoint of a MONAI UNet; without it the pipeline serves plain reconstruction, and segmentation
            models that are set later.
        num_head_channels, new_attention_order, sample_size: of the prior, see `prior_from_authors`.
        class_names, strides, flip_average: of the segmentation network, see `segmentation_from_authors`.
        prior_entry, segmentation_entry: where the networks are in their files, see `read_state_dict`.
        overwrite: flag to replace the folder of an earlier conversion.

    Returns:
        The record, also written to ``settings.json``: source files with their SHA-256, and the architectures read.

    Raises:
        FileExistsError: `output` is taken.
        FileNotFoundError: a checkpoint is not there.
        ValueError: a file or an argument cannot be used; names the key at fault.
    """
    check_replaceable(Path(output), overwrite)
    unet = prior_from_authors(
        read_state_dict(prior, PRIOR_ANCHORS, prior_entry), num_head_channels, new_attention_order, sample_size
    )
    record = {"prior": {**_source(prior, prior_entry), **authors_flags(unet, new_attention_order)}}
    model = None
    if segmentation is not None:
        state = read_state_dict(segmentation, SEGMENTATION_ANCHORS, segmentation_entry)
        model = segmentation_from_authors(state, class_names, strides, flip_average)
        record["segmentation"] = {**_source(segmentation, segmentation_entry), **_segmentation_settings(model)}
    with whole_folder(output, overwrite) as folder:
        SGRMRIPipeline(unet, create_scheduler("epsilon"), model).save_pretrained(folder)
        _write_record(folder, record)
    return record


def convert_to_authors(
    pipeline: str | Path, output: str | Path, new_attention_order: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write ``prior.pt`` and ``segmentation.pt``, state dicts that the authors' networks load.

    Args:
        pipeline: folder or Hub repository of an `SGRMRIPipeline`.
        output: folder to make.
        new_attention_order: flag that says whether the prior is to be loaded with `use_new_attention_order`.
        overwrite: flag to replace the folder of an earlier conversion.

    Returns:
        The record, also written to ``settings.json``: the arguments to make the two networks with.

    Raises:
        FileExistsError: `output` is taken.
        OSError: `pipeline` cannot be loaded.
        ValueError: their networks cannot express one of ours.
    """
    check_replaceable(Path(output), overwrite)
    pipe = SGRMRIPipeline.from_pretrained(pipeline)
    states = {"prior": prior_to_authors(pipe.unet, new_attention_order)}
    record: dict[str, Any] = {"prior": authors_flags(pipe.unet, new_attention_order)}
    if pipe.segmentation_model is not None:
        if not isinstance(pipe.segmentation_model, SegmentationUNet):
            raise ValueError(
                f"`pipeline` has a segmentation model of the class {type(pipe.segmentation_model).__name__}; only a "
                "SegmentationUNet has a MONAI UNet inside. Convert the prior alone by `prior_to_authors`."
            )
        states["segmentation"] = segmentation_to_authors(pipe.segmentation_model)
        record["segmentation"] = _segmentation_settings(pipe.segmentation_model)
    with whole_folder(output, overwrite) as folder:
        for name, state in states.items():
            torch.save(state, folder / f"{name}.pt")
        _write_record(folder, record)
    return record


def _source(path: str | Path, entry: str | None) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": Path(path).name, "sha256": digest} | ({} if entry is None else {"entry": entry})


def _segmentation_settings(model: SegmentationUNet) -> dict[str, Any]:
    names = ("class_names", "in_channels", "channels", "strides", "num_res_units", "flip_average")
    return {name: model.config[name] for name in names}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    from .. import __version__

    content = {"sgr_diffusers": __version__, **record}
    (folder / RECORD_FILE).write_text(json.dumps(content, indent=2) + "\n")
