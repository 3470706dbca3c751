"""The calibration that a checkpoint carries, in the file `calibration.json`.

It holds the quantiles, and everything that they depend on. A call that differs is refused: the coverage of its
interval would be unknown.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..utils.differences import difference
from ..utils.files import whole_file
from .quantiles import Group, GroupQuantiles

__all__ = ["FILE_NAME", "Calibration", "CalibrationMismatch", "CalibrationSettings"]

FILE_NAME = "calibration.json"
FORMAT_VERSION = 3  # before: the scores were distances from the bounds
_WAY_OUT = "Write it again by `sgr calibrate`, or delete it and leave out `coverage`."
SPLITS = ("train", "tune", "calibration")

T = TypeVar("T")


class CalibrationMismatch(ValueError):
    """A call, a mask or a scan that the calibration does not hold for."""


@dataclass(frozen=True)
class CalibrationSettings:
    """What has to be the same in a call as in the calibration.

    Attributes:
        networks: hash of the weights of each network, by the name of the pipeline's component.
        scheduler: class and configuration of the scheduler.
        num_inference_steps: number of reverse steps.
        timesteps: timesteps that are visited; `None` for the scheduler's own choice.
        eta: share of fresh noise.
        guidance_strength: b of paper Eq. 14, the mean over the pushed steps.
        guidance_from: share of the training time below which images are pushed.
        is_equivariant: whether the prior sees images turned and mirrored.
        denoising_variance: error of the prior at each noise level, for the noise-aware consistency; `None` if it was
            not measured.
        consistency: method of data consistency in a step.
        cg_iterations: iterations of conjugate gradients in a step.
        final_consistency: kind of data consistency in the last step.
    """

    networks: Mapping[str, str]
    scheduler: Mapping[str, Any]
    num_inference_steps: int
    timesteps: tuple[int, ...] | None
    eta: float
    guidance_strength: float
    guidance_from: float
    is_equivariant: bool
    denoising_variance: Mapping[str, Any] | None
    consistency: str
    cg_iterations: int
    final_consistency: str


@dataclass(frozen=True)
class Calibration:
    """Quantiles, and what they were computed from.

    Attributes:
        quantiles: of every group and coverage.
        settings: settings that a call must share.
        splits: ids of the scans of each split; "train", "tune" and "calibration" are needed, "test" may be added.
        reference: what gave the reference volumes, for example "fully_sampled" or "manual".
        slice_rule: which slices of a scan were taken.
        n_slices: smallest and largest number of slices of a scan, whose volumes were added up.
        seed: seed of all noise of the calibration.
        versions: version of each library that computed the calibration.

    Raises:
        ValueError: a split is missing, two splits share a scan, a quantile is missing or infinite, or a group and
            coverage are there twice.
    """

    quantiles: tuple[GroupQuantiles, ...]
    settings: CalibrationSettings
    splits: Mapping[str, tuple[str, ...]]
    reference: str
    slice_rule: str
    n_slices: tuple[int, int]
    seed: int
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        """Check splits and quantiles."""
        missing = [name for name in SPLITS if name not in self.splits]
        if missing:
            raise ValueError(f"`splits` must name the scans of {', '.join(SPLITS)}, got none of {', '.join(missing)}.")
        for split, other in combinations(self.splits, 2):
            both = sorted(set(self.splits[split]) & set(self.splits[other]))
            if both:
                raise ValueError(
                    f"`splits` must not share scans, got {_few(both)} in {split} and {other}. Calibrate on scans that "
                    "nothing was trained, chosen or tuned on."
                )
        for entry in self.quantiles:
            numbers = entry.lower, entry.upper, entry.unseen_upper, entry.n_seen
            if any(len(values) != len(entry.classes) for values in numbers):
                raise ValueError(
                    f"`quantiles` must have a lower and an upper value for each of {len(entry.classes)} classes, got "
                    f"{len(entry.lower)} and {len(entry.upper)}."
                )
            at_once = entry.all_lower, entry.all_upper
            if not all(map(math.isfinite, (*entry.lower, *entry.upper, *entry.unseen_upper, *at_once))):
                raise ValueError(f"`quantiles` must be finite, got {entry}. Calibrate with more scans.")
            if entry.n_scans > len(self.splits["calibration"]):
                raise ValueError(
                    f"`quantiles` at {entry.group} are of {entry.n_scans} scans, but `splits` names "
                    f"{len(self.splits['calibration'])} for the calibration."
                )
        keys = [(entry.group, entry.coverage) for entry in self.quantiles]
        if len(set(keys)) < len(keys):
            raise ValueError("`quantiles` must have one entry for each group and coverage, got one of them twice.")

    def quantiles_for(self, coverage: float, measured_acceleration: float, mask_family: str) -> GroupQuantiles:
        """Find the quantiles for a coverage and a mask.

        Args:
            coverage: wanted coverage, one of the calibrated ones.
            measured_acceleration: number of k-space positions over number of measured positions of the mask.
            mask_family: kind of the mask, for example "poisson".

        Raises:
            CalibrationMismatch: the coverage or the mask was not calibrated; the message says what was.
        """
        of_mask = [entry for entry in self.quantiles if entry.group.holds(measured_acceleration, mask_family)]
        if not of_mask:
            groups = {
                f"{entry.group} ({entry.group.measured[0]:.3g} to {entry.group.measured[1]:.3g} measured)": None
                for entry in self.quantiles
            }
            raise CalibrationMismatch(
                f"`mask` of kind {mask_family} with acceleration {measured_acceleration:.3g} has no calibration. "
                f"Calibrated are {', '.join(groups)}. Use such a mask, or leave out `coverage`."
            )
        for entry in of_mask:
            if math.isclose(entry.coverage, coverage):
                return entry
        coverages = ", ".join(f"{entry.coverage:g}" for entry in of_mask)
        raise CalibrationMismatch(
            f"`coverage` {coverage:g} has no calibration at {of_mask[0].group}. Use {coverages}."
        )

    def check_settings(self, now: CalibrationSettings) -> None:
        """Refuse networks, scheduler or settings that differ from the calibrated ones.

        Raises:
            CalibrationMismatch: something differs; the message lists what.
        """
        different = difference(_plain(self.settings), _plain(now))
        if different:
            raise CalibrationMismatch(
                f"`coverage` was calibrated with other settings: {'; '.join(different)} ('there' is {FILE_NAME}). Use "
                "the calibrated settings, leave out `coverage`, or calibrate these settings."
            )

    @property
    def slices_text(self) -> str:
        """Number of slices of a calibration scan, for messages and the card."""
        least, most = self.n_slices
        if least < most:
            return f"{least} to {most} slices"
        return "1 slice" if most == 1 else f"{most} slices"

    def check_slices(self, n_slices: int) -> None:
        """Refuse a number of slices that no scan of the calibration had: the interval is of their volume together.

        Raises:
            CalibrationMismatch: there are too few or too many slices; the message says how many are needed.
        """
        least, most = self.n_slices
        if not least <= n_slices <= most:
            raise CalibrationMismatch(
                f"`coverage` was calibrated for the volume in {self.slices_text} of a scan together, chosen by "
                f"{self.slice_rule}; got {n_slices}. Give {self.slices_text} chosen likewise, or leave out `coverage`."
            )

    def check_unseen(self, scan_ids: Iterable[str]) -> None:
        """Refuse to measure the coverage on scans that were trained, tuned or calibrated on.

        Raises:
            CalibrationMismatch: there are such scans; the message names some.
        """
        for name in SPLITS:
            seen = sorted(set(self.splits[name]) & set(scan_ids))
            if seen:
                raise CalibrationMismatch(
                    f"the coverage must be measured on other scans: {_few(seen)} belong to the split {name} of "
                    f"{FILE_NAME}. Leave them out."
                )

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `calibration.json` into the folder of a checkpoint."""
        path = Path(folder) / FILE_NAME
        content = {"format_version": FORMAT_VERSION} | asdict(self)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Calibration":
        """Read `calibration.json` from the folder of a checkpoint.

        Raises:
            FileNotFoundError: the checkpoint has no calibration.
            ValueError: the file is damaged or has another format.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {FILE_NAME}: this checkpoint is not calibrated.")
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise ValueError(f"it must hold a JSON object, not {type(content).__name__}")
            version = content.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ValueError(f"`format_version` is {version}, this version of the package reads {FORMAT_VERSION}")
            content["settings"] = _build(CalibrationSettings, content["settings"])
            content["quantiles"] = tuple(
                _build(GroupQuantiles, entry | {"group": _build(Group, entry["group"])})
                for entry in content["quantiles"]
            )
            for name, scan_ids in content["splits"].items():
                _check_type(f"splits.{name}", scan_ids, tuple[str, ...])
            content["splits"] = {name: tuple(scan_ids) for name, scan_ids in content["splits"].items()}
            return _build(cls, content)
        except RecursionError as error:
            raise ValueError(f"{path} cannot be used (it is nested too deep). {_WAY_OUT}") from error
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} cannot be used (an entry is missing or of a wrong type: {error}). {_WAY_OUT}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be used ({error}). {_WAY_OUT}") from error


def _build(kind: type[T], content: Mapping[str, Any]) -> T:
    """Make a dataclass from a mapping that has exactly its fields, of their types; lists become tuples."""
    wanted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if wanted != set(content):
        raise ValueError(
            f"{kind.__name__} lacks {sorted(wanted - set(content))} and does not know {sorted(set(content) - wanted)}"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    for name, expected in get_type_hints(kind).items():
        _check_type(name, values[name], expected)
    return kind(**values)


def _check_type(name: str, value: Any, expected: Any) -> None:
    """Raise a TypeError that names an entry whose value is of another type than expected."""
    if not _is_of_type(value, expected):
        text = expected.__name__ if isinstance(expected, type) and not get_args(expected) else str(expected)
        raise TypeError(f"`{name}` must be of type {text.replace('collections.abc.', '')}, got {str(value)[:80]!r}")


def _is_of_type(value: Any, expected: Any) -> bool:
    """Return whether a value and its entries are of a type of the dataclasses above; an integer is a float, too."""
    inner = get_args(expected)
    if isinstance(expected, UnionType):
        return any(_is_of_type(value, one) for one in inner)
    if get_origin(expected) is tuple:
        values = value if isinstance(value, list | tuple) else ()
        kinds = inner[:1] * len(values) if inner[-1] is ... else inner
        return values is value and len(values) == len(kinds) and all(map(_is_of_type, values, kinds))
    if inner:
        return isinstance(value, Mapping) and all(_is_of_type(entry, inner[1]) for entry in value.values())
    if expected in (int, float):
        return isinstance(value, (int, expected)) and not isinstance(value, bool)
    return expected is Any or isinstance(value, expected)


def _plain(settings: CalibrationSettings) -> dict[str, Any]:
    """Return the values as JSON keeps them, so that tuples equal lists."""
    return json.loads(json.dumps(asdict(settings)))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
