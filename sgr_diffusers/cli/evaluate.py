"""Parses the arguments of `sgr evaluate`, `sgr report` and `training/evaluate.py`, and runs them.

What is heavy is imported when a command runs.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluation.plan import METHODS, EvaluationPlan
from ..evaluation.settings import EvaluationSettings
from ..reconstruction.settings import DTYPES
from ..utils.processes import end_with_launcher, helpers, is_helper
from .options import add_command, add_settings, add_sharing, check_sharing, settings_from

__all__ = ["add_arguments", "add_evaluation_commands", "run"]

_SORTED = ("accelerations", "ablation_strengths")
REFERENCES = ("both", "fully_sampled", "manual")


def add_evaluation_commands(commands: Any) -> None:
    """Add `evaluate`, `calibrate` and `report` to the subparsers of `sgr`."""
    add_arguments(
        add_command(
            commands,
            "evaluate",
            lambda args: run(args, args.arguments),
            "Evaluate bounds and repeated reconstruction like the paper; a run that was killed goes on where it was",
            "sgr evaluate runs/knee --output runs/evaluation --n-slices-per-scan 2 --num-processes 2",
        )
    )
    command = add_command(
        commands,
        "calibrate",
        lambda args: run(args, args.arguments),
        "Calibrate the bounds of a pipeline: reconstruct calibration scans, as `sgr evaluate` does, and write "
        "calibration.json into the pipeline's folder",
        "sgr calibrate runs/knee --model runs/pipeline --output runs/calibration --split calibration "
        "--n-slices-per-scan 2 --coverage 0.9 0.8",
    )
    add_arguments(command)
    command.set_defaults(split="calibration", methods=("SGR",), coverages=[0.9, 0.8])
    command = add_command(
        commands,
        "report",
        _report,
        "Write tables and figures of an evaluation, from its results alone; or print the table of a table1.csv",
        "sgr report runs/evaluation --output runs/report",
    )
    command.add_argument("results", type=Path, metavar="RESULTS", help="folder of `sgr evaluate`, or a table1.csv")
    command.add_argument("--output", type=Path, metavar="DIR", help="folder to make (needed for a results folder)")
    command.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier report")
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")


def _report(args: argparse.Namespace) -> None:
    from ..evaluation.table1 import read_table1, table1_markdown

    if args.results.is_file():
        print(table1_markdown(read_table1(args.results)))
        return
    from ..evaluation.report import write_report

    if args.output is None:
        raise ValueError("--output is needed: the folder to write the report to.")
    for line in write_report(args.results, args.output, args.seed, args.overwrite):
        print(line)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("data_dir", metavar="DATA_DIR", help="folder in the SKM-TEA layout")
    command.add_argument(
        "--output", required=True, metavar="DIR", help="results folder; a run that was killed goes on in it"
    )
    command.add_argument("--model", help="folder or Hub repository of the pipeline (default: the bundled one)")
    command.add_argument(
        "--segmentation", metavar="DIR", help="segmentation model that guides and measures in place of the pipeline's"
    )
    command.add_argument(
        "--coverage",
        dest="coverages",
        type=float,
        nargs="+",
        metavar="C",
        help="coverages of calibrated intervals, for example 0.9: `sgr calibrate` calibrates them (default: 0.9 0.8), "
        "`sgr evaluate` measures them on other scans and writes coverage.csv into the results folder (default: none)",
    )
    command.add_argument("--limit", type=int, metavar="N", help="stop each process after N units of work")
    command.add_argument(
        "--dry-run", action="store_true", help="print the number of units and the expected duration, and stop"
    )
    data = command.add_argument_group("what to evaluate")
    _add_data_options(data)
    method = command.add_argument_group("how to reconstruct")
    method.add_argument("--scheduler", metavar="CLASS", help="scheduler class of diffusers (default: the pipeline's)")
    method.add_argument(
        "--guidance-from",
        type=float,
        metavar="SHARE",
        help="images are pushed below this share of the training time; 1 for all steps, as in the paper (default: the "
        "checkpoint's)",
    )
    machine = command.add_argument_group("where to compute")
    _add_machine_options(machine)
    groups = {"data": data, "method": method, "machine": machine}
    add_settings(groups, EvaluationPlan)
    add_settings(groups, EvaluationSettings, (*EvaluationSettings.CHOSEN, "fast"))


def _add_data_options(group: Any) -> None:
    group.add_argument("--split", default="test", help="name of the split")
    group.add_argument("--max-scans", type=int, metavar="N", help="only the first N scans")
    group.add_argument(
        "--slices",
        default="relevant",
        help="'relevant' (with at least --min-foreground labelled pixels), 'paper', 'all', N for every N-th, "
        "START:STOP[:STEP], or numbers like 20,24,30",
    )
    group.add_argument(
        "--min-foreground",
        type=int,
        default=20,
        metavar="PIXELS",
        help="least number of labelled pixels of a relevant slice",
    )
    group.add_argument(
        "--n-slices-per-scan",
        type=int,
        metavar="K",
        help="take K of these slices of each scan, evenly spread (default: all)",
    )
    group.add_argument(
        "--finding-slices",
        type=int,
        default=0,
        metavar="K",
        help="take K more slices that show the finding, in synthetic scans with a rare finding",
    )
    group.add_argument(
        "--reference",
        choices=REFERENCES,
        default="both",
        help="segmentation to compare with; 'fully_sampled' needs no manual labels",
    )
    group.add_argument(
        "--second-segmentation",
        metavar="DIR",
        help="segmentation model that guidance never sees, and that also segments all reconstructions",
    )


def _add_machine_options(group: Any) -> None:
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="type of the prior's weights (default: %(default)s); on CPUs bfloat16 needs AVX512_BF16 or AMX",
    )
    add_sharing(group)


def run(args: argparse.Namespace, argv: Sequence[str] | None = None) -> None:
    """Evaluate.

    Args:
        args: parsed arguments of a parser with `add_arguments`.
        argv: list of arguments that `args` was parsed from, for the record and for further processes.

    Raises:
        FileNotFoundError, ValueError: data, model, settings or the folder cannot be used.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if args.limit is not None and args.limit < 0:
        raise ValueError(f"`limit` must be 0 or larger, got {args.limit}.")
    check_sharing(args)
    end_with_launcher()
    _evaluate(args, argv)


def _evaluate(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Do what is left to do, or say what it would be, in this process."""
    from ..evaluation import runner

    request = _request(args, argv)
    prepared = runner.prepare(request, write=not args.dry_run)
    task = _coverage_task(args, request)
    if task is not None:
        task.check(prepared.computer)
    say = _silent if is_helper() else print
    outstanding = prepared.outstanding
    for line in outstanding.damaged.values():
        say(f"{line} It is done again.", file=sys.stderr, flush=True)
    say(_overview(outstanding.units, outstanding.todo))
    if args.dry_run:
        todo = outstanding.todo[: args.limit]
        seconds, source = runner.estimate_seconds(prepared, request)
        hours = runner.total_seconds(todo, seconds) / 3600
        each = ", ".join(f"{kind} {value:.1f} s" for kind, value in sorted(seconds.items()))
        say(f"Each unit, of RR each sample: {each} ({source}).")
        say(f"{len(todo)} units: {hours:.2f} hours on one process, {hours / args.num_processes:.2f} on "
            f"{args.num_processes}.")  # fmt: skip
        return
    with helpers(_with_command(argv), args.num_processes, args.num_threads):
        runner.evaluate(prepared, args.output, args.limit, not is_helper(), args.part)
    if is_helper():
        return
    from ..evaluation.costs import cost_table

    left = runner.find_outstanding(args.output, outstanding.units).todo
    print(f"{args.output}: {len(outstanding.units) - len(left)} of {len(outstanding.units)} units are done.")
    table = cost_table(args.output)
    if table:
        print(table)
    if task is not None and not left:
        print(*task.finish(prepared.computer), sep="\n")


def _coverage_task(args: argparse.Namespace, request: Any) -> Any:
    """Return what is to be done with `--coverage`, `None` without it."""
    if args.coverages is None:
        return None
    from ..evaluation.calibrate import CoverageTask, checkpoint_folder

    folder, coverages = checkpoint_folder(args.model), tuple(sorted(set(args.coverages), reverse=True))
    return CoverageTask(folder, coverages, request, getattr(args, "command", "evaluate") == "calibrate")


def _request(args: argparse.Namespace, argv: Sequence[str]) -> Any:
    from ..evaluation.runner import EvaluationRequest

    plan = settings_from(args, EvaluationPlan)
    lists: dict[str, Any] = {name: tuple(sorted(set(getattr(plan, name)))) for name in _SORTED}
    plan = replace(plan, methods=tuple(method for method in METHODS if method in plan.methods), **lists)
    plan = plan if args.coverages is None else plan.with_intervals()
    if args.fast and args.scheduler is not None:
        raise ValueError("--fast chooses the scheduler itself: leave out --scheduler.")
    return EvaluationRequest(
        data_dir=args.data_dir,
        output=args.output,
        model=args.model,
        segmentation=args.segmentation,
        plan=plan,
        settings=settings_from(args, EvaluationSettings),
        split=args.split,
        slices=args.slices,
        min_foreground=args.min_foreground,
        n_slices_per_scan=args.n_slices_per_scan,
        max_scans=args.max_scans,
        n_finding_slices=args.finding_slices,
        references=args.reference,
        second_segmentation=args.second_segmentation,
        scheduler="DDPMScheduler" if args.fast else args.scheduler,
        guidance_from=args.guidance_from,
        dtype=args.dtype,
        n_threads=args.num_threads,
        command=shlex.join(["sgr", *_with_command(argv)]),
    )


def _with_command(argv: Sequence[str]) -> list[str]:
    """Put the name of the command before arguments of `training/evaluate.py`."""
    return list(argv) if argv[:1] in (["evaluate"], ["calibrate"]) else ["evaluate", *argv]


def _overview(units: Sequence[Any], todo: Sequence[Any]) -> str:
    every, left = Counter(unit.kind for unit in units), Counter(unit.kind for unit in todo)
    parts = [f"{every[kind]} {kind} ({left[kind]} to do)" for kind in ("reference", *METHODS) if every[kind]]
    return f"Units: {', '.join(parts)}."


def _silent(*_: Any, **__: Any) -> None:
    """For all processes but the first."""
