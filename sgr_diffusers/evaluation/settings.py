"""Settings that are the same for all units of an evaluation."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..pipeline.settings import setting, whole_number
from ..reconstruction.settings import SamplingSettings

__all__ = ["EvaluationSettings"]


@dataclass(frozen=True)
class EvaluationSettings(SamplingSettings):
    """How to reconstruct all units of a results folder; SGR and RR differ in target, classes and samples alone.

    Attributes:
        CHOSEN: names of the settings that an evaluation may choose; all others are the checkpoint's.
    """

    echo: int = setting(1, whole_number(1, 2), "number of the echo; the paper uses 1", "data")

    CHOSEN: ClassVar = (
        "num_inference_steps",
        "timesteps",
        "eta",
        "guidance_strength",
        "consistency",
        "cg_iterations",
        "final_consistency",
        "batch_size",
        "echo",
        "seed",
    )

    def identity(self) -> dict[str, Any]:
        """Return the values that can change a bit of a result, as a results folder records them."""
        return {name: getattr(self, name) for name in self.CHOSEN} | {"timesteps": self.visited_timesteps}
