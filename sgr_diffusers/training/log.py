"""Write losses, results and pictures of a run to ``log.jsonl``, PNG files, the console and the trackers.

A resumed run rewrites the log from its checkpoint, so that no line appears twice, and removes later pictures.
"""

import json
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from jaxtyping import UInt8
from tqdm import tqdm

from ..utils.disk import disk_errors
from .options import TrainingOptions
from .record import TrainingState

__all__ = ["Log", "Validation", "tile"]

logger = logging.getLogger(__name__)


@dataclass
class Validation:
    """Results and pictures of a validation.

    Attributes:
        results: results for the log, and as far as they are numbers for the trackers; dictionaries may be nested.
        pictures: grey images uint8 ``(n, y, x)`` for each name.
    """

    results: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, UInt8[np.ndarray, "n y x"]] = field(default_factory=dict)


def tile(images: UInt8[np.ndarray, "n y x"], n_columns: int = 4) -> UInt8[np.ndarray, "tiled_y tiled_x"]:
    """Tile many pictures to one: row by row, black where there is none."""
    n_columns = min(n_columns, len(images))
    n_rows = math.ceil(len(images) / n_columns)
    sheet = np.zeros((n_rows * n_columns, *images.shape[1:]), np.uint8)
    sheet[: len(images)] = images
    rows = sheet.reshape(n_rows, n_columns, *images.shape[1:])
    return rows.transpose(0, 2, 1, 3).reshape(n_rows * images.shape[1], n_columns * images.shape[2])


class Log:
    """Everything a run tells while it goes on.

    Args:
        accelerator: accelerator whose main process writes; its trackers, if any, are started here.
        options: options of the run.
        state: state of the run; the history that is there already stays.
        images_per_step: number of images per step, of all processes.
        last_step: number of the last step, for the progress bar, if known.
        config: configuration of the run, for the trackers.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: TrainingOptions,
        state: TrainingState,
        images_per_step: int,
        last_step: int | None,
        config: dict[str, Any],
    ) -> None:
        """Write the history that there is; start trackers and the progress bar."""
        self.accelerator, self.state, self.images_per_step = accelerator, state, images_per_step
        self.output_dir = Path(options.output_dir)
        self.path = self.output_dir / "log.jsonl"
        self.is_main = accelerator.is_main_process
        if self.is_main:
            with self._disk_errors():
                self.path.write_text("".join(json.dumps(entry) + "\n" for entry in state.history))
                for picture in self.output_dir.glob("pictures/*_*.png"):
                    number = picture.name.split("_")[0]
                    if number.isdigit() and int(number) > state.step:
                        picture.unlink()
        if accelerator.log_with:
            # Events after the step that a run is resumed from are written again, not twice.
            settings: dict[str, dict[str, Any]] = {
                "tensorboard": {"purge_step": state.step + 1},
                "wandb": {"dir": str(self.output_dir)},
            }
            settings["wandb"]["name"] = settings["wandb"]["group"] = self.output_dir.name
            simple = {key: value if isinstance(value, (int, float)) else str(value) for key, value in config.items()}
            accelerator.init_trackers(options.tracker_project_name, simple, init_kwargs=settings)
        self.bar = tqdm(
            total=last_step, initial=state.step, unit="step", disable=not (self.is_main and sys.stderr.isatty())
        )
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out what came before, such as a validation, from the images per second."""
        self.first_step, self.clock = self.state.step, time.monotonic()

    def add(self, loss: float) -> None:
        """Count the loss of a step, after `state.step` was increased."""
        self.state.loss_sum += loss
        self.state.loss_steps += 1
        self.bar.set_postfix_str(f"loss {loss:.4f}, {self._images_per_second():.1f} images/s", refresh=False)
        self.bar.update()

    def write_loss(self, learning_rate: float) -> None:
        """Average of the losses since the last line, and images per second."""
        mean = self.state.loss_sum / self.state.loss_steps
        self.state.loss_sum, self.state.loss_steps = 0.0, 0
        self.write({"loss": mean, "lr": learning_rate, "images_per_second": round(self._images_per_second(), 2)})
        self.restart_clock()

    def _images_per_second(self) -> float:
        return (self.state.step - self.first_step) * self.images_per_step / max(time.monotonic() - self.clock, 1e-9)

    def write(self, values: dict[str, Any]) -> None:
        """Write a line of the log, and send the numbers in it to the trackers."""
        entry = {"step": self.state.step, "minutes": round(self.state.minutes, 3), **values}
        self.state.history.append(entry)
        self.accelerator.log(dict(_numbers(values)), step=self.state.step)
        if not self.is_main:
            return
        with self._disk_errors(), self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if "loss" in values:
            logger.info(
                "step %d  %.1f min  loss %.5f  lr %.2e  %.1f images/s",
                *(entry[key] for key in ("step", "minutes", "loss", "lr", "images_per_second")),
            )

    def write_pictures(self, pictures: dict[str, UInt8[np.ndarray, "n y x"]]) -> None:
        """Write PNG files ``pictures/<step>_<name>.png``, and send pictures to the trackers that take them."""
        from PIL import Image

        if not self.is_main:
            return
        folder = self.output_dir / "pictures"
        for name, images in pictures.items():
            with self._disk_errors():
                folder.mkdir(exist_ok=True)
                Image.fromarray(tile(images)).save(folder / f"{self.state.step:07d}_{name}.png")
            for tracker in self.accelerator.trackers:
                _send_pictures(tracker, name, images, self.state.step)

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def _disk_errors(self) -> Any:
        return disk_errors(f"The log in {self.output_dir}", "Continue by --resume-from-checkpoint latest.")


def _numbers(values: dict[Any, Any], prefix: str = "") -> list[tuple[str, float]]:
    numbers: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            numbers += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            numbers.append((f"{prefix}{key}", float(value)))
    return numbers


def _send_pictures(tracker: Any, name: str, images: UInt8[np.ndarray, "n y x"], step: int) -> None:
    if tracker.name == "tensorboard":
        tracker.log_images({name: images[..., None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: list(images)}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Image(tile(images)[..., None].repeat(3, axis=-1))}, step=step)
