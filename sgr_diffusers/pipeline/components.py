"""How the pipeline holds its components: a scheduler that fits, and networks that may be wrapped or missing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import nn

from ..hub.model_index import UnsafeCheckpointError
from ..hub.registration import named_segmentation
from ..schedulers.checks import check_scheduler
from .networks import check_all_used, class_names_of, unwrap

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base
else:  # diffusers takes every pipeline class of a repository's code for the pipeline
    _Base = object

__all__ = ["ComponentsMixin"]


class ComponentsMixin(_Base):
    """Attributes of the pipeline that depend on its components or its call, and how components are set and moved."""

    # Names that callbacks of diffusers use; a callback may set the last two.
    _num_timesteps = 0
    _guidance_scale = 1.0
    _interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load as `RepositoryMixin.from_pretrained` does, and refuse weights that a network has no place for.

        Args:
            pretrained_model_name_or_path: folder, or name of a Hub repository.
            **kwargs: options of `RepositoryMixin.from_pretrained`. `segmentation_model` may also be the name of a
                repository or folder of a model of this package, of transformers or of a MONAI bundle.

        Raises:
            OSError: there are no such files, or they cannot be read.
            TypeError: the path is none.
            ValueError: a configuration cannot be used, or does not belong to the weights.
        """
        path = pretrained_model_name_or_path
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"`pretrained_model_name_or_path` must be a folder or a name, got {type(path).__name__}.")
        if isinstance(kwargs.get("segmentation_model"), str | os.PathLike):
            kwargs["segmentation_model"] = named_segmentation(kwargs["segmentation_model"])
        try:
            pipe = super().from_pretrained(path, **kwargs)
        except (OSError, UnsafeCheckpointError):
            raise
        except Exception as error:  # whatever a class of diffusers does with a configuration that makes no sense
            raise ValueError(
                f"`{path}` cannot be loaded: {error}. If its configurations were edited, undo that; else get the "
                "files again."
            ) from error
        for name, network in pipe.components.items():
            if isinstance(network, ModelMixin) and name not in kwargs:
                check_all_used(name, network, network.config["_name_or_path"], kwargs.get("variant"))
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Make a pipeline of the components of another one as `DiffusionPipeline.from_pipe` does, but keep them all.

        diffusers keeps a component only where its very class is in the annotations of `__init__`.
        """
        kept = {name: value for name, value in pipeline.components.items() if name in cls._get_signature_keys(cls)[0]}
        return super().from_pipe(pipeline, **{**kept, **kwargs})

    def register_modules(self, **components: Any) -> None:
        """Set components as `DiffusionPipeline.register_modules` does, but refuse those of a wrong type.

        Raises:
            TypeError: a network is no module, or the scheduler none of diffusers.
        """
        for name, component in components.items():
            kind = SchedulerMixin if name == "scheduler" else nn.Module
            if component is not None and not isinstance(component, kind):
                raise TypeError(f"`{name}` must be a {kind.__name__} or None, got {type(component).__name__}.")
        super().register_modules(**components)

    def __setattr__(self, name: str, value: Any) -> None:
        """As in diffusers, but a scheduler set in place of another is refused here if it would give a wrong image.

        Raises:
            TypeError, ValueError: as `check_scheduler` says.
        """
        if name == "scheduler" and name in self.__dict__ and value is not None:
            check_scheduler(value, self.config.get("trained_with"))
        super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        """Device of the prior; the base class would ask the segmentation model, which need not know its own."""
        return torch.device("cpu") if self.unet is None else unwrap(self.unet).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the prior; physics and losses are in single precision whatever it is."""
        return torch.float32 if self.unet is None else unwrap(self.unet).dtype

    @property
    def num_timesteps(self) -> int:
        """Number of network evaluations for each image in the call that runs, or in the last one."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Factor on every strength of guidance; a callback changes it for later steps by `pipe._guidance_scale`."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked by `pipe._interrupt = True` to end the call with the images of that step."""
        return self._interrupt

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names that the segmentation model gives to its classes, label 1 first; `None` if it gives none."""
        return class_names_of(self.segmentation_model)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the networks as `DiffusionPipeline.to` does, including wrapped networks and plain modules."""
        model, previous_dtype = unwrap(self.segmentation_model), self.dtype
        is_plain = model is not None and not (hasattr(model, "dtype") and hasattr(model, "device"))
        with self._replaced(unet=unwrap(self.unet), segmentation_model=None if is_plain else model):
            super().to(*args, **kwargs)
        if is_plain:
            model.to(self.device, None if self.dtype == previous_dtype else self.dtype)
        return self

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as `RepositoryMixin.save_pretrained` does; of a wrapped network what is inside.

        Args:
            save_directory: folder to make or to write to.
            *args, **kwargs: options of `RepositoryMixin.save_pretrained`.
        """
        with self._replaced(unet=unwrap(self.unet), segmentation_model=unwrap(self.segmentation_model)):
            super().save_pretrained(save_directory, *args, **kwargs)

    @contextmanager
    def _replaced(self, **networks: nn.Module | None) -> Iterator[None]:
        """Replace networks within the context."""
        changed = {name: getattr(self, name) for name, value in networks.items() if getattr(self, name) is not value}
        self.register_modules(**{name: networks[name] for name in changed})
        try:
            yield
        finally:
            self.register_modules(**changed)
