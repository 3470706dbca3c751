"""Parses the arguments of the `sgr` command, runs the subcommand and returns its exit code.

Only parsing is here; what is heavy is imported by the command that needs it.
"""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from .. import __version__
from ..io.file_checks import check_regular_file, is_bart_pair
from ..pipeline.settings import real_number, whole_number
from ..reconstruction.settings import DTYPES, SamplingSettings
from ..utils.disk import disk_errors
from ..utils.files import check_replaceable
from ..utils.options import OptionParser
from ..utils.processes import end_with_launcher, helpers
from .app import add_app
from .convert import add_convert_arguments, run_convert
from .data import add_data, add_synthesize
from .evaluate import add_evaluation_commands
from .options import add_command, add_settings, add_sharing, check_sharing, parser_of, settings_from
from .publish import add_publish

__all__ = ["create_parser", "main"]

BAD_INPUT = 2  # what argparse itself exits with
_FROM_ZERO, _FROM_ONE = (parser_of(whole_number(least)) for least in (0, 1))
_POSITIVE = parser_of(real_number("a positive number", lambda value: value > 0))
_ABOVE_ONE = parser_of(real_number("a number above 1", lambda value: value > 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0, 2 for input that cannot be used (one line on stderr says why), or 128 + the number of the signal
        that ended the run.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = create_parser()
    if not given:
        parser.print_help()
        return 0
    args = parser.parse_args(given)
    args.arguments = given
    try:
        output = getattr(args, "output", None)
        with _SignalsAsExceptions(), warnings.catch_warnings(), disk_errors(Path(output) if output else "A file"):
            warnings.showwarning = _show_warning
            args.check(args)
            _quiet_libraries()
            args.run(args)
        sys.stdout.flush()  # here, where a reader that has gone is still noticed
    except BrokenPipeError:  # as in `sgr data check DIR | head`; what is left must not be written at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
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
    """Create the parser of all subcommands; `run` of its result is the function to call with the result."""
    parser = OptionParser(
        prog="sgr",
        description="Upper and lower bound reconstructions of undersampled MRI, and the volumes of tissue they bound. "
        "For research; not for clinical use.",
        epilog="example: sgr demo",
    )
    parser.add_argument("--version", action="version", version=f"sgr_diffusers {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_reconstruct(commands)
    add_synthesize(commands)
    add_data(commands)
    _add_convert(commands)
    add_evaluation_commands(commands)
    add_publish(commands)
    add_app(commands)
    return parser


def _add_demo(commands: Any) -> None:
    command = add_command(
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
        help="folder to write to; an earlier demo is replaced",
    )
    command.add_argument(
        "--accelerations",
        type=float,
        nargs="+",
        default=[4.0, 8.0, 16.0],
        metavar="A",
        help="accelerations of the stored masks (default: 4 8 16)",
    )
    command.add_argument(
        "--steps",
        type=int,
        default=12,
        help="number of reverse steps; 100 in the paper (default: %(default)s, for which the bundled pipeline is "
        "calibrated)",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the noise")
    command.add_argument("--model", help="folder or Hub repository of another pipeline (default: the bundled one)")


def _add_reconstruct(commands: Any) -> None:
    command = add_command(
        commands,
        "reconstruct",
        _run_reconstruct,
        "Bound the tissues in a scan: raw k-space (SKM-TEA, fastMRI, ISMRMRD, numpy, cfl) -> NIfTI, "
        "volumes.csv (all reconstructed slices together) and figure.png",
        "sgr reconstruct scan.h5 --slices 20:24 --acceleration 8 --output bounds",
    )
    command.set_defaults(check=_check_reconstruct)
    command.add_argument("file", type=Path, metavar="FILE", help="raw k-space: .h5, .mrd, .npy, .npz or .cfl")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    command.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier run")
    command.add_argument("--dry-run", action="store_true", help="print the expected duration, and stop")
    command.add_argument("--ismrmrd", action="store_true", help="also write images.h5, images in the ISMRMRD format")
    command.add_argument(
        "--dicom",
        type=Path,
        metavar="SERIES",
        help="folder of the DICOM series of the same scan: also write images and segmentations as DICOM where its "
        "images lie; a raw file that does not say where its slices lie takes their place from it (needs: pip install "
        "'sgr-diffusers[dicom]')",
    )
    data = command.add_argument_group("what to read")
    data.add_argument(
        "--slices",
        type=_slices,
        metavar="START:STOP[:STEP]",
        help="range of slices, counted from 0, STOP not included (default: all)",
    )
    data.add_argument("--echo", type=_FROM_ONE, default=1, help="number of the echo, counted from 1")
    data.add_argument(
        "--repetition",
        type=_FROM_ZERO,
        default=0,
        metavar="N",
        help="number of the repetition in ISMRMRD files, counted from 0",
    )
    data.add_argument("--group", metavar="NAME", help="HDF5 group of the scan (default: the only one there is)")
    data.add_argument("--coils", type=_FROM_ONE, metavar="N", help="compress to N virtual coils (default: all coils)")
    sampling = data.add_mutually_exclusive_group()
    sampling.add_argument(
        "--acceleration",
        type=_ABOVE_ONE,
        metavar="A",
        help="undersample by the stored mask poisson_<A>x, or, in a fully sampled file without masks, by one made for "
        "it (default: k-space as it is, measured where it is not zero)",
    )
    sampling.add_argument("--mask", metavar="NAME", help="undersample by this stored mask, for example poisson_8.0x")
    data.add_argument(
        "--voxel-size",
        type=_POSITIVE,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="edge lengths of a voxel in mm, X between slices (default: as the file or the annotations beside it say; "
        "not needed with --target none)",
    )
    method = command.add_argument_group("how to reconstruct")
    method.add_argument(
        "--model",
        default="general",
        help="folder or Hub repository of a pipeline, or a bundled one: general, for real scans, brain_tumour, "
        "for tumours in T1-weighted brain scans, or synthetic_knee, for the synthetic knees of this package",
    )
    maps = command.add_argument_group("how to estimate coil maps, where the file has none or one of these is given")
    machine = command.add_argument_group("where to compute")
    add_settings({"method": method, "maps": maps, "machine": machine}, SamplingSettings)
    machine.add_argument("--device", help="for example cuda:1 (default: a GPU if there is one)")
    machine.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="type of the prior's weights (default: %(default)s); on CPUs bfloat16 needs AVX512_BF16 or AMX",
    )
    add_sharing(machine, n_threads=None)


def _add_convert(commands: Any) -> None:
    command = add_command(
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
    from ..reconstruction.demo import run_demo

    run_demo(args.output, args.accelerations, args.steps, args.seed, args.model)


def _check_reconstruct(args: argparse.Namespace) -> None:
    """Refuse a FILE that cannot be read and a folder that is taken before anything heavy is imported."""
    if not is_bart_pair(args.file):
        check_regular_file(args.file)
    check_replaceable(args.output, args.overwrite)
    if args.num_samples > 1 and args.target != "none":
        raise ValueError(f"--samples {args.num_samples} goes with --target none, got --target {args.target}.")
    check_sharing(args)


def _run_reconstruct(args: argparse.Namespace) -> None:
    end_with_launcher()
    import torch

    from ..reconstruction.run import reconstruct_file

    n_threads = args.num_threads or max(torch.get_num_threads() // args.num_processes, 1)
    torch.set_num_threads(n_threads)
    reconstruct_file(
        args.file,
        args.output,
        settings_from(args, SamplingSettings),
        slices=args.slices or slice(None),
        echo=args.echo,
        repetition=args.repetition,
        group=args.group,
        mask=args.mask if args.acceleration is None else args.acceleration,
        voxel_size_mm=args.voxel_size,
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        overwrite=args.overwrite,
        n_coils=args.coils,
        ismrmrd=args.ismrmrd,
        dry_run=args.dry_run,
        part=args.part,
        further_processes=helpers([*args.arguments, "--num-threads", str(n_threads)], args.num_processes, n_threads),
        dicom=args.dicom,
    )


def _quiet_libraries() -> None:
    """Leave out the bar that diffusers shows while it loads a pipeline, which is there for a second."""
    from diffusers.utils import logging

    logging.disable_progress_bar()


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    """Write a warning as one line for people, without its place in the code."""
    print(f"sgr: warning: {' '.join(str(message).split())}", file=sys.stderr)


class _Ended(BaseException):
    """A signal asks to stop; not an `Exception`, so that nothing on the way takes it for an error."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


class _SignalsAsExceptions:
    """Within this context the signals that end a program raise, so that what was begun is cleaned up.

    Compiled code that the exception passes may turn it into another (h5py's locks make it `SystemError`). The context
    then raises its own. An exception within a destructor or a callback of the garbage collector is lost: Python only
    prints it. So a thread sends the signal again each second, and it counts unless something is being cleaned up.
    """

    numbers = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __enter__(self) -> None:
        self.previous = {}
        self.ended: _Ended | None = None
        self.left = threading.Event()
        for number in self.numbers:
            try:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                    self.previous[number] = signal.signal(number, self._raise)
            except ValueError:  # not the main thread: signals are somebody else's business
                return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.left.set()
        if self.ended is not None:
            self.repeating.join()  # what it sent must not meet the handlers of before
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.ended is not None and error is not self.ended:
            raise self.ended from error

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        if self.ended is None:
            self.ended = _Ended(number)
            self.repeating = threading.Thread(target=self._repeat, args=(number,), daemon=True)
            self.repeating.start()
        elif self.left.is_set() or self._cleans_up():  # which a second Ctrl-C must not stop
            return
        raise self.ended

    def _repeat(self, number: int) -> None:
        while not self.left.wait(1.0):
            os.kill(os.getpid(), number)

    def _cleans_up(self) -> bool:
        """Whether the exception, or what compiled code made of it, is being handled."""
        error = sys.exc_info()[1]
        while error is not None and error is not self.ended:
            error = error.__cause__ or error.__context__
        return error is not None
