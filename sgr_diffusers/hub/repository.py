"""Saves a pipeline as a repository that loads with and without this package, and loads it back.

In a repository `model_index.json` names files of its own: `["pipeline", "SGRMRIPipeline"]` and
`["segmentation_unet", "SegmentationUNet"]`. diffusers runs them if told to trust them. Where this package is imported,
its own classes are used instead (`hub.loading`), and nothing of the repository's code is run.
"""

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import nn

from .code_bundle import code_files
from .model_index import OWN_CLASS, OWN_SEGMENTATION, PIPELINE_FILE, SEGMENTATION_FILE, read_json
from .shared_components import shared_components

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base
else:  # diffusers takes every pipeline class of a repository's code for the pipeline
    _Base = object

__all__ = ["INDEX", "RepositoryMixin", "make_portable", "write_json"]

INDEX = "model_index.json"

# Of a pipeline that is pushed without records of how it was made; `sgr publish model` writes one that has them.
SHORT_CARD = """---
library_name: diffusers
pipeline_tag: image-to-image
tags:
- mri
- image-reconstruction
- uncertainty
---

# Segmentation-guided reconstruction of undersampled MRI

Upper and lower bounds of tissues in accelerated MRI, by a diffusion prior and a segmentation model. For research:
**not for clinical use**. Nothing is recorded here of how the networks were trained, or of how well they do.

It loads by `sgr_diffusers.SGRMRIPipeline.from_pretrained("{repo_id}")`. Without
sgr_diffusers, and once you have read the code in this repository:
`DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)`.

A bound is what this prior can imagine and this segmentation model can see within what was measured. It is not a
confidence interval and carries no probability.
"""


class RepositoryMixin(_Base):
    """Loads and saves a pipeline, beyond what `DiffusionPipeline` does: safetensors only, code included."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a pipeline as `DiffusionPipeline.from_pretrained` does, from safetensors only.

        No code of the repository is run. Where the weights come from a Hub, their hashes are checked.

        Args:
            pretrained_model_name_or_path: folder, or name of a Hub repository.
            **kwargs: options of `DiffusionPipeline.from_pretrained`: `revision`, `variant`, `dtype`, `token`,
                `cache_dir`, `local_files_only`, and components. `segmentation_model` may be any module.

        Raises:
            UnsafeCheckpointError: the repository asks for what must not be done on its word.
            OSError: there is no such repository, revision or variant, it cannot be reached, or it has no safetensors;
                or a file was damaged on its way: it is deleted, so that the next call fetches it again.
        """
        if kwargs.get("use_safetensors", True) is False:
            raise ValueError("`use_safetensors` must not be False: weights that are unpickled can run any code.")
        kwargs["use_safetensors"] = True
        kwargs |= shared_components(pretrained_model_name_or_path, kwargs)
        given = kwargs.get("segmentation_model")
        # diffusers would hold the module against the class that the repository names
        arguments = {**kwargs, "segmentation_model": None} if isinstance(given, nn.Module) else kwargs
        pipe = super().from_pretrained(pretrained_model_name_or_path, **arguments)
        if isinstance(given, nn.Module):
            pipe.register_modules(segmentation_model=given)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | os.PathLike:
        """Download a pipeline as `DiffusionPipeline.download` does, but no weights that would be unpickled."""
        kwargs["use_safetensors"] = True
        return super().download(pretrained_model_name, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Save as `DiffusionPipeline.save_pretrained` does, with the code that the folder needs to load elsewhere.

        Args:
            save_directory: folder to make or to write to.
            safe_serialization: without effect; weights are always saved as safetensors, and `False` is warned of.
            **kwargs: options of `DiffusionPipeline.save_pretrained`: `variant`, `max_shard_size`, `push_to_hub` and
                what goes with it.

        Raises:
            ValueError: the segmentation model cannot be saved; raised before anything is written.
        """
        if not safe_serialization:
            warnings.warn(
                "`safe_serialization=False` is not followed: pickles can run any code when they are loaded, so the "
                "weights are saved as safetensors.",
                stacklevel=3,
            )
        model = self.segmentation_model
        if model is not None and not isinstance(model, ModelMixin):
            raise ValueError(
                f"`segmentation_model` cannot be saved: {type(model).__name__} is a plain module, not a ModelMixin of "
                "diffusers. Save the rest by `SGRMRIPipeline(pipe.unet, pipe.scheduler).save_pretrained(folder)`, and "
                "load it by `SGRMRIPipeline.from_pretrained(folder, segmentation_model=...)`."
            )
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model index, the last step of `save_pretrained` before it uploads anything."""
        super().save_config(save_directory, **kwargs)
        make_portable(save_directory, type(self.segmentation_model))

    def _upload_folder(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """The last step of `push_to_hub`: diffusers has put a form to fill in where there was no card."""
        card = Path(working_dir) / "README.md"
        if card.is_file() and "[More Information Needed]" in card.read_text(encoding="utf-8"):
            card.write_text(SHORT_CARD.format(repo_id=repo_id), encoding="utf-8")
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)


def make_portable(folder: str | os.PathLike, segmentation_class: type | None = None) -> list[str]:
    """Turn the folder of a saved pipeline into a repository that loads without this package, too.

    Pipelines and segmentation models of other classes stay as they are: their code is not ours to carry. Where the
    components came from is dropped from their configurations: it may be a path on this machine.

    Args:
        folder: folder with `model_index.json`; changed in place.
        segmentation_class: class of the segmentation model; `None` for that of this package.

    Returns:
        The files of code that were written.
    """
    folder = Path(folder)
    for file in folder.glob("*/*config.json"):
        config = read_json(file)
        if config.pop("_name_or_path", None) is not None:
            write_json(file, config)
    index = read_json(folder / INDEX)
    if index.pop("_name_or_path", None) is not None:
        write_json(folder / INDEX, index)
    if index["_class_name"] not in (OWN_CLASS, [PIPELINE_FILE, OWN_CLASS]):
        return []
    index["_class_name"] = [PIPELINE_FILE, OWN_CLASS]
    library, class_name = index.get("segmentation_model") or (None, None)
    is_own = class_name == OWN_SEGMENTATION and str(library).split(".")[-1] in ("sgr_diffusers", SEGMENTATION_FILE)
    if is_own:
        index["segmentation_model"] = [SEGMENTATION_FILE, OWN_SEGMENTATION]
    files = code_files((segmentation_class or object) if is_own else None)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    write_json(folder / INDEX, index)
    return list(files)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a configuration the way diffusers does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
