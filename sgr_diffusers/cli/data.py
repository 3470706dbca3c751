"""Parses the arguments of `sgr synthesize` and `sgr data`, and makes data sets, a table or a picture.

Only parsing is here; what is heavy is imported by the command that needs it.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from ..pipeline.settings import whole_number
from .options import add_command, add_group, parser_of

__all__ = ["add_data", "add_synthesize"]

_FROM_ZERO, _FROM_ONE = (parser_of(whole_number(least)) for least in (0, 1))


def add_synthesize(commands: Any) -> None:
    """Add `sgr synthesize` to the subparsers of `sgr`."""
    command = add_command(
        commands,
        "synthesize",
        _run_synthesize,
        "Write a data set of synthetic knees in the SKM-TEA layout; an interrupted run goes on where it was",
        "sgr synthesize runs/knee --scans 100 8 16 --workers 2",
    )
    command.add_argument("output", type=Path, metavar="OUT", help="folder of the data set")
    three: dict[str, Any] = {"nargs": 3, "metavar": ("X", "Y", "Z")}
    command.add_argument(
        "--scans",
        type=int,
        nargs=3,
        default=[100, 8, 16],
        metavar=("TRAIN", "VAL", "TEST"),
        help="number of scans in each split (default: 100 8 16)",
    )
    command.add_argument(
        "--calibration-scans", type=int, metavar="N", help="number of scans to calibrate bounds with (default: none)"
    )
    command.add_argument(
        "--matrix",
        type=int,
        default=[64, 96, 80],
        help="number of slices, rows and columns (default: 64 96 80)",
        **three,
    )
    command.add_argument(
        "--voxel-size",
        type=float,
        default=[2.5, 1.6, 1.6],
        help="edge lengths of a voxel in mm (default: 2.5 1.6 1.6)",
        **three,
    )
    command.add_argument("--coils", type=int, default=8, help="number of receive coils")
    command.add_argument(
        "--appearance",
        choices=("standard", "varied"),
        default="standard",
        help="contrast, texture and pose: of qDESS scans, or drawn anew for every scan",
    )
    command.add_argument(
        "--echoes", type=int, choices=(1, 2), help="number of echoes (default: 2; 1 with --appearance varied)"
    )
    command.add_argument("--snr", type=float, default=100.0, help="signal over noise of the fully sampled image")
    command.add_argument(
        "--finding-probability", type=float, default=0.12, help="probability of each rare finding in a scan"
    )
    command.add_argument("--seed", type=_FROM_ZERO, default=0, help="seed of the data set")
    command.add_argument("--workers", type=_FROM_ONE, default=1, help="number of processes")


def add_data(commands: Any) -> None:
    """Add `sgr data` and its parts to the subparsers of `sgr`."""
    parts = add_group(
        commands, "data", "Fetch, check and look at data in the SKM-TEA layout", "sgr data check runs/knee"
    )
    command = add_command(
        parts,
        "fetch-mini",
        _run_data_fetch_mini,
        "Fetch the four scans of SKM-TEA that are on the Hub; an interrupted run goes on where it was",
        "sgr data fetch-mini --output runs/mini",
    )
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to unpack to (default: beside the cache of the Hub)"
    )
    command.add_argument("--repo", metavar="NAME", help="dataset repository (default: arjundd/skm-tea-mini)")
    command.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    command.add_argument("--keep-tarballs", action="store_true", help="keep the tarballs once they are unpacked")
    command = add_command(
        parts,
        "check",
        _run_data_check,
        "List the scans of a folder: sizes, masks, what is missing or damaged",
        "sgr data check runs/knee --read",
    )
    command.add_argument("data", type=Path, metavar="DATA_DIR", help="folder in the SKM-TEA layout")
    command.add_argument("--read", action="store_true", help="also read every slice, which can take long")
    command = add_command(
        parts,
        "preview",
        _run_data_preview,
        "Draw slices of a scan with their segmentation, to look at before training on them",
        "sgr data preview runs/knee --split test --scan 0 --output preview.png",
    )
    command.add_argument("data", type=Path, metavar="DATA_DIR", help="folder in the SKM-TEA layout")
    command.add_argument("--split", default="train", help="name of the split")
    command.add_argument("--scan", type=int, default=0, help="number of the scan within the split")
    command.add_argument("--n-slices", type=int, default=16, help="number of slices, spread over the scan")
    command.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="picture to write")

    command = add_command(
        parts,
        "import-brain-tumour",
        _run_data_import_brain_tumour,
        "Bring J. Cheng's public brain tumour data set into the SKM-TEA layout; phase, coils, noise and masks are "
        "simulated",
        "sgr data import-brain-tumour downloads/brain_tumor --output runs/brain",
    )
    command.add_argument("source", type=Path, metavar="FOLDER", help="the unpacked .mat files, with cvind.mat")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the data set")
    command.add_argument("--coils", type=int, default=8, help="number of receive coils")
    command.add_argument("--snr", type=float, default=50.0, help="signal over noise of the fully sampled image")
    command.add_argument("--seed", type=_FROM_ZERO, default=0, help="seed of the simulation")


def _run_synthesize(args: argparse.Namespace) -> None:
    from ..data.synthetic.knee import SyntheticKneeConfig, write_synthetic_dataset

    config = SyntheticKneeConfig(
        matrix_shape=tuple(args.matrix),
        voxel_size_mm=tuple(args.voxel_size),
        n_coils=args.coils,
        n_echoes=args.echoes or (1 if args.appearance == "varied" else 2),
        appearance=args.appearance,
        snr=args.snr,
        finding_probability=args.finding_probability,
        seed=args.seed,
    )
    n_scans = (*args.scans, *(() if args.calibration_scans is None else (args.calibration_scans,)))
    print(write_synthetic_dataset(args.output, n_scans, config, n_workers=args.workers))


def _run_data_fetch_mini(args: argparse.Namespace) -> None:
    from ..data.mini_set import MINI_REPOSITORY, fetch_mini

    repository = args.repo or MINI_REPOSITORY
    print(fetch_mini(args.output, repository, revision=args.revision, keep_tarballs=args.keep_tarballs))


def _run_data_import_brain_tumour(args: argparse.Namespace) -> None:
    from ..data.brain_tumour.dataset import import_brain_tumour
    from ..data.brain_tumour.simulation import AcquisitionConfig

    config = AcquisitionConfig(n_coils=args.coils, snr=args.snr, seed=args.seed)
    counts = import_brain_tumour(args.source, args.output, config)
    print(f"{args.output}: {', '.join(f'{n} patients in {split}' for split, n in counts.items())}")
    if set(counts) == {"test"}:
        print("The folds are not known (no cvind.mat): all patients are in the split test.")


def _run_data_check(args: argparse.Namespace) -> None:
    from ..data.check import check_folder, report_text

    reports, shown = itertools.tee(check_folder(args.data, read_arrays=args.read))
    for line in report_text(shown):  # line by line: a full data set takes minutes
        print(line, flush=True)
    is_bad = [bool(report.faults) for report in reports]
    if any(is_bad):
        raise ValueError(f"{sum(is_bad)} of {len(is_bad)} scans of {args.data} cannot be used.")


def _run_data_preview(args: argparse.Namespace) -> None:
    import numpy as np

    from ..data.skm_tea import list_scans
    from ..figures.contact_sheet import contact_sheet

    scans = list_scans(args.data, args.split)
    if not 0 <= args.scan < len(scans):
        raise ValueError(f"--scan {args.scan}: the split {args.split} has scans 0 to {len(scans) - 1}.")
    scan = scans[args.scan]
    labels = scan.labels()
    numbers = np.linspace(0.05, 0.8, args.n_slices) * (scan.n_slices - 1)
    numbers = np.unique(numbers.round().astype(int))
    images = np.stack([np.abs(scan.target(int(index))) for index in numbers])
    titles = [f"{scan.scan_id}, slice {index}" for index in numbers]
    names = [name.replace("_", " ") for name in scan.class_names]
    figure = contact_sheet(images, labels[numbers], titles, class_names=names)
    figure.savefig(args.output, dpi=100)
    print(f"Written to {args.output}")
