"""Train the segmentation model on the fully sampled slices of a data set in the SKM-TEA layout.

    python training/train_segmentation.py --data-dir DIR --output-dir runs/segmentation --max-train-minutes 20

or, on several devices, ``accelerate-launch --config_file training/accelerate_configs/multi_gpu.yaml
training/train_segmentation.py ...``. Leaves ``segmentation_model/`` (averaged weights), ``segmentation_model_best/``
(best mean of the Dice medians on the validation scans), ``training_record.json``, ``log.jsonl`` and
``checkpoint-<step>/`` in the output folder. As in the paper, 40 % of the slices are drawn from those that show a
tissue class, and images are mirrored and given Gaussian noise. ``--adversarial-fraction 1`` trains a robust model:
on images changed within a radius so that the model segments them wrongly; the best one is then best under attack.
"""

import argparse
from typing import Any

import torch

from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training.adversarial import ATTACK_NORMS
from sgr_diffusers.training.data import add_data_arguments, check_shift, read_selection, scans_of, slices_of
from sgr_diffusers.training.machine import create_accelerator
from sgr_diffusers.training.options import TrainingOptions, given_architecture, parse_with_settings
from sgr_diffusers.training.segmentation_task import (
    Attack,
    SegmentationLoss,
    SegmentationValidation,
    check_segmentation_model,
)
from sgr_diffusers.training.session import run_training, start_logging
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

# What the paper says of its training (section 4): foreground oversampling, mirroring, Gaussian noise. The authors'
# code averages over four flips and adds noise of 0.05.
SETTINGS = {
    "paper": {
        "foreground_fraction": 0.4,
        "mirror_axes": "both",
        "flip_average": True,
        "max_noise": 0.05,
        "gain_range": 0.0,
        "max_shift": (0, 0),
        "max_turn": 0.0,
        "zoom_range": 0.0,
    }
}
RECIPE = (
    "flip_average mirror_axes max_shift max_turn zoom_range max_noise gain_range slices min_foreground "
    "adversarial_fraction adversarial_norm adversarial_radius adversarial_steps"
).split()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    add_data_arguments(parser)
    parser.add_argument(
        "--channels", type=int, nargs="+", help="number of channels of each level (default: 16 32 64 128 256)"
    )
    parser.add_argument("--strides", type=int, nargs="+", help="strides between the levels (default: 2 2 2 2)")
    parser.add_argument("--num-res-units", type=int, help="number of residual units of each level (default: 2)")
    parser.add_argument("--dropout", type=float, help="share of the channels that is dropped (default: 0)")
    parser.add_argument("--flip-average", action="store_true", help="the model averages over four flips when used")
    parser.add_argument("--init-from", help="folder of a segmentation model whose weights to start from")
    parser.add_argument(
        "--mirror-axes",
        default="x",
        choices=("none", "x", "both"),
        help="axes along which slices are mirrored; x is left-right",
    )
    parser.add_argument("--max-turn", type=float, default=0.0, help="largest random turn, in degrees (default: none)")
    parser.add_argument(
        "--zoom-range",
        type=float,
        default=0.0,
        help="largest deviation from 1 of a random enlargement (default: none)",
    )
    parser.add_argument("--max-noise", type=float, default=0.05, help="largest standard deviation of Gaussian noise")
    parser.add_argument(
        "--gain-range", type=float, default=0.15, help="largest deviation from 1 of a factor on the image"
    )
    attack = parser.add_argument_group("adversarial training (multi-step projected gradient descent on the image)")
    attack.add_argument("--adversarial-fraction", type=float, default=0.0, help="share of each batch that is attacked")
    attack.add_argument("--adversarial-norm", default="linf", choices=ATTACK_NORMS)
    attack.add_argument(
        "--adversarial-radius", type=float, default=0.05, help="radius of an attack, in units of the 0.99 quantile"
    )
    attack.add_argument(
        "--adversarial-steps", type=int, default=5, help="number of forward and backward passes of an attack"
    )
    attack.add_argument("--adversarial-validation-slices", type=int, default=64)
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
    args = parse_with_settings(parser, SETTINGS, arguments)
    if args.flip_average and args.mirror_axes != "both":
        parser.error("--flip-average shows the network images mirrored along both axes: add --mirror-axes both")
    return args


def create_model(args: argparse.Namespace, class_names: tuple[str, ...]) -> SegmentationUNet:
    """Create the network to train, new or from a folder."""
    architecture = given_architecture(args, ("channels", "strides", "num_res_units", "dropout"))
    if args.init_from:
        return SegmentationUNet.from_pretrained(args.init_from, flip_average=args.flip_average)
    return SegmentationUNet(class_names, flip_average=args.flip_average, **architecture)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Parse, load, train, write. Returns the training record."""
    args = parse_arguments(arguments)
    options = TrainingOptions.from_arguments(args)
    start_logging()
    attack = None
    if args.adversarial_fraction:
        attack = Attack(
            args.adversarial_fraction, args.adversarial_norm, args.adversarial_radius, args.adversarial_steps
        )
    accelerator = create_accelerator(options)
    class_names = scans_of(args.data_dir, "train")[0].class_names
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = create_model(args, class_names)
    check_segmentation_model(model, class_names)

    selection = read_selection(args.slices, args.min_foreground)
    common = {"echo": args.echo, "preload": not args.no_preload, "skip_memory_check": options.skip_memory_check}
    dataset = slices_of(args.data_dir, "train", selection, size=args.size, **common)
    check_shift(args.max_shift, dataset.size)
    held_out = slices_of(args.data_dir, "val", size=dataset.size, **common)
    validation = SegmentationValidation(
        held_out, class_names, attack, args.adversarial_validation_slices, options.seed
    )
    return run_training(
        model,
        dataset,
        options,
        accelerator,
        args,
        RECIPE,
        compute_loss=SegmentationLoss(
            model,
            args.mirror_axes,
            args.max_shift,
            args.max_noise,
            args.gain_range,
            attack,
            args.max_turn,
            args.zoom_range,
        ),
        name="segmentation_model",
        foreground=dataset.foreground,
        validate=validation,
        keep_best=validation.main_result,
    )


if __name__ == "__main__":
    main()
