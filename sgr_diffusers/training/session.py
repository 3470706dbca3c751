"""Run a training with checked networks, data and losses, from the first look at the machine to the record."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import ModelMixin

from ..data.skm_tea import SkmTeaSlices, known_data
from ..utils.disk import disk_errors, only_run
from ..utils.files import write_json
from .data import describe_data
from .loop import fit
from .options import TrainingOptions
from .publish import create_repository, upload_run
from .record import training_record

__all__ = ["run_training", "start_logging"]

logger = logging.getLogger(__name__)


def start_logging() -> None:
    """Send the log of a training script to the console."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # else four lines a checkpoint


def run_training(
    model: ModelMixin,
    dataset: SkmTeaSlices,
    options: TrainingOptions,
    accelerator: Accelerator,
    args: argparse.Namespace,
    recipe: Sequence[str],
    **settings: Any,
) -> dict[str, Any]:
    """Check the repository, train, write ``training_record.json``, and publish if that is asked for.

    Args:
        model: model to be trained.
        dataset: data set to train it on.
        options: options of the run.
        accelerator: accelerator from `create_accelerator`.
        args: parsed command line, with `data_dir`, for the record.
        recipe: names of the script's own arguments that change what is learned: a resumed run must have the same.
        **settings: settings of `fit`.

    Returns:
        The record.

    Raises:
        FileExistsError: another run is writing to the folder, or it holds an earlier run that is not to be resumed.
        OSError: the Hub refuses or cannot be reached, or a disk is full.
    """
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "%d parameters, %d slices of %s from %d scans", n_parameters, len(dataset), dataset.size, len(dataset.scans)
    )
    repository = create_repository(options) if accelerator.is_main_process else None
    data = describe_data(dataset)
    identity = {**data, **{name: getattr(args, name) for name in recipe}}
    output_dir = Path(options.output_dir)
    with only_run(output_dir, "output_dir") if accelerator.is_main_process else nullcontext():
        state = fit(model, dataset, options=options, accelerator=accelerator, identity=identity, **settings)
    details = {
        "data": {
            **data,
            "data_dir": str(args.data_dir),
            "name": known_data(dataset.scans),
            "scans": len(dataset.scans),
            "slices": len(dataset),
        },
        "arguments": vars(args),
        "parameters": n_parameters,
    }
    record = training_record(options, state, accelerator, **details)
    if accelerator.is_main_process:
        path = output_dir / "training_record.json"
        with disk_errors(str(path), "The weights are written: free some space and continue from the last checkpoint."):
            write_json(path, record)
        upload_run(options, record, repository)
    accelerator.end_training()
    return record
