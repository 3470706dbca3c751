"""Evaluate a pipeline on a data folder by a plan; write a shard for each unit of work to a results folder.

The results folder is the only memory: a run looks at which shards are there and does the others. Any number of runs
and processes share them by claims in the folder.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.segmentation import SegmentationUNet
from ..pipeline.calibrated import scheduler_settings, used_strength
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..reconstruction.estimate import estimated_seconds
from ..reconstruction.volume import load_pipeline
from ..utils.claims import Part, exclusive, hand_out, remove_claims
from ..utils.versions import library_versions
from .compute import UnitComputer
from .identity import CONFIG, open_results
from .plan import EvaluationPlan, Unit, plan_units
from .settings import EvaluationSettings
from .slices import choose_data, choose_examples, parse_protocol
from .store import DamagedShard, read_shard, remove_partial_shards, shard_path, write_shard

__all__ = [
    "EvaluationRequest",
    "Outstanding",
    "Prepared",
    "estimate_seconds",
    "evaluate",
    "find_outstanding",
    "load_segmentation",
    "prepare",
    "total_seconds",
]


@dataclass(frozen=True)
class EvaluationRequest:
    """All that an evaluation is asked for.

    Attributes:
        data_dir: folder in the SKM-TEA layout.
        output: results folder.
        model: folder or Hub repository of a pipeline; `None` for the bundled one.
        segmentation: folder of a segmentation model that guides and measures in place of the pipeline's.
        plan: plan that says how far to go.
        settings: settings of all units.
        split: name of the split of the data.
        slices: protocol that names the slices, see `parse_protocol`.
        min_foreground: least number of labelled pixels of a slice, for the protocol "relevant".
        n_slices_per_scan: number of slices of each scan, evenly spread over what the protocol leaves; `None` for all.
        max_scans: largest number of scans; the first ones are taken.
        n_finding_slices: number of further slices of each scan with a rare finding, those with most of the finding.
        references: "both", "fully_sampled" or "manual"; the latter two need or leave out manual labels.
        second_segmentation: folder of a segmentation model, or of a pipeline with one, that guidance never sees.
        scheduler: name of a scheduler class of diffusers; `None` for the pipeline's.
        dtype: data type of the prior.
        n_threads: number of threads of each process on a CPU. Sums depend on it in the last bit.
        command: command line, kept for the record.
    """

    data_dir: str
    output: str
    model: str | None = None
    segmentation: str | None = None
    plan: EvaluationPlan = field(default_factory=EvaluationPlan)
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    split: str = "test"
    slices: str = "relevant"
    min_foreground: int = 20
    n_slices_per_scan: int | None = None
    max_scans: int | None = None
    n_finding_slices: int = 0
    references: str = "both"
    second_segmentation: str | None = None
    scheduler: str | None = None
    guidance_from: float | None = None
    dtype: str = "float32"
    n_threads: int = 1
    command: str = ""


@dataclass(frozen=True)
class Outstanding:
    """What is there and what is not.

    Attributes:
        units: all units of the plan.
        todo: units whose shard is missing or damaged, in order.
        damaged: descriptions of what is wrong with the shards of damaged units.
        seconds: mean cost in seconds of each kind of unit that is there.
    """

    units: list[Unit]
    todo: list[Unit]
    damaged: dict[Unit, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Prepared:
    """An evaluation that has been checked and can begin."""

    computer: UnitComputer
    outstanding: Outstanding
    n_classes: int


def load_segmentation(name: str, folder: str, device: torch.device) -> nn.Module:
    """Load the segmentation model in a folder, or in the folder of a pipeline.

    Args:
        name: name of the argument, for errors.
        folder: folder to look in.
        device: device for the model.

    Raises:
        ValueError: there is none.
    """
    places = [Path(folder), Path(folder) / "segmentation_model"]
    folders = [place for place in places if (place / "config.json").is_file()]
    if not folders:
        raise ValueError(f"`{name}` {folder} holds no segmentation model (a config.json and weights).")
    try:
        return SegmentationUNet.from_pretrained(folders[0]).eval().to(device)
    except Exception as error:  # whatever a foreign folder can do
        raise ValueError(f"`{name}` {folder} cannot be loaded: {type(error).__name__}: {error}") from error


def prepare(request: EvaluationRequest, write: bool = True) -> Prepared:
    """Load the networks, choose the data, open the folder, and see what is left to do.

    Args:
        request: all that the evaluation is asked for, see `EvaluationRequest`.
        write: whether to write to the folder.

    Raises:
        FileNotFoundError, ValueError: data, model or folder do not fit; nothing has been computed.
    """
    torch.set_num_threads(request.n_threads)
    with_manual = request.references != "fully_sampled"
    data = choose_data(
        request.data_dir,
        request.split,
        parse_protocol(request.slices, request.min_foreground),
        request.plan.accelerations,
        request.n_slices_per_scan,
        request.max_scans,
        request.n_finding_slices,
        request.settings.echo,
        with_manual,
    )
    pipe = load_pipeline(request.model, None, request.dtype)
    if request.scheduler is not None:
        pipe.scheduler = _scheduler(pipe, request.scheduler)
    if request.segmentation is not None:
        segmentation = load_segmentation("segmentation", request.segmentation, pipe.device)
        pipe.register_modules(segmentation_model=segmentation)
    if request.guidance_from is not None:
        if not 0 < request.guidance_from <= 1:
            raise ValueError(
                "`guidance_from` must be a share of the training time, above 0 and up to 1, got "
                f"{request.guidance_from}."
            )
        pipe.register_to_config(guidance_from=request.guidance_from)
    second = None
    if request.second_segmentation is not None:
        second = load_segmentation("second_segmentation", request.second_segmentation, pipe.device)
    examples = choose_examples(data, with_manual)
    computer = UnitComputer(pipe, second, request.settings, data, examples, with_manual)
    units = plan_units(_without_default(request, pipe), data.slices, data.finding_slices)
    known = (request.output, _identity(request, computer), request.plan, data, examples, request.command)
    content = open_results(*known, write=False)  # refused before anything is written
    if write:
        with exclusive(request.output, CONFIG):
            content = open_results(*known)
            remove_partial_shards(request.output)
            outstanding = find_outstanding(request.output, units)
            for unit in outstanding.damaged:
                shard_path(request.output, unit).unlink()
    else:
        outstanding = find_outstanding(request.output, units)
    computer.examples = {(str(scan_id), int(index)) for scan_id, index in content["examples"]}
    return Prepared(computer, outstanding, len(computer.class_names))


def _scheduler(pipe: SGRMRIPipeline, name: str) -> Any:
    import inspect

    import diffusers

    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None or not hasattr(scheduler_class, "from_config"):
        raise ValueError(f"`scheduler` {name!r} is no scheduler of diffusers; for example DDIMScheduler is one.")
    # Complex images are not bound to [-1, 1], to which some classes clip by default.
    clip = {"clip_sample": False} if "clip_sample" in inspect.signature(scheduler_class).parameters else {}
    return scheduler_class.from_config(pipe.scheduler.config, **clip)


def _without_default(request: EvaluationRequest, pipe: SGRMRIPipeline) -> EvaluationPlan:
    """Return the plan without ablation strengths that are the default one, which is computed anyway."""
    default = used_strength(pipe, request.settings, request.settings.visited_timesteps)
    others = tuple(b for b in request.plan.ablation_strengths if abs(b - default) > 1e-6 * default)
    return replace(request.plan, ablation_strengths=others)


def _identity(request: EvaluationRequest, computer: UnitComputer) -> dict[str, Any]:
    """Return all that can change a bit of a result."""
    pipe = computer.pipe
    complete = request.settings.with_defaults(pipe.config)
    chosen = {key: getattr(request, key) for key in ("split", "slices", "min_foreground", "n_slices_per_scan")}
    return {
        "settings": {
            **request.settings.identity(),
            "guidance_strength": used_strength(pipe, request.settings, request.settings.visited_timesteps),
            "guidance_from": float(pipe.config.guidance_from),
            "is_equivariant": pipe.config.is_equivariant,
            "denoising_variance": pipe.config.denoising_variance,
            "consistency": complete.consistency,
            "cg_iterations": complete.cg_iterations,
            **chosen,
            "references": request.references,
            "dtype": request.dtype,
            "device": pipe.device.type,
            "n_threads": request.n_threads,
        },
        "classes": list(computer.class_names),
        "scheduler": scheduler_settings(pipe),
        "weights": computer.weights_hash,
        "versions": library_versions(),
    }


def find_outstanding(output: str | os.PathLike, units: Sequence[Unit]) -> Outstanding:
    """Read the shards of all units, to see which are missing or damaged."""
    todo, damaged = [], {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for unit in units:
        try:
            row = read_shard(output, unit)
        except FileNotFoundError:
            todo.append(unit)
        except DamagedShard as error:
            todo.append(unit)
            damaged[unit] = str(error)
        else:
            seconds[unit.kind].append(row["seconds"] / max(unit.n_samples, 1))
    means = {kind: float(np.mean(of_units)) for kind, of_units in seconds.items()}
    return Outstanding(list(units), todo, damaged, means)


def evaluate(
    prepared: Prepared,
    output: str | os.PathLike,
    limit: int | None = None,
    progress: bool = True,
    part: Part | None = None,
) -> int:
    """Do what is left to do, together with all other processes that do so; returns how many units this one has done.

    Args:
        prepared: checked evaluation from `prepare`.
        output: results folder.
        limit: largest number of units to do; `None` for no limit.
        progress: whether to show a bar with the time left.
        part: part of the units to begin with; `None` for the order of the plan.

    Raises:
        As `UnitComputer.compute` and the pipeline; what was done before is stored.
    """
    from tqdm import tqdm

    todo, n_done, versions = prepared.outstanding.todo, 0, library_versions()
    costs = {unit: unit.cost(prepared.n_classes) for unit in todo}
    bar = tqdm(
        total=sum(costs.values()),
        disable=not progress,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left",
    )

    def is_done(unit: Unit) -> bool:
        if not shard_path(output, unit).exists():
            return False
        bar.update(min(costs.pop(unit, 0), bar.total - bar.n))  # whoever has done it; not beyond the end by rounding
        return True

    units = hand_out(todo, output, lambda unit: f"{unit.scan_id} {unit.name}", is_done, part)
    with bar, closing(units):
        for unit in islice(units, limit):
            bar.set_description_str(f"{unit.scan_id} {unit.name}")
            write_shard(output, unit, prepared.computer.compute(unit), versions)
            n_done += is_done(unit)
    remove_claims(output)
    return n_done


def estimate_seconds(prepared: Prepared, request: EvaluationRequest) -> tuple[dict[str, float], str]:
    """Estimate the seconds of a unit of each kind (of one sample for RR), and say where they come from.

    Taken from the folder where all kinds are there, otherwise measured on one slice, see `estimated_seconds`. Other
    processes on the same cores are not accounted for.
    """
    kinds = {unit.kind for unit in prepared.outstanding.todo}
    if kinds <= set(prepared.outstanding.seconds):
        return prepared.outstanding.seconds, "mean of the units that are done"
    computer, by_kind = prepared.computer, {}
    for kind in sorted(kinds):
        unit = next(unit for unit in prepared.outstanding.todo if unit.kind == kind)

        def compute(settings: EvaluationSettings, unit: Unit = unit) -> float:
            trial = UnitComputer(computer.pipe, computer.second, settings, computer.data, (), computer.with_manual)
            return trial.compute(unit)["seconds"]

        settings = computer.settings
        whole = compute(settings) if kind == "reference" else estimated_seconds(compute, settings)
        by_kind[kind] = whole / max(unit.n_samples, 1)
    return by_kind, "one slice timed, nothing else running"


def total_seconds(todo: Sequence[Unit], seconds: Mapping[str, float]) -> float:
    """Add up the seconds of all units, one after the other."""
    return sum(seconds[unit.kind] * max(unit.n_samples, 1) for unit in todo)
