"""Train the diffusion prior on the fully sampled slices of a data set in the SKM-TEA layout.

    python training/train_prior.py --data_dir DIR --output_dir runs/prior --max_train_minutes 60

or, on several devices, ``accelerate launch training/train_prior.py ...``. Leaves ``unet/`` (averaged weights),
``scheduler/``, ``training_record.json``, ``log.jsonl`` and ``checkpoint-<step>/`` in the output folder. The paper's
settings are ``--preset paper --train_batch_size 2 --max_train_steps 1000000``.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from sgr_diffusers.data.skm_tea import SkmTeaSlices, list_scans
from sgr_diffusers.data.transforms import draw_flips, draw_shifts, draw_uniform, mirror, rotate_phase, shift
from sgr_diffusers.models.denoising import (
    TIMESTEP_SAMPLING,
    denoising_errors,
    denoising_loss,
    draw_timesteps,
    timestep_density,
)
from sgr_diffusers.models.prior import PREDICTION_TYPES, PRIOR_PRESETS, create_prior, create_scheduler
from sgr_diffusers.training.files import write_json
from sgr_diffusers.training.log import Validation
from sgr_diffusers.training.loop import fit
from sgr_diffusers.training.machine import create_accelerator
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.record import training_record
from sgr_diffusers.training.seeds import step_generator

logger = logging.getLogger("train_prior")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder in the SKM-TEA layout")
    parser.add_argument("--preset", default="small", choices=PRIOR_PRESETS, help="network (default: %(default)s)")
    parser.add_argument("--block_out_channels", type=int, nargs="+", help="instead of the preset's")
    parser.add_argument("--layers_per_block", type=int, help="instead of the preset's")
    parser.add_argument("--dropout", type=float, help="instead of the preset's")
    parser.add_argument(
        "--init_from", help="folder of a prior (a pipeline, or its `unet`) whose weights to start from"
    )
    parser.add_argument("--prediction_type", default="epsilon", choices=PREDICTION_TYPES)
    parser.add_argument(
        "--snr_gamma", type=float, help="min-SNR weighting of the loss, or of the timesteps drawn; 5 in its paper"
    )
    parser.add_argument(
        "--timestep_sampling",
        default="stratified",
        choices=TIMESTEP_SAMPLING,
        help="importance: draw timesteps by their min-SNR weight instead of multiplying by it",
    )
    parser.add_argument("--size", type=int, nargs=2, help="crop or pad slices to (y, x); needed where scans differ")
    parser.add_argument("--echo", type=int, default=1, help="echo to train on (default: %(default)s)")
    parser.add_argument("--no_preload", action="store_true", help="read slices from disk instead of holding them all")
    parser.add_argument("--no_mirror", action="store_true", help="do not mirror left and right")
    parser.add_argument("--no_phase", action="store_true", help="do not rotate the global phase")
    parser.add_argument("--max_shift", type=int, nargs=2, default=(0, 0), help="random displacement (y, x) in pixels")
    parser.add_argument("--validation_slices", type=int, default=48)
    parser.add_argument(
        "--validation_timesteps", type=int, nargs="+", default=[10, 50, 100, 200, 300, 400, 500, 600, 750, 900]
    )
    TrainingOptions.add_arguments(parser, output_dir="runs/prior", learning_rate=4e-4, lr_warmup_steps=200)
    return parser.parse_args(arguments)


def create_model(args: argparse.Namespace) -> UNet2DModel:
    """The network to train, new or from a folder."""
    if args.init_from:
        folder = Path(args.init_from)
        return UNet2DModel.from_pretrained(folder / "unet" if (folder / "unet").is_dir() else folder)
    overrides = {
        key: getattr(args, key)
        for key in ("block_out_channels", "layers_per_block", "dropout")
        if getattr(args, key) is not None
    }
    # The noise is what is trained here; the paper's checkpoint carries two more channels for a learned sigma.
    return create_prior(args.preset, **{**overrides, "out_channels": 2})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Parse, load, train, write. Returns the training record."""
    args = parse_arguments(arguments)
    options = TrainingOptions.from_arguments(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # else four lines a checkpoint
    accelerator = create_accelerator(options)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = create_model(args)
    scheduler = create_scheduler(args.prediction_type)
    scheduler.save_pretrained(Path(options.output_dir) / "scheduler")

    dataset = SkmTeaSlices(
        list_scans(args.data_dir, "train"),
        echo=args.echo,
        with_labels=False,
        preload=not args.no_preload,
        size=args.size,
    )
    held_out = SkmTeaSlices(list_scans(args.data_dir, "val"), echo=args.echo, with_labels=False, size=dataset.size)
    chosen = np.linspace(0, len(held_out) - 1, min(args.validation_slices, len(held_out))).round().astype(int)
    validation_images = torch.stack([held_out[index]["image"] for index in chosen.tolist()]).to(accelerator.device)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "%d parameters, %d slices of %s from %d scans", n_parameters, len(dataset), dataset.size, len(dataset.scans)
    )

    gamma, density = args.snr_gamma, None
    if args.timestep_sampling == "importance":
        density, gamma = timestep_density(scheduler, 5 if gamma is None else gamma), None

    def compute_loss(network: torch.nn.Module, batch: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
        images = batch["image"]
        n = len(images)
        if not args.no_mirror:
            images = mirror(images, draw_flips(n, 0.5, generator))
        if any(args.max_shift):
            images = shift(images, draw_shifts(n, tuple(args.max_shift), generator))
        if not args.no_phase:
            images = rotate_phase(images, draw_uniform(n, 0, 2 * torch.pi, generator))
        n_timesteps = scheduler.config.num_train_timesteps
        timesteps = draw_timesteps(n, n_timesteps, generator, args.timestep_sampling, density)
        noise = torch.randn(images.shape, generator=generator).to(images)
        return denoising_loss(network, scheduler, images, noise, timesteps.to(images.device), gamma)

    def validate(network: torch.nn.Module) -> Validation:
        generator = step_generator(options.seed, 0)
        table = denoising_errors(network, scheduler, validation_images, args.validation_timesteps, generator)
        logger.info("validation  t        %s", " ".join(f"{timestep:8d}" for timestep in table))
        for key in ("eps_mse", "x0_mse"):
            logger.info("validation  %-8s %s", key, " ".join(f"{row[key]:8.5f}" for row in table.values()))
        mean = float(np.mean([row["eps_mse"] for row in table.values()]))
        logger.info("validation  mean eps_mse %.5f", mean)
        return Validation({"val_eps_mse": mean, "val_errors": table})

    state = fit(
        model,
        dataset,
        compute_loss,
        options,
        accelerator,
        name="unet",
        foreground=dataset.foreground if options.foreground_fraction else None,
        validate=validate,
    )
    record = {
        **training_record(options, state, accelerator, arguments=vars(args)),
        "data": {"data_dir": str(args.data_dir), "scans": len(dataset.scans), "slices": len(dataset)},
        "parameters": n_parameters,
    }
    if accelerator.is_main_process:
        write_json(Path(options.output_dir) / "training_record.json", record)
    accelerator.end_training()
    return record


if __name__ == "__main__":
    main()
