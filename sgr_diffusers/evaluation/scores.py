"""Compute the scores of volumes and their summary over scans, as tables, from the voxel counts of slices.

Precision of S_low, recall of S_up and V_unc / V_up of each volume (all slices of a scan together) and class; then the
median over scans and classes with quartiles. SSIM and PSNR of each volume; then the mean.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..bounds import uncertain_share
from . import bootstrap
from .counts import complete_slices, count_bounds, equal_budget_samples
from .load import EvaluationResults

__all__ = ["QUALITY", "SCORES", "ScoreTables", "score", "volume_scores"]

SCORES = ("precision_lower", "recall_upper", "uncertain_share")
QUALITY = ("ssim", "psnr")
NOISE_FREE = "psnr_noise_free"
_VOLUME = ["acceleration", "method", "strength", "n_samples", "subset", "segmenter", "reference", "scan_id", "label"]
_COUNTS = ["lower", "upper", "lower_in", "upper_in", "truth", "finding", "finding_lower"]


def volume_scores(counts: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of each volume and class, from the counts of its slices; NaN where there is no value.

    Adds to the columns of the counts: the three scores; `covered`, whether the volume of the reference lies in
    [V_low, V_up] (NaN where reference and upper bound are empty); and `width`, V_unc / V of the reference.
    """
    volumes = counts.groupby(_VOLUME, as_index=False, sort=True)[_COUNTS].sum()
    volumes["n_slices"] = counts.groupby(_VOLUME, as_index=False, sort=True)["slice"].nunique()["slice"]
    lower, upper, truth = (volumes[name].to_numpy(np.float64) for name in ("lower", "upper", "truth"))
    volumes["precision_lower"] = _ratio(volumes["lower_in"], lower)
    volumes["recall_upper"] = _ratio(volumes["upper_in"], truth)
    volumes["uncertain_share"] = uncertain_share(lower, upper)
    covered = ((lower <= truth) & (truth <= upper)).astype(np.float64)
    volumes["covered"] = np.where((truth == 0) & (upper == 0), np.nan, covered)
    volumes["width"] = _ratio(upper - lower, truth)
    return volumes


def _ratio(part: Any, whole: Any) -> Float[np.ndarray, " row"]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


@dataclass(frozen=True)
class ScoreTables:
    """All tables of an evaluation, as pandas frames.

    Attributes:
        counts: voxel counts, see the module `counts`; only slices for which all methods are done.
        volumes: scores of each volume and class.
        quality: SSIM and PSNR of each volume and image; the measured image and its reconstruction share their noise,
            so that the PSNR to the image without noise is given, too, where that is known (`NOISE_FREE`).
        scores: summary with one row for each acceleration, method, strength, segmenter, reference and group of scans.
        differences: differences of paired scores, SGR - RR.
        growth: factor by which V_unc / V_up of SGR and RR grows from the lowest to the highest acceleration.
        curve: scores of RR against its number of samples, and of SGR in the same slices.
        findings: counts and shares of what becomes of rare findings.
        budgets: mean number of samples that cost as much as SGR does, for each acceleration.
    """

    counts: pd.DataFrame
    volumes: pd.DataFrame
    quality: pd.DataFrame
    scores: pd.DataFrame
    differences: pd.DataFrame
    growth: pd.DataFrame
    curve: pd.DataFrame
    findings: pd.DataFrame
    budgets: pd.DataFrame


def score(results: EvaluationResults, seed: int = 0) -> ScoreTables:
    """Compute all tables.

    Args:
        results: stored results from `load_results`.
        seed: seed of the bootstrap.

    Raises:
        ValueError: nothing is done that could be scored.
    """
    counts = count_bounds(results)
    done = complete_slices(results)
    if counts.empty or not any(done.values()):
        raise ValueError("no slice has results of all methods yet: there is nothing to report. Run `sgr evaluate` on.")
    keys = zip(counts["scan_id"], counts["slice"], counts["acceleration"], strict=True)
    counts = counts[[key[:2] in done.get(key[2], ()) for key in keys]].reset_index(drop=True)
    main, default = counts[counts["part"] == "main"], results.strength
    if main.empty:
        raise ValueError("no slice of the protocol is complete yet: there is nothing to report.")
    with_finding = _scans_with_finding(results)
    groups: dict[str, set[str]] = {"all": set(main["scan_id"])}
    if with_finding and groups["all"] - with_finding:
        groups |= {"finding": with_finding, "no_finding": groups["all"] - with_finding}
    volumes, quality = volume_scores(main), _quality(results, done)
    budgets = pd.DataFrame(
        [{"acceleration": key[2], "n_samples": n} for key, n in equal_budget_samples(results).items()],
        columns=["acceleration", "n_samples"],
    )
    return ScoreTables(
        counts,
        volumes,
        quality,
        scores=pd.DataFrame(_score_rows(volumes, quality, groups, seed)),
        differences=pd.DataFrame(_difference_rows(volumes, quality, default, seed)),
        growth=pd.DataFrame(_growth_rows(volumes, default, seed)),
        curve=pd.DataFrame(_curve_rows(main, default, seed)),
        findings=pd.DataFrame(_finding_rows(counts, default)),
        budgets=budgets.groupby("acceleration", as_index=False).mean(),
    )


def _scans_with_finding(results: EvaluationResults) -> set[str]:
    return {unit.scan_id for unit, row in results.of_kind("reference") if row["findings"] not in (None, "[]")}


def _quality(results: EvaluationResults, done: dict[float, set[tuple[str, int]]]) -> pd.DataFrame:
    """Compute SSIM (mean over slices) and PSNR (of all pixels) of each image of a volume, in the protocol's slices."""
    main = {(scan_id, n) for scan_id, numbers in results.config["slices"].items() for n in numbers}
    rows = []
    for unit, row in results.rows.items():
        key = (unit.scan_id, unit.slice)
        if unit.kind == "reference" or key not in main or key not in done.get(unit.acceleration, ()):
            continue
        head = {"acceleration": unit.acceleration, "method": unit.kind, "scan_id": unit.scan_id, "slice": unit.slice}
        head["strength"] = row["strength_used"] if unit.kind == "SGR" else 0.0
        for image in row["images"]:
            if unit.kind == "RR" and image["sample"] >= results.rr_samples:
                continue
            name = f"{image['class_number']}-{image['target']}-{image['sample']}"
            noise_free = image.get("squared_error_noise_free")  # results of earlier versions lack it
            rows.append(
                {
                    **head,
                    "image": name,
                    "ssim": np.nan if image["ssim"] is None else image["ssim"],
                    "residual": image["residual"],
                    "error": image["squared_error"] / (row["height"] * row["width"]),
                    "error_noise_free": np.nan if noise_free is None else noise_free / (row["height"] * row["width"]),
                }
            )
    frame = pd.DataFrame(rows)
    keys = ["acceleration", "method", "strength", "scan_id", "image"]
    volumes = frame.groupby(keys, as_index=False)[["ssim", "error", "error_noise_free", "residual"]].mean()
    for name, of in (("psnr", "error"), (NOISE_FREE, "error_noise_free")):
        error = volumes[of].to_numpy()
        volumes[name] = -10 * np.log10(error, out=np.full(len(error), -np.inf), where=~(error <= 0))
    return volumes


def _matrix(volumes: pd.DataFrame, name: str, columns: str = "label") -> Float[np.ndarray, "scan item"]:
    return volumes.pivot_table(index="scan_id", columns=columns, values=name, dropna=False).to_numpy(np.float64)


def _estimates(
    volumes: pd.DataFrame, names: Sequence[str], statistic: Callable, seed: int, columns: str = "label"
) -> dict[str, float]:
    summary: dict[str, float] = {}
    for name in names:
        values = _matrix(volumes, name, columns)
        estimate = bootstrap.estimate(values, statistic, seed)
        summary |= {name: estimate.value, f"{name}_ci_low": estimate.low, f"{name}_ci_high": estimate.high}
        if statistic is bootstrap.median:
            known = values[~np.isnan(values)]
            quartiles = np.percentile(known, (25, 75)) if len(known) else (np.nan, np.nan)
            summary |= {f"{name}_q25": float(quartiles[0]), f"{name}_q75": float(quartiles[1])}
    return summary


def _score_rows(
    volumes: pd.DataFrame, quality: pd.DataFrame, groups: dict[str, set[str]], seed: int
) -> Iterator[dict[str, Any]]:
    keys = ["acceleration", "method", "strength", "segmenter", "reference"]
    compared = volumes[volumes["method"] != "RR_curve"]
    for group, scans in groups.items():
        for key, part in compared[compared["scan_id"].isin(scans)].groupby(keys, sort=True):
            head = dict(zip(keys, key, strict=True))
            if head["method"] == "RR_equal_budget" and part["n_slices"].sum() < _n_slices(compared, head, scans):
                continue  # of other slices than the rest: see the curve
            images = quality[
                (quality["acceleration"] == head["acceleration"])
                & (quality["method"] == head["method"].replace("RR_equal_budget", "RR"))
                & (quality["strength"] == head["strength"])
                & quality["scan_id"].isin(scans)
            ]
            yield {
                "group": group,
                **head,
                "n_scans": part["scan_id"].nunique(),
                "n_volumes": len(part),
                "n_slices": int(part.groupby("scan_id")["n_slices"].max().sum()),
                **_estimates(part, (*SCORES, "width"), bootstrap.median, seed),
                **_estimates(part, ("covered",), bootstrap.mean, seed),
                **(_estimates(images, (*QUALITY, NOISE_FREE), bootstrap.mean, seed, "image") if len(images) else {}),
            }


def _n_slices(volumes: pd.DataFrame, head: dict[str, Any], scans: set[str]) -> int:
    """Count the slices that RR was done in, summed over volumes and classes."""
    names = ["acceleration", "segmenter", "reference"]
    same = np.logical_and.reduce([volumes[name] == head[name] for name in names])
    return int(volumes[same & (volumes["method"] == "RR") & volumes["scan_id"].isin(scans)]["n_slices"].sum())


def _difference_rows(
    volumes: pd.DataFrame, quality: pd.DataFrame, default: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Subtract RR from SGR in the same volume and class; for SSIM and PSNR in the same scan, means over its images."""
    sgr = volumes[(volumes["method"] == "SGR") & np.isclose(volumes["strength"], default)]
    for baseline in ("RR", "RR_equal_budget"):
        other = volumes[volumes["method"] == baseline]
        for key, part in sgr.groupby(["acceleration", "segmenter", "reference"], sort=True):
            names = dict(zip(("acceleration", "segmenter", "reference"), key, strict=True))
            match = other[np.logical_and.reduce([other[name] == value for name, value in names.items()])]
            pairs = part.merge(match, on=["scan_id", "label"], suffixes=("", "_other"))
            pairs = pairs[pairs["n_slices"] == pairs["n_slices_other"]]
            if pairs.empty:
                continue
            for name in (*SCORES, "covered"):
                pairs[name] = pairs[name] - pairs[f"{name}_other"]
            row = {**names, "baseline": baseline, "n_scans": pairs["scan_id"].nunique()}
            row |= _estimates(pairs, SCORES, bootstrap.median, seed)
            row |= _estimates(pairs, ("covered",), bootstrap.mean, seed)
            if baseline == "RR":
                row |= _quality_differences(quality[quality["acceleration"] == names["acceleration"]], default, seed)
            yield row


def _growth_rows(volumes: pd.DataFrame, default: float, seed: int) -> Iterator[dict[str, Any]]:
    """Divide the medians at the highest and the lowest acceleration, which share the scans of each resample."""
    ends = volumes["acceleration"].min(), volumes["acceleration"].max()
    if ends[0] == ends[1]:
        return
    is_shown = (volumes["method"] == "RR") | ((volumes["method"] == "SGR") & np.isclose(volumes["strength"], default))
    compared = volumes[is_shown & volumes["acceleration"].isin(ends)]
    for key, part in compared.groupby(["method", "segmenter", "reference"], sort=True):
        table = part.pivot_table("uncertain_share", "scan_id", ["acceleration", "label"], dropna=False)
        table = table.reindex(columns=pd.MultiIndex.from_product([ends, sorted(part["label"].unique())]))
        table = table.dropna(how="all")

        def growth(resampled: Float[np.ndarray, "resample value"], n_items: int = table.shape[1]) -> np.ndarray:
            by_end = resampled.reshape(len(resampled), -1, 2, n_items // 2)
            medians = [bootstrap.median(by_end[:, :, end].reshape(len(resampled), -1)) for end in (0, 1)]
            return _ratio(medians[1], medians[0])

        estimate = bootstrap.estimate(table.to_numpy(np.float64), growth, seed)
        yield {
            **dict(zip(("method", "segmenter", "reference"), key, strict=True)),
            **{"from_acceleration": ends[0], "to_acceleration": ends[1], "n_scans": len(table)},
            **{"growth": estimate.value, "growth_ci_low": estimate.low, "growth_ci_high": estimate.high},
        }


def _quality_differences(quality: pd.DataFrame, default: float, seed: int) -> dict[str, float]:
    means = []
    for is_own in ((quality["method"] == "SGR") & np.isclose(quality["strength"], default), quality["method"] == "RR"):
        means.append(quality[is_own].groupby("scan_id")[list(QUALITY)].mean())
    columns: dict[str, float] = {}
    for name in QUALITY:
        values = (means[0][name] - means[1][name]).to_numpy(np.float64)[:, None]
        estimate = bootstrap.estimate(values, bootstrap.mean, seed)
        columns |= {name: estimate.value, f"{name}_ci_low": estimate.low, f"{name}_ci_high": estimate.high}
    return columns


def _curve_rows(counts: pd.DataFrame, default: float, seed: int) -> Iterator[dict[str, Any]]:
    """Score RR against its number of samples; values of several disjoint sets of as many are averaged first."""
    curve = counts[counts["method"] == "RR_curve"]
    for acceleration, part in curve.groupby("acceleration", sort=True):
        slices = set(zip(part["scan_id"], part["slice"], strict=True))
        is_shown = np.array([key in slices for key in zip(counts["scan_id"], counts["slice"], strict=True)])
        same = counts[(counts["acceleration"] == acceleration) & is_shown]
        sgr = same[(same["method"] == "SGR") & np.isclose(same["strength"], default)]
        budget = same[same["method"] == "RR_equal_budget"]
        for method, frame in (("RR", part), ("SGR", sgr), ("RR_equal_budget", budget)):
            if frame.empty:
                continue
            volumes = volume_scores(frame)
            keys = ["segmenter", "reference", "n_samples"]
            for key, group in volumes.groupby(keys, sort=True):
                per_volume = group.groupby(["scan_id", "label"], as_index=False)[[*SCORES, "covered", "width"]].mean()
                yield {
                    "acceleration": acceleration,
                    "method": method,
                    **dict(zip(keys, key, strict=True)),
                    "n_subsets": group["subset"].nunique(),
                    "n_scans": per_volume["scan_id"].nunique(),
                    "n_slices": len(slices),
                    **_estimates(per_volume, (*SCORES, "width"), bootstrap.median, seed),
                    **_estimates(per_volume, ("covered",), bootstrap.mean, seed),
                }


def _finding_rows(counts: pd.DataFrame, default: float) -> Iterator[dict[str, Any]]:
    """Count the tissue that a finding took away, in all slices that show it, scan by scan and class by class.

    The bounds admit the finding where S_low leaves its voxels out; one that S_low fills up was overlooked.
    """
    compared = counts[
        (counts["reference"] == "manual")
        & (counts["finding"] > 0)
        & ((counts["method"] == "RR") | ((counts["method"] == "SGR") & np.isclose(counts["strength"], default)))
    ]
    for key, part in compared.groupby(["acceleration", "method", "segmenter"], sort=True):
        volumes = part.groupby(["scan_id", "label"])[_COUNTS].sum()
        admitted = 1 - volumes["finding_lower"] / volumes["finding"]
        covered = (volumes["lower"] <= volumes["truth"]) & (volumes["truth"] <= volumes["upper"])
        yield {
            **dict(zip(("acceleration", "method", "segmenter"), key, strict=True)),
            "n_findings": len(volumes),
            "n_slices": part[["scan_id", "slice"]].drop_duplicates().shape[0],
            "finding_voxels": int(volumes["finding"].sum()),
            "admitted_share": float(1 - volumes["finding_lower"].sum() / volumes["finding"].sum()),
            "admitted_mostly": float((admitted >= 0.5).mean()),
            "true_volume_covered": float(covered.mean()),
            "width": float(((volumes["upper"] - volumes["lower"]) / volumes["truth"]).mean()),
        }
