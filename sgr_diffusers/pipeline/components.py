"""How the pipeline holds its components: a scheduler that fits, and a segmentation model that may be any module."""

from typing import TYPE_CHECKING, Any

import torch

from ..schedulers.checks import check_scheduler
from .networks import class_names_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base
else:  # diffusers takes every pipeline class of a repository's code for the pipeline
    _Base = object

__all__ = ["ComponentsMixin"]


class ComponentsMixin(_Base):
    """Attributes of the pipeline that depend on its components, and how components are set and moved."""

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Make a pipeline of the components of another one as `DiffusionPipeline.from_pipe` does, but keep them all.

        diffusers keeps a component only where its very class is in the annotations of `__init__`.
        """
        kept = {name: value for name, value in pipeline.components.items() if name in cls._get_signature_keys(cls)[0]}
        return super().from_pipe(pipeline, **{**kept, **kwargs})

    def __setattr__(self, name: str, value: Any) -> None:
        """As in diffusers, but a scheduler set in place of another is refused here if it would give a wrong image.

        Raises:
            TypeError, ValueError: as `check_scheduler` says.
        """
        if name == "scheduler" and name in self.__dict__:
            check_scheduler(value, self.config.get("trained_with"))
        super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        """Device of the prior; the base class would ask the segmentation model, which need not know its own."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the prior; physics and losses are in single precision whatever it is."""
        return self.unet.dtype

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names that the segmentation model gives to its classes, label 1 first; `None` if it gives none."""
        return class_names_of(self.segmentation_model)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the networks as `DiffusionPipeline.to` does, including a segmentation model that is a plain module."""
        model = self.segmentation_model
        if model is None or (hasattr(model, "dtype") and hasattr(model, "device")):
            return super().to(*args, **kwargs)
        previous_dtype = self.dtype
        self.register_modules(segmentation_model=None)
        try:
            super().to(*args, **kwargs)
            model.to(self.device, None if self.dtype == previous_dtype else self.dtype)
        finally:
            self.register_modules(segmentation_model=model)
        return self
