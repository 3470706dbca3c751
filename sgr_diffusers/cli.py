"""Arguments of the `sgr` command enter; files, a table on the screen and an exit code leave.

Only parsing is here; what is heavy is imported by the command that needs it.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .app.command import add_app
from .cli_convert import add_convert_arguments, run_convert
from .evaluation.command import add_evaluation_commands
from .publishing.command import add_publish

__all__ = ["create_parser", "main"]

BAD_INPUT = 2  # what argparse itself exits with
FINAL_CONSISTENCY = ("replace", "regularized", "least_squares")
TARGETS = ("both", "upper", "lower", "none")
DTYPES = ("float32", "float16", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0, 2 for input that cannot be used (one line on stderr says why), or 128 + the number of the signal
        that ended the run.
    """
    args = create_parser().parse_args(arguments)
    args.arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _SignalsAsExceptions():
            args.run(args)
    except (ValueError, TypeError, LookupError, OSError, MemoryError) as error:
        if args.traceback:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"sgr: error: {' '.join(str(message).split()) or type(error).__name__}", file=sys.stderr)
        return BAD_INPUT
    except _Ended as ended:
        print("\nsgr: interrupted", file=sys.stderr)
        return 128 + ended.signal_number
    return 0


def create_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; `run` of what it returns is the function to call with it."""
    parser = argparse.ArgumentParser(
        prog="sgr",
        description="Upper and lower bound reconstructions of undersampled MRI, and the volumes of tissue they bound. "
        "For research; not for clinical use.",
        epilog="example: sgr demo",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_reconstruct(commands)
    _add_synthesize(commands)
    _add_data(commands)
    _add_convert(commands)
    add_evaluation_commands(commands, _add_command)
    add_publish(commands, _add_command)
    add_app(_add_command, commands)
    return parser


def _add_command(commands: Any, name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:],
        description=f"{summary}.",
        epilog=f"example: {example}",
    )
    command.set_defaults(run=run)
    command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return command


def _add_demo(commands: Any) -> None:
    command = _add_command(
        commands,
        "demo",
        _run_demo,
        "Reconstruct the bundled case at several accelerations: a table, figure.png and volumes.csv",
        "sgr demo --accelerations 4 16 --output sgr_demo",
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("sgr_demo"),
        help="folder; an earlier demo is replaced (default: %(default)s)",
    )
    command.add_argument(
        "--accelerations",
        type=float,
        nargs="+",
        default=[4.0, 8.0, 16.0],
        metavar="A",
        help="of the stored masks (default: 4 8 16)",
    )
    command.add_argument(
        "--steps", type=int, default=20, help="reverse steps; 100 in the paper (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    command.add_argument("--model", help="folder or Hub repository of another pipeline (default: the bundled one)")


def _add_reconstruct(commands: Any) -> None:
    command = _add_command(
        commands,
        "reconstruct",
        _run_reconstruct,
        "Bound the tissues in a scan: raw k-space (SKM-TEA, fastMRI, ISMRMRD, numpy, cfl) -> NIfTI, "
        "volumes.csv (of the slices reconstructed, all together) and figure.png",
        "sgr reconstruct scan.h5 --slices 20:24 --acceleration 8 --output bounds",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="raw k-space: .h5, .npy, .npz or .cfl")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    command.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier run")
    command.add_argument("--ismrmrd", action="store_true", help="also write images.h5, images in the ISMRMRD format")
    data = command.add_argument_group("what to read")
    data.add_argument(
        "--slices", type=_slices, metavar="START:STOP[:STEP]", help="from 0, without STOP (default: all)"
    )
    data.add_argument("--echo", type=int, default=1, help="from 1 (default: %(default)s)")
    data.add_argument("--coils", type=int, metavar="N", help="compress to N virtual coils (default: all coils)")
    sampling = data.add_mutually_exclusive_group()
    sampling.add_argument(
        "--acceleration",
        type=float,
        metavar="A",
        help="undersample by the stored mask poisson_<A>x (default: k-space as it is, measured where it is not zero)",
    )
    sampling.add_argument("--mask", metavar="NAME", help="undersample by this stored mask, for example poisson_8.0x")
    data.add_argument(
        "--voxel-size",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="edge lengths in mm, X between slices (default: of the file, or of the annotations beside it)",
    )
    method = command.add_argument_group("how to reconstruct")
    method.add_argument("--model", help="folder or Hub repository of the pipeline (default: the bundled one)")
    method.add_argument(
        "--target", choices=TARGETS, default="both", help="'none' for a plain reconstruction (default: %(default)s)"
    )
    method.add_argument("--classes", nargs="+", metavar="CLASS", help="names or label numbers (default: all)")
    method.add_argument("--steps", type=int, help="reverse steps (default: 100, or 25 with --fast)")
    method.add_argument("--fast", action="store_true", help="steps where they count, 25 by default")
    method.add_argument(
        "--strength",
        type=float,
        help="b of paper Eq. 14, per step (default: as wide as by the paper's 0.005 in 100 steps)",
    )
    method.add_argument(
        "--eta", type=float, default=1.0, help="share of fresh noise, 0 (deterministic) to 1 (default: %(default)s)"
    )
    method.add_argument(
        "--final-consistency", choices=FINAL_CONSISTENCY, default="replace", help="last step (default: %(default)s)"
    )
    method.add_argument(
        "--seed", type=int, default=0, help="of the noise; each slice has its own stream (default: %(default)s)"
    )
    machine = command.add_argument_group("where to compute")
    machine.add_argument(
        "--batch-size", type=int, default=8, help="most images at once; less needs less memory (default: %(default)s)"
    )
    machine.add_argument("--device", help="for example cuda:1 (default: a GPU if there is one)")
    machine.add_argument("--dtype", choices=DTYPES, default="float32", help="of the prior (default: %(default)s)")


def _add_synthesize(commands: Any) -> None:
    command = _add_command(
        commands,
        "synthesize",
        _run_synthesize,
        "Write a data set of synthetic knees in the SKM-TEA layout; an interrupted run goes on where it was",
        "sgr synthesize runs/knee --scans 100 8 16 --workers 2",
    )
    command.add_argument("output", type=Path, metavar="OUT", help="folder of the data set")
    three = {"nargs": 3, "metavar": ("X", "Y", "Z")}
    command.add_argument(
        "--scans",
        type=int,
        nargs=3,
        default=[100, 8, 16],
        metavar=("TRAIN", "VAL", "TEST"),
        help="numbers (default: 100 8 16)",
    )
    command.add_argument(
        "--matrix", type=int, default=[64, 96, 80], help="slices, rows, columns (default: 64 96 80)", **three
    )
    command.add_argument(
        "--voxel-size", type=float, default=[2.5, 1.6, 1.6], help="in mm (default: 2.5 1.6 1.6)", **three
    )
    command.add_argument("--coils", type=int, default=8, help="receive coils (default: %(default)s)")
    command.add_argument(
        "--echoes", type=int, choices=(1, 2), default=2, help="echoes of the qDESS sequence (default: %(default)s)"
    )
    command.add_argument("--snr", type=float, default=100.0, help="of the fully sampled image (default: %(default)s)")
    command.add_argument(
        "--finding-probability", type=float, default=0.12, help="of each rare finding in a scan (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the data set (default: %(default)s)")
    command.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")


def _add_data(commands: Any) -> None:
    group = commands.add_parser(
        "data",
        help="fetch, check and look at data in the SKM-TEA layout",
        description="Fetch, check and look at data in the SKM-TEA layout.",
        epilog="example: sgr data check runs/knee",
    )
    parts = group.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    command = _add_command(
        parts,
        "fetch-mini",
        _run_data_fetch_mini,
        "Fetch the four scans of SKM-TEA that are on the Hub; an interrupted run goes on where it was",
        "sgr data fetch-mini --output runs/mini",
    )
    command.add_argument("--output", type=Path, metavar="DIR", help="folder (default: beside the cache of the Hub)")
    command.add_argument("--repo", metavar="NAME", help="dataset repository (default: arjundd/skm-tea-mini)")
    command.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    command.add_argument("--keep-tarballs", action="store_true", help="do not delete them once they are unpacked")
    command = _add_command(
        parts,
        "check",
        _run_data_check,
        "List the scans of a folder: sizes, masks, what is missing or damaged",
        "sgr data check runs/knee --read",
    )
    command.add_argument("data", type=Path, metavar="DATA_DIR", help="folder in the SKM-TEA layout")
    command.add_argument("--read", action="store_true", help="also read every slice, as long as that takes")
    command = _add_command(
        parts,
        "preview",
        _run_data_preview,
        "Draw slices of a scan with their segmentation, to look at before training on them",
        "sgr data preview runs/knee --split test --scan 0 --output preview.png",
    )
    command.add_argument("data", type=Path, metavar="DATA_DIR", help="folder in the SKM-TEA layout")
    command.add_argument("--split", choices=("train", "val", "test"), default="train", help="(default: %(default)s)")
    command.add_argument("--scan", type=int, default=0, help="number within the split (default: %(default)s)")
    command.add_argument("--n-slices", type=int, default=16, help="spread over the scan (default: %(default)s)")
    command.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="picture to write")


def _add_convert(commands: Any) -> None:
    command = _add_command(
        commands,
        "convert",
        run_convert,
        "Make a pipeline folder of the checkpoints of the paper's authors (guided diffusion, MONAI), or the other way",
        "sgr convert --prior ema.pt --segmentation segmentation.pt runs/converted",
    )
    add_convert_arguments(command)


def _slices(text: str) -> slice:
    """`START:STOP[:STEP]`, `START:` and `:STOP` for the rest, or the number of one slice."""
    try:
        numbers = [int(part) if part else None for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None:
        numbers = [numbers[0], numbers[0] + 1]
    if (
        len(numbers) not in (2, 3)
        or any(number is not None and number < 0 for number in numbers)
        or numbers[2:] == [0]
    ):
        raise argparse.ArgumentTypeError(f"expected START:STOP or START:STOP:STEP, not negative, got {text!r}")
    return slice(*numbers)


def _run_demo(args: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(args.output, args.accelerations, args.steps, args.seed, args.model)


def _run_reconstruct(args: argparse.Namespace) -> None:
    from .reconstruct import SamplingSettings
    from .reconstruct_file import reconstruct_file

    settings = SamplingSettings(
        target=args.target,
        classes=None if args.classes is None else tuple(int(c) if c.isdigit() else c for c in args.classes),
        num_inference_steps=(25 if args.fast else 100) if args.steps is None else args.steps,
        fast=args.fast,
        eta=args.eta,
        guidance_strength=args.strength,
        final_consistency=args.final_consistency,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    reconstruct_file(
        args.file,
        args.output,
        settings,
        slices=args.slices or slice(None),
        echo=args.echo,
        mask_name=args.mask if args.acceleration is None else f"poisson_{args.acceleration:.1f}x",
        voxel_size_mm=args.voxel_size,
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        overwrite=args.overwrite,
        n_coils=args.coils,
        ismrmrd=args.ismrmrd,
    )


def _run_synthesize(args: argparse.Namespace) -> None:
    from .data.synthetic_knee import SyntheticKneeConfig, write_synthetic_dataset

    config = SyntheticKneeConfig(
        matrix_shape=tuple(args.matrix),
        voxel_size_mm=tuple(args.voxel_size),
        n_coils=args.coils,
        n_echoes=args.echoes,
        snr=args.snr,
        finding_probability=args.finding_probability,
        seed=args.seed,
    )
    print(write_synthetic_dataset(args.output, tuple(args.scans), config, n_workers=args.workers))


def _run_data_fetch_mini(args: argparse.Namespace) -> None:
    from .data.mini_set import MINI_REPOSITORY, fetch_mini

    repository = args.repo or MINI_REPOSITORY
    print(fetch_mini(args.output, repository, revision=args.revision, keep_tarballs=args.keep_tarballs))


def _run_data_check(args: argparse.Namespace) -> None:
    from .data.check import check_folder, report_text

    reports = []
    # line by line: a full data set takes minutes
    for line in report_text(reports.append(one) or one for one in check_folder(args.data, read_arrays=args.read)):
        print(line, flush=True)
    n_bad = sum(bool(one.faults) for one in reports)
    if n_bad:
        raise ValueError(f"{n_bad} of {len(reports)} scans of {args.data} cannot be used.")


def _run_data_preview(args: argparse.Namespace) -> None:
    import numpy as np

    from .data.skm_tea import list_scans
    from .evaluation.contact_sheet import contact_sheet

    scans = list_scans(args.data, args.split)
    if not 0 <= args.scan < len(scans):
        raise ValueError(f"--scan {args.scan}: the split {args.split} has scans 0 to {len(scans) - 1}.")
    scan = scans[args.scan]
    labels = scan.labels()
    shown = np.linspace(0.05, 0.8, args.n_slices) * (scan.n_slices - 1)
    shown = np.unique(shown.round().astype(int))
    images = np.stack([np.abs(scan.target(int(index))) for index in shown])
    figure = contact_sheet(images, labels[shown], [f"{scan.scan_id}, slice {index}" for index in shown])
    figure.savefig(args.output, dpi=100)


class _Ended(BaseException):
    """A signal asks to stop; not an `Exception`, so that nothing on the way takes it for an error."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


class _SignalsAsExceptions:
    """Within this context the signals that end a program raise, so that what was begun is cleaned up."""

    numbers = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __enter__(self) -> None:
        self.previous = {}
        for number in self.numbers:
            try:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                    self.previous[number] = signal.signal(number, self._raise)
            except ValueError:  # not the main thread: signals are somebody else's business
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @staticmethod
    def _raise(number: int, frame: FrameType | None) -> NoReturn:
        # Once is enough: a second Ctrl-C must not stop the cleaning up.
        for other in _SignalsAsExceptions.numbers:
            signal.signal(other, signal.SIG_IGN)
        raise _Ended(number)


if __name__ == "__main__":
    sys.exit(main())
