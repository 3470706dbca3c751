"""Train the general prior, or a segmentation network of knees, on images of varied appearance.

    python training/train_varied.py --network prior --pictures brain_t1c.h5 --folds 1 2 --output-dir runs/general

Images are drawn on the device of the network: synthetic knees in any pose, contrast, texture and resolution, dead
leaves, and crops of the pictures that are given. The folder is left as by `train_prior.py`, and training resumes by
`--resume-from-checkpoint latest`. On a GPU, `--train-batch-size 192 --mixed-precision bf16`; compiling took a GPU
longer (two minutes for each size of the images) than it saved in ten minutes of training.
"""

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from diffusers import ModelMixin

from sgr_diffusers.data.skm_tea import CLASS_NAMES
from sgr_diffusers.data.synthetic.anatomy_bank import balanced_order, render_bank
from sgr_diffusers.data.synthetic.appearance import VariedImages
from sgr_diffusers.models.prior import create_prior, create_scheduler
from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.mri.operators import complex_to_channels
from sgr_diffusers.training.loop import fit
from sgr_diffusers.training.machine import create_accelerator
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.prior_task import PriorValidation
from sgr_diffusers.training.record import training_record
from sgr_diffusers.training.session import start_logging
from sgr_diffusers.training.varied_task import Draws, VariedDice, VariedPriorLoss, VariedSegmentationLoss
from sgr_diffusers.utils.disk import only_run
from sgr_diffusers.utils.files import whole_file, write_json
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

_IMAGES_PER_EPOCH = 100_000
_HELD_OUT_SEED = 10_000_000  # no knee of a training bank has the seed of a held-out one
_VALIDATION_TIMESTEPS = (1, 5, 20, 60, 150, 300, 500, 700, 900)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--network", choices=("prior", "segmentation"), required=True, help="network to train")
    parser.add_argument("--channels", type=int, nargs="+", help="feature channels of each level of the network")
    parser.add_argument("--init-from", help="folder of a network, or of a pipeline, whose weights to start from")
    parser.add_argument("--pictures", help="HDF5 file whose data set `image` (n, y, x) holds uint8 pictures")
    parser.add_argument("--folds", type=int, nargs="+", help="take pictures whose `fold` is one of these")
    parser.add_argument("--noisy-share", type=float, default=0.25, help="share of images with noise")
    parser.add_argument(
        "--snr-gamma",
        type=float,
        default=VariedPriorLoss.snr_gamma,
        help="gamma of the min-SNR weights by which timesteps of the prior are drawn; the larger, the less noise",
    )
    parser.add_argument("--bank-slices", type=int, default=1000, help="slices of synthetic knees")
    parser.add_argument("--bank", help="file that keeps these slices for the next run (default: OUTPUT_DIR/bank.npz)")
    parser.add_argument("--validation-images", type=int, default=32, help="images of each validation")
    TrainingOptions.add_arguments(parser, output_dir="runs/varied", learning_rate=8e-4, lr_warmup_steps=300)
    return parser.parse_args(arguments)


def read_pictures(path: str | None, folds: list[int] | None) -> torch.Tensor | None:
    """Read the pictures `(n, y, x)` of the folds asked for; `None` without a file."""
    if path is None:
        return None
    with h5py.File(path) as file:
        images = file["image"][:]
        chosen = np.isin(file["fold"][:], folds) if folds else np.ones(len(images), bool)
    return torch.from_numpy(images[chosen])


def kept_bank(path: Path, n_slices: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a bank of synthetic knees from a file, or render it and write the file where there is none.

    Raises:
        ValueError: if the file holds another bank.
    """
    if not path.exists():
        regions, pictures = render_bank(n_slices, seed)
        with whole_file(path) as partial:
            np.savez_compressed(partial, regions=regions, pictures=pictures, seed=seed)
    with np.load(path) as bank:
        if (len(bank["regions"]), int(bank["seed"])) != (n_slices, seed):
            raise ValueError(
                f"{path} holds {len(bank['regions'])} slices of seed {int(bank['seed'])}, and --bank-slices "
                f"and --seed ask for {n_slices} of seed {seed}. Pass the same values, or another --bank."
            )
        return torch.from_numpy(bank["regions"]), torch.from_numpy(bank["pictures"])


def create_network(args: argparse.Namespace) -> ModelMixin:
    """Create the network, with the weights of a folder if one is given."""
    if args.network == "prior":
        channels = tuple(args.channels or (32, 64, 128, 192))
        network = create_prior("small", block_out_channels=channels, sample_size=(128, 128))
    else:
        channels = tuple(args.channels or (24, 48, 96, 192, 256))
        network = SegmentationUNet(CLASS_NAMES, channels=channels, strides=(2,) * (len(channels) - 1))
    if args.init_from:
        part = Path(args.init_from, "unet" if args.network == "prior" else "segmentation_model")
        folder = part if part.is_dir() else args.init_from
        network.load_state_dict(type(network).from_pretrained(folder).state_dict())
    return network


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Render the bank, train, and write the record, which is returned."""
    args = parse_arguments(arguments)
    options = TrainingOptions.from_arguments(args)
    start_logging()
    accelerator = create_accelerator(options)
    device = accelerator.device
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = create_network(args)
    pictures = read_pictures(args.pictures, args.folds)
    bank_path = Path(args.bank or Path(options.output_dir, "bank.npz"))
    bank = kept_bank(bank_path, args.bank_slices, 10_000 * options.seed)
    if args.network == "segmentation":
        order = balanced_order(bank[0], torch.Generator().manual_seed(options.seed))
        bank = tuple(part[order] for part in bank)
    held_out = render_bank(min(16, args.validation_images), _HELD_OUT_SEED)
    shares = VariedImages.shares if args.network == "prior" else (0.75, 0.25, 0, 0)
    source = VariedImages(
        *(part.to(device) for part in bank),
        None if pictures is None else pictures.to(device),
        shares,
        args.noisy_share,
    )
    fixed = VariedImages(*(part.to(device) for part in held_out), None, (1, 1, 0, 0), 0)
    images, labels = fixed(torch.Generator(device).manual_seed(options.seed), args.validation_images, (128, 128))
    if args.network == "prior":
        scheduler = create_scheduler("v_prediction")
        task = {
            "compute_loss": VariedPriorLoss(source, scheduler=scheduler, snr_gamma=args.snr_gamma),
            "validate": PriorValidation(scheduler, complex_to_channels(images), _VALIDATION_TIMESTEPS, options.seed),
            "name": "unet",
            "companions": {"scheduler": scheduler},
        }
    else:
        task = {
            "compute_loss": VariedSegmentationLoss(source),
            "validate": VariedDice(images.abs()[:, None], labels, CLASS_NAMES),
            "name": "segmentation_model",
        }
    data = {"bank_slices": args.bank_slices, "noisy_share": args.noisy_share, "folds": args.folds}
    if args.network == "prior":
        data["snr_gamma"] = args.snr_gamma
    data |= {"pictures": 0 if pictures is None else len(pictures)}
    output_dir = Path(options.output_dir)
    with only_run(output_dir, "output_dir"):
        state = fit(network, Draws(_IMAGES_PER_EPOCH), options=options, accelerator=accelerator, identity=data, **task)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    record = training_record(options, state, accelerator, data=data, arguments=vars(args), parameters=n_parameters)
    write_json(output_dir / "training_record.json", record)
    accelerator.end_training()
    return record


if __name__ == "__main__":
    main()
