"""Record a run's options and its way so far, as checkpoints, cards and readers need them."""

import dataclasses
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .options import TrainingOptions

__all__ = ["TrainingState", "training_record"]


@dataclass
class TrainingState:
    """How far a run has come; part of every checkpoint.

    Attributes:
        step: number of optimizer steps done.
        minutes: time spent in minutes, over all sittings.
        checkpoint_seconds: part of that time, in seconds, that writing checkpoints took.
        loss_sum: sum of the losses of the steps since the last line of the log.
        loss_steps: number of these steps.
        history: entries, one per line of the log: ``step``, ``minutes`` and ``loss``, or results of a validation.
        identity: values that a resumed run must have in common with the interrupted one.
        schedule: values that a resumed run may change, with a warning: a run that was to be longer, say.
    """

    step: int = 0
    minutes: float = 0.0
    checkpoint_seconds: float = 0.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainingState":
        """Make a state from the file of a checkpoint; unknown entries are left out."""
        names = {attribute.name for attribute in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in names})


def training_record(
    options: TrainingOptions, state: TrainingState, accelerator: Accelerator, **details: Any
) -> dict[str, Any]:
    """Collect what is needed to judge or repeat a run: command, options, length, machine, versions, results.

    Args:
        options: options of the run. The token is left out, here and in the command.
        state: state of the run at its end.
        accelerator: accelerator of the run.
        **details: other values to note.
    """
    import accelerate
    import diffusers

    def git(*arguments: str) -> str | None:
        result = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    command = " ".join(["python", *sys.argv])
    if options.hub_token:
        command = command.replace(options.hub_token, "...")
    if "arguments" in details:
        details["arguments"] = {key: value for key, value in details["arguments"].items() if key != "hub_token"}
    return {
        "command": command,
        "options": {**dataclasses.asdict(options), "hub_token": None},
        "seed": options.seed,
        "steps": state.step,
        "images": state.step * options.images_per_step(accelerator.num_processes),
        "minutes": round(state.minutes, 2),
        "checkpoint_seconds": round(state.checkpoint_seconds, 2),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
        },
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain", "-uno") or "").splitlines(),
        **details,
        "history": state.history,
    }
