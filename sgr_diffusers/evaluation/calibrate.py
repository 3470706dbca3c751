"""Calibrate a checkpoint from the volumes in a results folder, or have its coverage measured on other scans."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..calibration.quantiles import Group, calibrate, scans_needed
from ..calibration.record import FILE_NAME, Calibration, CalibrationMismatch, CalibrationSettings
from ..calibration.scores import ScanVolumes
from ..data.scan_files import read_annotations, read_mask, split_names
from ..data.skm_tea import SkmTeaScan
from ..figures.tables import format_table
from ..pipeline.calibrated import calibration_settings, measured_group
from ..pretrained import BUNDLED, PRETRAINED
from ..utils.files import whole_file
from ..utils.versions import library_versions
from .compute import UnitComputer
from .counts import count_bounds, count_point_estimates
from .coverage import coverage_rows, coverage_table
from .curves import width_figure
from .load import EvaluationResults, load_results
from .runner import EvaluationRequest

__all__ = [
    "CoverageTask",
    "arrays_of",
    "calibrate_checkpoint",
    "check_scans",
    "checkpoint_folder",
    "scan_table",
    "scan_volumes",
    "seen_scans",
]

_VOLUMES = ["point", "lower", "upper", "truth"]
SCANS_FILE = "scans.json"  # of a checkpoint: ids of the scans of the splits "train" and "tune"


def scan_table(results: EvaluationResults, reference: str) -> pd.DataFrame:
    """Add up the volumes of all slices of each scan whose slices are all done.

    Args:
        results: results of an evaluation with bounds and at least `N_SAMPLES` unguided samples.
        reference: "fully_sampled" or "manual".

    Returns:
        One row for each `acceleration`, `scan_id` and `class`: volumes in mm^3 of the `point` estimate, of the `lower`
        and `upper` bound and in the reference (`truth`), and that of a `voxel`.

    Raises:
        ValueError: no scan is complete.
    """
    counts = count_bounds(results)
    chosen = (counts["method"] == "SGR") & (counts["segmenter"] == "guiding") & (counts["reference"] == reference)
    chosen &= (counts["part"] == "main") & np.isclose(counts["strength"], results.strength)
    counts = counts[chosen].merge(count_point_estimates(results), on=["scan_id", "slice", "acceleration", "label"])
    counts["class"] = counts.pop("label").map(dict(enumerate(results.class_names, start=1)))
    grouped = counts.groupby(["acceleration", "scan_id", "class"], sort=False)
    table = grouped[_VOLUMES].sum().assign(n_slices=grouped["slice"].nunique()).reset_index()
    wanted = {scan_id: len(numbers) for scan_id, numbers in results.config["slices"].items()}
    table = table[table["n_slices"] == table["scan_id"].map(wanted)].drop(columns="n_slices")
    if table.empty:
        raise ValueError(f"no scan is complete against the reference {reference}: let the evaluation run to its end.")
    voxels = {unit.scan_id: float(np.prod(row["voxel_size_mm"])) for unit, row in results.of_kind("reference")}
    table["voxel"] = table["scan_id"].map(voxels)
    table[_VOLUMES] = table[_VOLUMES].mul(table["voxel"], axis=0)
    return table.sort_values(["acceleration", "scan_id"], kind="stable", ignore_index=True)


def scan_volumes(table: pd.DataFrame, scans: Mapping[str, SkmTeaScan]) -> dict[Group, ScanVolumes]:
    """Collect the volumes of the scans for each acceleration.

    Args:
        table: volumes as `scan_table` has them.
        scans: scans by id, whose masks are looked at; others in the table are left out.

    Raises:
        ValueError: masks of one acceleration are of several kinds.
    """
    table = table[table["scan_id"].isin(scans)]
    return {
        _group(float(acceleration), [scans[name] for name in part["scan_id"].unique()]): arrays_of(part)
        for acceleration, part in table.groupby("acceleration")
    }


def arrays_of(table: pd.DataFrame) -> ScanVolumes:
    """Return the rows of one acceleration of `scan_table` as arrays, a row for each scan."""
    names, columns = list(table["class"].unique()), [*_VOLUMES, "voxel"]
    wide = {name: table.pivot(index="scan_id", columns="class", values=name)[names] for name in columns}
    point, lower, upper, truth, voxels = (wide[name].to_numpy(float) for name in columns)
    return ScanVolumes(tuple(wide["voxel"].index), tuple(names), point, lower, upper, truth, voxels[:, 0])


def _group(acceleration: float, scans: Sequence[SkmTeaScan]) -> Group:
    """Return the group of the masks of one nominal acceleration."""
    masks = [measured_group(read_mask(scan.scan_id, str(scan.kspace_file), acceleration)) for scan in scans]
    measured, families = zip(*masks, strict=True)
    if len(set(families)) > 1:
        raise ValueError(
            f"the masks of acceleration {acceleration:g} must be of one kind, got {', '.join(sorted(set(families)))}. "
            "Calibrate them one after the other."
        )
    return Group(acceleration, families[0], (min(measured), max(measured)))


def seen_scans(checkpoint: Path, data_dir: str, split: str) -> dict[str, tuple[str, ...]]:
    """List the scans that were trained and tuned on.

    They are those that the checkpoint names in `scans.json`, and those of the splits "train" and "val" of the
    data, unless one of these is calibrated on.

    Args:
        checkpoint: folder of the pipeline.
        data_dir: folder of the data.
        split: split that is calibrated on.

    Returns:
        Ids of the scans of "train" and "tune".
    """
    seen: dict[str, set[str]] = defaultdict(set)
    path = checkpoint / SCANS_FILE
    if path.is_file():
        for name, scan_ids in json.loads(path.read_text()).items():
            seen[name] |= set(scan_ids)
    for name, of_data in (("train", "train"), ("tune", "val")):
        if of_data in split_names(data_dir) and of_data != split:
            seen[name] |= {entry["scan_id"] for entry in read_annotations(data_dir, of_data)}
    return {name: tuple(sorted(seen[name])) for name in ("train", "tune")}


def check_scans(scan_ids: Sequence[str], seen: Mapping[str, Sequence[str]], coverages: Sequence[float]) -> None:
    """Refuse, before anything is computed, scans that a calibration cannot be made of.

    Args:
        scan_ids: scans to calibrate on.
        seen: scans of other splits.
        coverages: wanted coverages.

    Raises:
        ValueError: there are too few scans, or some were trained or tuned on.
    """
    needed = max(map(scans_needed, coverages))
    if len(scan_ids) < needed:
        raise ValueError(
            f"--coverage {max(coverages):g} needs at least {needed} scans to calibrate on, got {len(scan_ids)}. Add "
            "scans to the split, or ask for a lower coverage."
        )
    for name, others in seen.items():
        both = sorted(set(scan_ids) & set(others))
        if both:
            raise CalibrationMismatch(
                f"--split must hold scans that nothing was trained, chosen or tuned on, but {', '.join(both[:3])} and "
                f"{len(both)} in all belong to the split {name}. Calibrate on other scans."
            )


def calibrate_checkpoint(
    volumes: Mapping[Group, ScanVolumes],
    config: Mapping[str, Any],
    settings: CalibrationSettings,
    seen: Mapping[str, tuple[str, ...]],
    coverages: Sequence[float],
    reference: str,
) -> Calibration:
    """Calibrate the bounds of an evaluation.

    Args:
        volumes: volumes of the scans.
        config: content of `config.json` of the results.
        settings: settings of the evaluation.
        seen: ids of the scans of "train" and "tune".
        coverages: wanted coverages.
        reference: "fully_sampled" or "manual".

    Raises:
        ValueError: too few scans are complete.
    """
    ids = {scan_id for group in volumes.values() for scan_id in group.scan_ids}
    used = config["identity"]["settings"]
    names = ("slices", "min_foreground", "n_slices_per_scan")
    n_slices = [len(config["slices"][scan_id]) for scan_id in ids]
    return Calibration(
        quantiles=calibrate(volumes, coverages),
        settings=settings,
        splits={**seen, "calibration": tuple(sorted(ids))},
        reference=reference,
        slice_rule=", ".join(f"{name} {used[name]}" for name in names),
        n_slices=(min(n_slices), max(n_slices)),
        seed=used["seed"],
        versions=library_versions(),
    )


@dataclass(frozen=True)
class CoverageTask:
    """What `sgr calibrate` and `sgr evaluate --coverage` do before and after the volumes are computed.

    Attributes:
        folder: folder of the checkpoint.
        coverages: coverages to calibrate or to measure.
        request: evaluation that computes the volumes.
        calibrates: whether to write the calibration rather than to measure its coverage.
    """

    folder: Path
    coverages: tuple[float, ...]
    request: EvaluationRequest
    calibrates: bool

    @property
    def _reference(self) -> str:
        """Reference of the calibration: the segmentation of the fully sampled image unless only labels are read."""
        return "manual" if self.request.references == "manual" else "fully_sampled"

    def check(self, computer: UnitComputer) -> None:
        """Refuse, before anything is computed, what the result cannot be used for.

        Raises:
            FileNotFoundError: the checkpoint has no calibration whose coverage could be measured.
            ValueError: too few scans; scans that were trained, tuned or calibrated on; other settings.
        """
        ids = tuple(computer.data.scans)
        if self.calibrates:
            check_scans(ids, self._seen(), self.coverages)
        else:
            calibration = Calibration.load(self.folder)
            calibration.check_settings(self._settings(computer))
            calibration.check_unseen(ids)
            for numbers in computer.data.slices.values():
                calibration.check_slices(len(numbers))

    def finish(self, computer: UnitComputer) -> list[str]:
        """Write `volumes.csv`, and `calibration.json` or `coverage.csv` and `coverage.png`, and return what to print.

        Raises:
            ValueError: too few scans are complete.
        """
        results, output = load_results(self.request.output), Path(self.request.output)
        by_scan = scan_table(results, self._reference)
        with whole_file(output / "volumes.csv") as partial:
            by_scan.round(3).to_csv(partial, index=False, lineterminator="\n")
        volumes = scan_volumes(by_scan, computer.data.scans)
        if self.calibrates:
            settings, seen = self._settings(computer), self._seen()
            calibration = calibrate_checkpoint(
                volumes, results.config, settings, seen, self.coverages, self._reference
            )
            lines = [f"{calibration.save(self.folder)}: calibrated on {len(calibration.splits['calibration'])} scans."]
            if not any(seen.values()):
                lines.append(
                    f"Nothing says which scans the networks were trained on ({SCANS_FILE} of the checkpoint, or the "
                    "splits train and val of the data): that none of these was among them could not be checked."
                )
            return lines
        table = coverage_table(volumes, Calibration.load(self.folder), self.coverages)
        path = output / "coverage.csv"
        with whole_file(path) as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
        width_figure(table).savefig(path.with_suffix(".png"))
        note = (
            "In brackets: how many are expected, with probability 95 %. Interval and bounds: median widths over the "
            "scans of which an image shows the tissue."
        )
        return [format_table(coverage_rows(table)), "", note, f"Written to {path}"]

    def _seen(self) -> dict[str, tuple[str, ...]]:
        """Return the scans that were trained and tuned on."""
        return seen_scans(self.folder, self.request.data_dir, self.request.split)

    def _settings(self, computer: UnitComputer) -> CalibrationSettings:
        """Return the settings that a calibration depends on."""
        settings = self.request.settings
        return calibration_settings(computer.pipe, settings, settings.visited_timesteps)


def checkpoint_folder(model: str | None) -> Path:
    """Return the folder that `calibration.json` is written to and read from.

    Args:
        model: folder or bundled name of the pipeline; `None` for the bundled one of the synthetic knees.

    Raises:
        ValueError: the pipeline is not in a folder of this machine.
    """
    folder = Path(PRETRAINED if model is None else BUNDLED.get(model, model))
    if not folder.is_dir():
        raise ValueError(
            f"--model must be a folder, where {FILE_NAME} lies, got {model}. Save the pipeline to one by "
            "`pipe.save_pretrained(folder)`."
        )
    return folder
