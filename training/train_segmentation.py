"""Train the segmentation model on the fully sampled slices of a data set in the SKM-TEA layout.

    python training/train_segmentation.py --data_dir DIR --output_dir runs/segmentation --max_train_minutes 20

or, on several devices, ``accelerate launch training/train_segmentation.py ...``. Leaves ``segmentation_model/``
(averaged weights), ``segmentation_model_best/`` (best mean of the Dice medians on the validation scans),
``training_record.json``, ``log.jsonl`` and ``checkpoint-<step>/`` in the output folder. As in the paper, 40 % of the
slices are drawn from those that show a tissue class, and images are mirrored and given Gaussian noise.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgr_diffusers.data.skm_tea import CLASS_NAMES, SkmTeaSlices, list_scans
from sgr_diffusers.data.transforms import (
    add_gaussian_noise,
    change_contrast,
    draw_flips,
    draw_shifts,
    draw_uniform,
    mirror,
    shift,
)
from sgr_diffusers.models.scan_dice import dice_per_scan, magnitude_of
from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training.files import write_json
from sgr_diffusers.training.log import Validation
from sgr_diffusers.training.loop import fit
from sgr_diffusers.training.machine import create_accelerator
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.record import training_record

logger = logging.getLogger("train_segmentation")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder in the SKM-TEA layout")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--strides", type=int, nargs="+", default=[2, 2, 2, 2])
    parser.add_argument("--num_res_units", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--flip_average", action="store_true", help="the model averages over four flips when used")
    parser.add_argument("--init_from", help="folder of a segmentation model whose weights to start from")
    parser.add_argument("--size", type=int, nargs=2, help="crop or pad slices to (y, x); needed where scans differ")
    parser.add_argument("--echo", type=int, default=1, help="echo to train on (default: %(default)s)")
    parser.add_argument("--no_preload", action="store_true", help="read slices from disk instead of holding them all")
    parser.add_argument("--mirror_axes", default="x", choices=("none", "x", "both"), help="x is left-right")
    parser.add_argument("--max_shift", type=int, nargs=2, default=(0, 0), help="random displacement (y, x) in pixels")
    parser.add_argument("--max_noise", type=float, default=0.05, help="largest standard deviation of Gaussian noise")
    parser.add_argument("--gain_range", type=float, default=0.15, help="the image is scaled by 1 ± this at most")
    parser.add_argument("--contrast_range", type=float, default=0.0, help="and raised to 1 ± this at most")
    TrainingOptions.add_arguments(
        parser,
        output_dir="runs/segmentation",
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=100,
        weight_decay=1e-4,
        train_batch_size=16,
        foreground_fraction=0.4,
        validation_steps=500,
    )
    args = parser.parse_args(arguments)
    if args.flip_average and args.mirror_axes != "both":
        parser.error("--flip_average shows the network images mirrored along both axes: add --mirror_axes both")
    return args


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Parse, load, train, write. Returns the training record."""
    from monai.losses import DiceCELoss

    args = parse_arguments(arguments)
    options = TrainingOptions.from_arguments(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # else four lines a checkpoint
    accelerator = create_accelerator(options)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        if args.init_from:
            model = SegmentationUNet.from_pretrained(args.init_from, flip_average=args.flip_average)
        else:
            architecture = ("channels", "strides", "num_res_units", "dropout", "flip_average")
            model = SegmentationUNet(CLASS_NAMES, **{key: getattr(args, key) for key in architecture})

    train_set = SkmTeaSlices(
        list_scans(args.data_dir, "train"), echo=args.echo, preload=not args.no_preload, size=args.size
    )
    held_out = SkmTeaSlices(
        list_scans(args.data_dir, "val"), echo=args.echo, preload=not args.no_preload, size=train_set.size
    )
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "%d parameters, %d slices of %s from %d scans, %.0f %% with a tissue class",
        *(n_parameters, len(train_set), train_set.size, len(train_set.scans), 100 * train_set.foreground.mean()),
    )
    # Dice over the batch: most slices lack some class, and Dice of a class that is absent says nothing.
    criterion = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)

    def compute_loss(network: torch.nn.Module, batch: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
        magnitude, labels = magnitude_of(batch["image"]), batch["labels"]
        n = len(labels)
        for axis in {"none": (), "x": (-1,), "both": (-1, -2)}[args.mirror_axes]:
            flips = draw_flips(n, 0.5, generator)
            magnitude, labels = mirror(magnitude, flips, axis), mirror(labels, flips, axis)
        if any(args.max_shift):
            shifts = draw_shifts(n, tuple(args.max_shift), generator)
            magnitude, labels = shift(magnitude, shifts), shift(labels, shifts)
        gains = draw_uniform(n, 1 - args.gain_range, 1 + args.gain_range, generator)
        exponents = draw_uniform(n, 1 - args.contrast_range, 1 + args.contrast_range, generator)
        magnitude = change_contrast(magnitude, gains, exponents)
        magnitude = add_gaussian_noise(magnitude, draw_uniform(n, 0, args.max_noise, generator), generator)
        return criterion(network(magnitude).float(), labels[:, None])

    def validate(network: torch.nn.Module) -> Validation:
        items = (held_out[index] for index in range(len(held_out)))
        per_scan = dice_per_scan(network, items, len(CLASS_NAMES))
        medians = np.nanmedian(np.stack(list(per_scan.values())), axis=0)
        logger.info(
            "validation  median Dice of %d scans  %s",
            *(len(per_scan), "  ".join(f"{key} {value:.4f}" for key, value in zip(CLASS_NAMES, medians, strict=True))),
        )
        results = {
            "val_dice": float(medians.mean()),
            "val_dice_median": dict(zip(CLASS_NAMES, medians.tolist(), strict=True)),
            "val_dice_per_scan": {scan_id: dice.round(4).tolist() for scan_id, dice in per_scan.items()},
        }
        return Validation(results)

    state = fit(
        model,
        train_set,
        compute_loss,
        options,
        accelerator,
        name="segmentation_model",
        foreground=train_set.foreground,
        validate=validate,
        keep_best="val_dice",
    )
    record = {
        **training_record(options, state, accelerator, arguments=vars(args)),
        "data": {"data_dir": str(args.data_dir), "scans": len(train_set.scans), "slices": len(train_set)},
        "parameters": n_parameters,
    }
    if accelerator.is_main_process:
        write_json(Path(options.output_dir) / "training_record.json", record)
    accelerator.end_training()
    return record


if __name__ == "__main__":
    main()
