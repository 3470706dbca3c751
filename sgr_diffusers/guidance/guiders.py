"""Guidance objects give each image of a reverse step a score, and the pipeline pushes the noise to raise it.

A guidance names the tensors that it needs by `tensor_inputs` and returns one score for each image. The pipeline adds
the score's gradient to the predicted noise, limited to `strength` times its norm (paper Eqs. 13 and 14). Several
compose: each adds a push. Guidance is saved by `guidance.save_config(folder)` and made again by
`SegmentationGuidance.from_config(config)`.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from .losses import guidance_loss, has_pixels_to_push, indicator, soft_volume
from .targets import resolve_classes
from .volume_goals import Goal, VolumeGoals, are_attained, push_shares

__all__ = ["Guidance", "SegmentationGuidance", "check_guidance", "compare_with_goals", "images_to_push"]

OBJECTIVES = ("likelihood", "volume")
_LEAST_VOXELS = 0.1  # sum of a class's probability in an image below which it is left alone


class Guidance(ConfigMixin):
    """Base class: derive, set `tensor_inputs`, write `score`; `register_to_config` on `__init__` to serialise.

    Args:
        strength: strength b of paper Eq. 14, per step; `None` for what the pipeline is called with, or its default.
        start: share of the trajectory at which the guidance sets in, 0 the first step; `None` for where the checkpoint
            has it set in (`pipe.config.guidance_from`).
        stop: share at which it ends, 1 after the last. Outside of the window nothing is differentiated.

    Raises:
        ValueError: strength or window are out of range.
    """

    config_name = "guidance_config.json"
    # Names out of `SGRMRIPipeline._guidance_tensor_inputs`, whose docstring explains them.
    tensor_inputs: ClassVar[list[str]] = ["x0_consistent"]

    @register_to_config
    def __init__(self, strength: float | None = None, start: float | None = None, stop: float = 1.0):
        """Check strength and window."""
        if strength is not None and not (isinstance(strength, Real) and 0 <= strength < float("inf")):
            raise ValueError(f"`strength` must be 0 or larger, got {strength!r}; None gives the pipeline's.")
        window = (0.0 if start is None else start, stop)
        if not all(isinstance(share, Real) for share in window) or not 0 <= window[0] < window[1] <= 1:
            raise ValueError(
                "`start` and `stop` must be shares of the trajectory, 0 <= start < stop <= 1, got "
                f"{start!r} and {stop!r}."
            )

    def score(self, **tensors: Tensor) -> Tensor:
        """Compute the score that shall grow, `(image,)`, differentiable with respect to the images among `tensors`.

        Each image's score must depend on that image only.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `score`.")

    def wants_push(self, **tensors: Tensor) -> Tensor:
        """Tell which images have a score worth a backward pass, bool `(image,)`; all by default, without gradients."""
        images = next(iter(tensors.values()))
        return torch.ones(len(images), dtype=torch.bool, device=images.device)

    @property
    def has_goals(self) -> bool:
        """Whether there is a volume to reach: pushes then depend on what `measure` returns for all slices."""
        return False

    def measure(self, **tensors: Tensor) -> Tensor | None:
        """Measure what `push_shares` needs of each image, `(image,)`; `None` if each is pushed in full by itself."""
        return None

    def push_shares(self, measured: Tensor, class_numbers: Sequence[int], targets: Sequence[str]) -> Tensor:
        """Compute the share of a full push, from -1 to 1, that all slices together get, `(class, target)`.

        Args:
            measured: what `measure` has returned, `(slice, class, target)`.
            class_numbers: label of each class, 0 for plain reconstruction.
            targets: name of each target.
        """
        return torch.ones_like(measured[0])

    def bind(self, class_names: tuple[str, ...], voxel_mm3: float = 1.0) -> None:
        """Learn the names of the segmentation model's classes; called once for each call of the pipeline.

        Args:
            class_names: names of the segmentation model's classes.
            voxel_mm3: volume of a voxel; 1 where it is not known.

        Raises:
            ValueError: the guidance needs a class that the model does not have.
        """

    def is_on(self, step: int, n_steps: int, is_from: bool = True) -> bool:
        """Return whether `step` of `n_steps` network evaluations, counted from 0, lies in the window.

        Args:
            step: number of the network evaluation in the call, from 0.
            n_steps: number of network evaluations in the call.
            is_from: whether guidance without a `start` of its own has set in at this evaluation.
        """
        has_started = is_from if self.config.start is None else self.config.start <= step / n_steps
        return has_started and step / n_steps < self.config.stop


class SegmentationGuidance(Guidance):
    """Makes a tissue grow or shrink: the guidance of the paper, and what the pipeline uses by itself.

    Args:
        target: "upper" (grow) or "lower" (shrink); `None` for the target of each branch of the pipeline's call.
        classes: names or label numbers of the classes to push, several as one tissue; `None` for the class of each
            branch.
        strength: strength b of paper Eq. 14, per step; `None` for that of the call, or of the checkpoint.
        start: share of the trajectory at which the guidance sets in; `None` for where the checkpoint has it set in.
        stop: share at which it ends.
        objective: "likelihood" (paper Eq. 12: pixels that are not yet or still are of the class), or "volume" (the
            sum of the class's probability over all pixels).
        target_volume_mm3: volume that the class shall reach in the slices of a call together, in the unit of
            `volumes_mm3`: a number, or a dictionary from class to a number or to a pair (for "lower", for "upper").
            Pushes weaken near it, and turn round beyond it; `target` does not count, and the objective is the volume.
            Classes that a dictionary leaves out are not pushed.

    Raises:
        ValueError: an unknown target or objective, or as in `Guidance`.
    """

    tensor_inputs: ClassVar[list[str]] = ["logits", "class_number", "is_upper"]

    @register_to_config
    def __init__(
        self,
        target: str | None = None,
        classes: list[str | int] | str | int | None = None,
        strength: float | None = None,
        start: float | None = None,
        stop: float = 1.0,
        objective: str = "likelihood",
        target_volume_mm3: Goal | dict[str | int, Goal] | None = None,
    ):
        """Check the arguments."""
        super().__init__(strength, start, stop)
        if target not in (None, "upper", "lower"):
            raise ValueError(f"`target` must be 'upper', 'lower' or None (that of the branch), got {target!r}.")
        if objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {OBJECTIVES}, got {objective!r}.")
        if target_volume_mm3 is not None and classes is not None:
            raise ValueError(
                "`classes` and `target_volume_mm3` cannot be given together: name the classes in the pipeline's call, "
                "or give a dictionary from class to volume."
            )
        self._numbers: tuple[int, ...] | None = None
        self._goals: VolumeGoals | None = None
        self._voxel_mm3 = 1.0

    def bind(self, class_names: tuple[str, ...], voxel_mm3: float = 1.0) -> None:
        """Look up the classes."""
        self._numbers = None if self.config.classes is None else resolve_classes(self.config.classes, class_names)
        goals, self._voxel_mm3 = self.config.target_volume_mm3, voxel_mm3
        self._goals = None if goals is None else VolumeGoals(goals, class_names)

    @property
    def has_goals(self) -> bool:
        """Whether there is a `target_volume_mm3`."""
        return self.config.target_volume_mm3 is not None

    def goals_mm3(self, class_numbers: Sequence[int], targets: Sequence[str]) -> Tensor:
        """Return the volumes to reach `(class, target)`, NaN for a class without one."""
        if self._goals is None:
            raise ValueError("`target_volume_mm3` was not given, or `bind` has not been called.")
        return self._goals.table(class_numbers, targets)

    def score(self, logits: Tensor, class_number: Tensor, is_upper: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the loss L_m of paper Eq. 12, or the soft volume in pixels, with the sign that makes it grow."""
        classes, is_upper = self._tissue(logits, class_number, is_upper)
        if self.config.objective == "likelihood" and not self.has_goals:
            return guidance_loss(logits, classes, is_upper)
        volume = soft_volume(logits, classes)
        return volume if self.has_goals else torch.where(is_upper, volume, -volume)

    def wants_push(  # type: ignore[override]
        self, logits: Tensor, class_number: Tensor, is_upper: Tensor
    ) -> Tensor:
        """Return false where no pixel is left to push; with a volume to reach, where nothing resembles the class."""
        classes, is_upper = self._tissue(logits, class_number, is_upper)
        if self.has_goals:
            return soft_volume(logits, classes) > _LEAST_VOXELS
        return has_pixels_to_push(logits, classes, is_upper)

    def measure(  # type: ignore[override]
        self, logits: Tensor, class_number: Tensor, is_upper: Tensor
    ) -> Tensor | None:
        """Compute the volume of each image in mm^3 (paper Eq. 7), if there is one to reach."""
        if not self.has_goals:
            return None
        classes, _ = self._tissue(logits, class_number, is_upper)
        return self._voxel_mm3 * indicator(logits, classes).sum(dim=(-2, -1)).float()

    def push_shares(self, measured: Tensor, class_numbers: Sequence[int], targets: Sequence[str]) -> Tensor:
        """Compute the share of a full push that brings the volume of all slices to the goal."""
        goals = self.goals_mm3(class_numbers, targets).to(measured.device, non_blocking=True)
        return push_shares(measured.sum(dim=0), goals, self._voxel_mm3)

    def _tissue(self, logits: Tensor, class_number: Tensor, is_upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes and direction of each image: those of the guidance, or of the branch where it has none."""
        if self._numbers is not None:
            class_number = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
            for number in self._numbers:
                class_number[:, number] = True
        if self.config.target is not None:
            is_upper = torch.full_like(is_upper, self.config.target == "upper")
        return class_number, is_upper


def check_guidance(
    guidance: Sequence[Any], available: Sequence[str], class_names: tuple[str, ...], voxel_mm3: float = 1.0
) -> None:
    """Refuse what the pipeline cannot call, and tell each guidance the names of the classes.

    Args:
        guidance: guidance objects of one call.
        available: names of tensors that can be asked for.
        class_names: class names of the segmentation model; empty without one.
        voxel_mm3: volume of a voxel; 1 where it is not known.

    Raises:
        TypeError: an entry is not a `Guidance`.
        ValueError: it asks for a tensor that there is not, or for a class that the model does not have.
    """
    for entry in guidance:
        name = type(entry).__name__
        if not isinstance(entry, Guidance):
            raise TypeError(f"`guidance` must be a `sgr_diffusers.Guidance`, or a list of them, got {name}.")
        unknown = sorted(set(entry.tensor_inputs) - set(available))
        if unknown:
            raise ValueError(f"`guidance` {name} has unknown `tensor_inputs` {unknown}; there are {list(available)}.")
        if "logits" in entry.tensor_inputs and not class_names:
            raise ValueError(
                f"`guidance` {name} asks for logits, but `segmentation_model` is None. Add one by "
                "`pipe.register_modules(segmentation_model=...)`."
            )
        entry.bind(class_names, voxel_mm3)


def compare_with_goals(
    guidance: Sequence[Guidance],
    volumes_mm3: Tensor | None,
    class_numbers: Sequence[int],
    targets: Sequence[str],
    voxel_mm3: float,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the volumes to reach and whether they were attained, both `(class, target)`, or `None` without any.

    Args:
        guidance: guidance of a call; the first with volumes to reach counts.
        volumes_mm3: volumes `(slice, class, target)` of the images.
        class_numbers: label of each class.
        targets: name of each target.
        voxel_mm3: volume of a voxel.
    """
    for entry in guidance:
        if isinstance(entry, SegmentationGuidance) and entry.has_goals and volumes_mm3 is not None:
            goals, volumes = entry.goals_mm3(class_numbers, targets), volumes_mm3.sum(dim=0)
            return goals, are_attained(volumes, goals.to(volumes.device), voxel_mm3)
    return None, None


@torch.no_grad()
def images_to_push(guidance: Sequence[Guidance], tensors: dict[str, Tensor]) -> Tensor:
    """Return whether any guidance wants to push each image of a batch, on the device of the images."""
    device = next(iter(tensors.values())).device
    wanted = [g.wants_push(**{name: tensors[name] for name in g.tensor_inputs}) for g in guidance]
    return torch.stack([each.to(device, non_blocking=True) for each in wanted]).any(dim=0)
