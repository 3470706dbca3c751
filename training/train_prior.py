"""Train the diffusion prior on the fully sampled slices of a data set in the SKM-TEA layout.

    python training/train_prior.py --data-dir DIR --output-dir runs/prior --max-train-minutes 60

or, on several devices, ``accelerate-launch --config_file training/accelerate_configs/multi_gpu.yaml
training/train_prior.py ...``. Leaves ``unet/`` (averaged weights), ``scheduler/``, ``training_record.json``,
``log.jsonl``, ``pictures/`` and ``checkpoint-<step>/`` in the output folder. The paper's training is
``--settings paper``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel

from sgr_diffusers.models.prior import PREDICTION_TYPES, PRIOR_PRESETS, create_prior, create_scheduler
from sgr_diffusers.training.data import add_data_arguments, check_shift, read_selection, slices_of, whole_number_from
from sgr_diffusers.training.machine import create_accelerator
from sgr_diffusers.training.options import TrainingOptions, given_architecture, parse_with_settings
from sgr_diffusers.training.prior_loss import TIMESTEP_SAMPLING
from sgr_diffusers.training.prior_task import PriorLoss, PriorPictures, PriorValidation, check_prior
from sgr_diffusers.training.session import run_training, start_logging
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

# What the paper says of its training (section 4), and for the rest the defaults of the guided diffusion it builds on.
# Slices are always divided by the 0.99 quantile of their magnitude. It names no augmentation of the prior's slices.
SETTINGS = {
    "paper": {
        "preset": "paper",
        "prediction_type": "epsilon",
        "train_batch_size": 2,
        "max_train_steps": 1_000_000,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 0,
        "ema_decay": 0.9999,
        "timestep_sampling": "uniform",
        "max_grad_norm": 0.0,
        "no_mirror": True,
        "no_phase": True,
    }
}
ARCHITECTURE = ("block_out_channels", "attention_head_dim", "dropout")
RECIPE = ("prediction_type snr_gamma timestep_sampling no_mirror no_phase max_shift slices min_foreground").split()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    add_data_arguments(parser)
    parser.add_argument("--preset", default="small", choices=PRIOR_PRESETS, help="network")
    parser.add_argument(
        "--block-out-channels", type=int, nargs="+", help="number of channels of each level (default: the preset's)"
    )
    parser.add_argument(
        "--attention-head-dim", type=int, help="number of channels of an attention head (default: the preset's)"
    )
    parser.add_argument("--dropout", type=float, help="share of the channels that is dropped (default: the preset's)")
    parser.add_argument(
        "--init-from", help="folder of a prior (a pipeline, or its `unet`) whose weights to start from"
    )
    parser.add_argument(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        help="what the prior predicts (default: as --init-from does, or epsilon)",
    )
    parser.add_argument(
        "--snr-gamma",
        type=float,
        help="gamma of the min-SNR weights of the loss, or of the timesteps that are drawn; 5 in the paper on it",
    )
    parser.add_argument(
        "--timestep-sampling",
        default="stratified",
        choices=TIMESTEP_SAMPLING,
        help="draw of the timesteps; importance: by their min-SNR weights",
    )
    parser.add_argument("--no-mirror", action="store_true", help="do not mirror left and right")
    parser.add_argument("--no-phase", action="store_true", help="do not rotate the global phase")
    parser.add_argument("--validation-slices", type=whole_number_from(1), default=48)
    parser.add_argument(
        "--validation-timesteps", type=int, nargs="+", default=[10, 50, 100, 200, 300, 400, 500, 600, 750, 900]
    )
    parser.add_argument(
        "--validation-samples", type=int, default=4, help="number of unconditional samples that are drawn as pictures"
    )
    parser.add_argument(
        "--validation-pictures", type=int, default=2, help="number of reconstructions that are drawn as pictures"
    )
    parser.add_argument(
        "--validation-inference-steps",
        type=int,
        default=25,
        help="number of reverse steps of samples and reconstructions",
    )
    TrainingOptions.add_arguments(parser, output_dir="runs/prior", learning_rate=4e-4, lr_warmup_steps=200)
    return parse_with_settings(parser, SETTINGS, arguments)


def prior_folder(path: str) -> Path:
    """Return the folder of a prior's network: that of a pipeline or of a run holds it as `unet`."""
    return Path(path, "unet") if Path(path, "unet").is_dir() else Path(path)


def choose_prediction_type(given: str | None, init_from: str | None) -> str:
    """Choose the prediction type: as asked for; a prior that starts from another must keep that prior's.

    Raises:
        ValueError: it is another.
    """
    scheduler = prior_folder(init_from).parent / "scheduler" if init_from else None
    if scheduler is None or not scheduler.is_dir():
        return given or "epsilon"
    trained_type = DDIMScheduler.load_config(scheduler).get("prediction_type", "epsilon")
    if given not in (None, trained_type):
        raise ValueError(f"`init_from` {init_from} predicts {trained_type}, not {given}: leave out --prediction-type.")
    return trained_type


def create_model(args: argparse.Namespace) -> UNet2DModel:
    """Create the network to train, new or from a folder."""
    overrides = given_architecture(args, ARCHITECTURE)
    if args.init_from:
        return UNet2DModel.from_pretrained(prior_folder(args.init_from))
    # The noise is what is trained here; the paper's checkpoint carries two more channels for a learned sigma.
    return create_prior(args.preset, **{**overrides, "out_channels": 2})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Parse, load, train, write. Returns the training record."""
    args = parse_arguments(arguments)
    options = TrainingOptions.from_arguments(args)
    args.prediction_type = choose_prediction_type(args.prediction_type, args.init_from)
    start_logging()
    accelerator = create_accelerator(options)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = create_model(args)
    scheduler = create_scheduler(args.prediction_type)

    selection = read_selection(args.slices, args.min_foreground)
    common = {"echo": args.echo, "with_labels": False}
    dataset = slices_of(
        args.data_dir,
        "train",
        selection,
        options.skip_memory_check,
        preload=not args.no_preload,
        size=args.size,
        **common,
    )
    check_prior(model, dataset.size)
    check_shift(args.max_shift, dataset.size)
    held_out = slices_of(args.data_dir, "val", size=dataset.size, **common)
    chosen = np.linspace(0, len(held_out) - 1, min(args.validation_slices, len(held_out))).round().astype(int)
    images = torch.stack([held_out[index]["image"] for index in chosen.tolist()]).to(accelerator.device)
    pictures = PriorPictures(
        held_out.scans,
        args.validation_samples,
        args.validation_pictures,
        args.validation_inference_steps,
        dataset.size,
        args.echo,
        options.seed,
    )
    return run_training(
        model,
        dataset,
        options,
        accelerator,
        args,
        RECIPE,
        compute_loss=PriorLoss(
            scheduler, args.snr_gamma, args.timestep_sampling, not args.no_mirror, not args.no_phase, args.max_shift
        ),
        name="unet",
        companions={"scheduler": scheduler},
        foreground=dataset.foreground if options.foreground_fraction else None,
        validate=PriorValidation(scheduler, images, args.validation_timesteps, options.seed, pictures),
    )


if __name__ == "__main__":
    main()
