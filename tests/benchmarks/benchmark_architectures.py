"""Trains priors that differ in one thing for the same time each, and compares their errors on held-out images.

    python tests/benchmarks/benchmark_architectures.py --minutes 6 --output architectures.csv

Each run draws the images of `training/train_varied.py` (synthetic knees and dead leaves), in its batches. The error is
the squared error of the denoised image at low noise (t <= 150) and at high noise, relative to the first run: geometric
mean over timesteps. Runs of minutes tell what learns fast. What is best after days can be another.

The first run also follows other averages of its weights than the one it keeps. They differ in nothing else.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers.training_utils import EMAModel

from sgr_diffusers.data.synthetic.anatomy_bank import render_bank
from sgr_diffusers.data.synthetic.appearance import VariedImages
from sgr_diffusers.models.prior import create_prior, create_scheduler
from sgr_diffusers.mri.operators import complex_to_channels
from sgr_diffusers.training.checkpoints import averaged_weights
from sgr_diffusers.training.loop import fit
from sgr_diffusers.training.machine import create_accelerator
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.prior_task import PriorValidation
from sgr_diffusers.training.session import start_logging
from sgr_diffusers.training.varied_task import Draws, VariedPriorLoss

CHANNELS = (32, 64, 128, 192)  # of the bundled prior
DOWN, UP = ("DownBlock2D",) * 3, ("UpBlock2D",) * 3
# name -> what differs: arguments of the network, of the loss, of the options
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "as bundled": ({}, {}, {}),
    "half as wide": ({"block_out_channels": (16, 32, 64, 96)}, {}, {}),
    "1.5 times as wide": ({"block_out_channels": (48, 96, 192, 288)}, {}, {}),
    "two layers a block": ({"layers_per_block": 2}, {}, {}),
    "five levels": ({"block_out_channels": (*CHANNELS, 256)}, {}, {}),
    "no attention": ({"add_attention": False}, {}, {}),
    "attention in the lowest blocks": (
        {"down_block_types": (*DOWN, "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", *UP)},
        {},
        {},
    ),
    "predicts the noise": ({}, {"prediction_type": "epsilon"}, {}),
    "timesteps drawn evenly": ({}, {"snr_gamma": None}, {}),
}
_FIRST = next(iter(VARIANTS))
# name -> arguments of `EMAModel`. A power of 1 is the power-function average of EDM2 (Karras et al., CVPR 2024), whose
# weights grow as step ** (inv_gamma - 1); the number in the name is its standard deviation over the steps taken.
AVERAGES: dict[str, dict[str, float]] = {
    "weights not averaged": {"decay": 0.0},
    "power-function average, 0.05": {"power": 1, "inv_gamma": 17.97},
    "power-function average, 0.10": {"power": 1, "inv_gamma": 7.94},
    "power-function average, 0.20": {"power": 1, "inv_gamma": 2.83},
}
TIMESTEPS = (1, 5, 20, 60, 150, 300, 500, 700, 900)
LOW_NOISE = 150
_HELD_OUT_SEED = 30_000_000


class AveragingLoss:
    """Compute a loss, and average the weights of the network at each step in several ways.

    Args:
        compute_loss: the loss.
        network: network whose weights are averaged.
    """

    def __init__(self, compute_loss: VariedPriorLoss, network: torch.nn.Module) -> None:
        """Start the averages from the weights of the network."""
        self.compute_loss, self.network = compute_loss, network
        self.averages = {
            name: EMAModel(network.parameters(), **{"decay": 1.0, **arguments}, use_ema_warmup=True, foreach=True)
            for name, arguments in AVERAGES.items()
        }

    def __call__(self, network: torch.nn.Module, batch: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
        """Take the weights into the averages, and return the loss."""
        for average in self.averages.values():
            average.step(self.network.parameters())
        return self.compute_loss(network, batch, generator)


def errors_of(
    name: str, source: VariedImages, held_out: torch.Tensor, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Train one variant, and return its number of steps and its errors of the denoised image.

    The first variant has a row for each of `AVERAGES`, too.
    """
    architecture, of_loss, of_options = VARIANTS[name]
    scheduler = create_scheduler(of_loss.get("prediction_type", "v_prediction"))
    gamma = of_loss.get("snr_gamma", VariedPriorLoss.snr_gamma)
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        network = create_prior("small", **{"block_out_channels": CHANNELS, "sample_size": (128, 128), **architecture})
    validation = PriorValidation(scheduler, held_out, TIMESTEPS, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "seed": args.seed,
            "max_train_minutes": args.minutes,
            "train_batch_size": args.train_batch_size,
            "mixed_precision": args.mixed_precision,
            "num_threads": args.num_threads,
            "learning_rate": 8e-4,
            "lr_scheduler": "trapezoidal",
            "lr_warmup_steps": 50,
            "lr_cooldown_fraction": 0.4,
            "ema_decay": 0.99,
            "logging_steps": 100,
            "validation_steps": 0,
            "checkpointing_steps": 10**6,
        }
        options = TrainingOptions(**{**settings, **of_options})
        loss = VariedPriorLoss(source, scheduler=scheduler, snr_gamma=gamma)
        averaging = AveragingLoss(loss, network) if name == _FIRST else None
        state = fit(network, Draws(100_000), averaging or loss, options, create_accelerator(options), "unet")
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    others = averaging.averages if averaging else {}
    rows = []
    for row_name, average in {name: None, **others}.items():
        with averaged_weights(network, average):
            table = validation(network).results["val_errors"]
        errors = {f"x0_mse_{timestep}": row["x0_mse"] for timestep, row in table.items()}
        rows.append({"variant": row_name, "parameters": n_parameters, "steps": state.step, **errors})
    return rows


def with_ratios(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Add the errors relative to those of the first row, at low and at high noise."""
    table = pd.DataFrame(rows)
    errors = table[[f"x0_mse_{timestep}" for timestep in TIMESTEPS]]
    ratios = np.log(errors / errors.iloc[0])
    is_low = np.array(TIMESTEPS) <= LOW_NOISE
    for name, chosen in (("low_noise_ratio", is_low), ("high_noise_ratio", ~is_low)):
        table[name] = np.exp(ratios.loc[:, chosen].mean(axis=1))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write after every run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="time of training of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--bank-slices", type=int, default=400)
    parser.add_argument("--validation-images", type=int, default=64)
    parser.add_argument("--train-batch-size", type=int, default=8)
    parser.add_argument("--mixed-precision", default="bf16", choices=("no", "bf16"))
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(arguments)
    start_logging()
    source = VariedImages(*render_bank(args.bank_slices, 10_000 * args.seed), None, VariedImages.shares, 0.25)
    fixed = VariedImages(*render_bank(min(16, args.validation_images), _HELD_OUT_SEED), None, (1, 1, 0, 0), 0)
    images, _ = fixed(torch.Generator().manual_seed(args.seed), args.validation_images, (128, 128))
    rows: list[dict[str, Any]] = []
    for name in args.variants:
        rows += errors_of(name, source, complex_to_channels(images), args)
        table = with_ratios(rows)
        table.to_csv(args.output, index=False, lineterminator="\n")
    columns = ["variant", "parameters", "steps", "low_noise_ratio", "high_noise_ratio"]
    print(table[columns].round(2).to_string(index=False))


if __name__ == "__main__":
    main()
