"""Parses the arguments of `sgr convert`, writes the converted folder and prints a summary."""

import argparse
from pathlib import Path

from ..utils.options import flag_of

__all__ = ["add_convert_arguments", "run_convert"]


def add_convert_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument("output", type=Path, metavar="OUT_DIR", help="folder to make")
    direction = command.add_mutually_exclusive_group(required=True)
    direction.add_argument("--prior", type=Path, metavar="FILE.pt", help="checkpoint of the authors' prior")
    direction.add_argument(
        "--to-authors",
        metavar="PIPELINE_DIR",
        help="convert this folder or Hub repository to prior.pt and segmentation.pt",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier run")
    command.add_argument(
        "--new-attention-order",
        action="store_true",
        help="the prior was trained (will be loaded) with use_new_attention_order",
    )
    prior = command.add_argument_group("what the checkpoint of the prior does not show")
    prior.add_argument(
        "--num-head-channels",
        type=int,
        metavar="N",
        help="number of channels of an attention head (default: 64 for the paper's architecture, else needed)",
    )
    prior.add_argument(
        "--sample-size", type=int, nargs=2, metavar=("Y", "X"), help="size of the training images, for the record"
    )
    prior.add_argument(
        "--prior-entry", metavar="NAME", help="name of the network in the file, if the file holds several"
    )
    segmentation = command.add_argument_group("segmentation network")
    segmentation.add_argument("--segmentation", type=Path, metavar="FILE.pt", help="checkpoint of a MONAI UNet")
    segmentation.add_argument(
        "--class-names",
        nargs="+",
        metavar="NAME",
        help="names of the output channels without the background (default: SKM-TEA's, for five channels)",
    )
    segmentation.add_argument(
        "--strides",
        type=int,
        nargs="+",
        metavar="N",
        help="strides between the levels (default: 2 where the weights do not show a 1)",
    )
    segmentation.add_argument(
        "--flip-average", action="store_true", help="average over four flips of the image, as the authors' code does"
    )
    segmentation.add_argument("--segmentation-entry", metavar="NAME", help="name of the network in the file")


def run_convert(args: argparse.Namespace) -> None:
    """Convert in the direction asked for, and say what was found.

    Raises:
        ValueError: an argument does not belong to the direction, or the conversion is refused.
    """
    from ..pipeline.convert import convert_from_authors, convert_to_authors

    _refuse_idle_arguments(args)
    if args.to_authors is not None:
        record = convert_to_authors(args.to_authors, args.output, args.new_attention_order, args.overwrite)
    else:
        record = convert_from_authors(
            args.prior,
            args.output,
            args.segmentation,
            num_head_channels=args.num_head_channels,
            new_attention_order=args.new_attention_order,
            sample_size=None if args.sample_size is None else tuple(args.sample_size),
            class_names=args.class_names,
            strides=args.strides,
            flip_average=args.flip_average,
            prior_entry=args.prior_entry,
            segmentation_entry=args.segmentation_entry,
            overwrite=args.overwrite,
        )
    for name in ("prior", "segmentation"):
        if name in record:
            print(f"{name}: " + ", ".join(f"{key} {_text(value)}" for key, value in record[name].items()))
    print(f"Written to {args.output}")


def _refuse_idle_arguments(args: argparse.Namespace) -> None:
    """An argument without effect is a mistake: of the other direction, or of a network that is not there."""
    of_segmentation = ("class_names", "strides", "flip_average", "segmentation_entry")
    idle = []
    if args.to_authors is not None:
        idle = ["segmentation", "num_head_channels", "sample_size", "prior_entry", *of_segmentation]
    elif args.segmentation is None:
        idle = list(of_segmentation)
    given = [flag_of(name) for name in idle if getattr(args, name) not in (None, False)]
    if given:
        reason = "--prior" if args.to_authors is not None else "--segmentation FILE.pt"
        raise ValueError(f"{', '.join(given)}: has an effect only with {reason}.")


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
