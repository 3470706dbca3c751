"""Renders the card of a pipeline and writes its evaluation results from the records in its folder.

Records, by name in the folder: `training/*_prior.json` and `training/*_segmentation.json` of the training scripts,
`training/assembly.json` of `assemble_pipeline.py`, `evaluation/table1.csv` and `evaluation/settings.json` of `sgr
report`, `evaluation/quality.json` of `tests/benchmarks/benchmark_quality.py`; figures are `evaluation/figure*.png`;
`calibration.json` of `sgr calibrate`, and `evaluation/coverage.csv` and `.png` of `sgr evaluate --coverage`.
Every number of a card is from one of them.
"""

import json
import math
from pathlib import Path
from typing import Any

from ..data.skm_tea import SKM_TEA, SYNTHETIC
from ..evaluation.report import CAPTIONS
from ..evaluation.scores import QUALITY, SCORES
from ..evaluation.table1 import read_table1, table1_cells
from ..guidance.strength import PAPER_STRENGTH
from ..hub.model_index import read_json, read_model_index
from ..utils.files import RECORD_FILE
from .calibrated import calibration_facts
from .cards import SKM_TEA_LICENCE, render_card
from .measured import QUALITY_FILE, names_its_weights

__all__ = ["WATTS_PER_CORE", "card_snippet", "model_card", "model_facts", "write_eval_results"]

# For the estimate of energy only, and stated beside it: what a core of a server draws under load, with its share of
# the machine. Nothing is assumed for GPUs, which differ by a factor of ten.
WATTS_PER_CORE = 15
_TABLE1_SCORES = (*SCORES, *QUALITY)
_SCORE_NAMES = {
    "precision_lower": "Precision of the lower bound",
    "recall_upper": "Recall of the upper bound",
    "uncertain_share": "V_unc / V_up",
    "ssim": "SSIM",
    "psnr": "PSNR in dB",
}


def model_card(folder: str | Path, source: str | Path, dataset: str | None = None, licence: str | None = None) -> str:
    """Render the card of a pipeline.

    Args:
        folder: folder of the pipeline, with its records.
        source: argument of `from_pretrained` in the card: a repository, or a folder (if it is still to be made: a
            `Path`).
        dataset: name of the repository of the data set on the Hub, if it is there.
        licence: licence of the weights, by its name on the Hub; `None` for what follows from synthetic data or
            SKM-TEA.

    Raises:
        ValueError: a record is missing or damaged, the template asks for what was not recorded, or `licence` is
            needed, or follows from the data already.
    """
    folder = Path(folder)
    facts = model_facts(folder)
    values = facts | {"quoted_source": _quoted(source), "snippet": _snippet(facts["case"], source)}
    return render_card("model_card.md.jinja", values | {"metadata": _metadata(facts, source, dataset, licence)})


def card_snippet(folder: str | Path, source: str) -> str:
    """Return the example of a pipeline's card alone, as Python.

    Raises:
        ValueError: a record is missing or damaged.
    """
    return _snippet(model_facts(folder)["case"], source)


def _snippet(case: dict[str, Any] | None, source: str | Path) -> str:
    """Of records, only the acceleration gets into it, a number."""
    is_folder = isinstance(source, Path) or Path(source).is_dir() or source.count("/") != 1
    case_file = _quoted(Path(source) / "case.h5")
    values = {"source": _quoted(source), "case_file": case_file, "source_is_folder": is_folder}
    values["acceleration"] = None if case is None else case["acceleration"]
    return render_card("snippet.py.jinja", values).rstrip()


def _quoted(text: str | Path) -> str:
    """As a string in Python."""
    return json.dumps(text.as_posix() if isinstance(text, Path) else text, ensure_ascii=False)


def model_facts(folder: str | Path) -> dict[str, Any]:
    """Collect what was recorded about a pipeline, by the names that the template has for it.

    Raises:
        ValueError: a record is missing or damaged.
    """
    folder = Path(folder)
    index = read_model_index(folder / "model_index.json")
    assembly = _record(folder / "training" / "assembly.json")
    priors, segmentations = (
        sorted((folder / "training").glob(f"*_{name}.json")) for name in ("prior", "segmentation")
    )
    numbers = sorted(int(path.name.split("_")[0]) for path in [*priors, *segmentations])
    if not priors or not segmentations or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(
            f"{folder} must hold the records of all runs of both trainings, training/<number>_prior.json and "
            f"training/<number>_segmentation.json, got {numbers}. `training/assemble_pipeline.py` writes them."
        )
    runs = [_run("Prior", path) for path in priors] + [_run("Segmentation model", path) for path in segmentations]
    last = runs[len(priors) - 1]
    machine = last["machine"]
    is_synthetic = assembly["data"]["config"] is not None
    name = SYNTHETIC if is_synthetic else assembly["data"].get("name")
    titles = {SYNTHETIC: "SGR on synthetic knees", SKM_TEA: "SGR on SKM-TEA"}
    return {
        "title": titles.get(name, "SGR on data in the SKM-TEA layout"),
        "size": read_json(folder / "unet" / "config.json")["sample_size"],
        "classes": read_json(folder / "segmentation_model" / "config.json")["class_names"],
        "cg_iterations": index["cg_iterations"],
        "guidance_strength": index.get("guidance_strength", PAPER_STRENGTH),
        "guidance_from": index.get("guidance_from", 1.0),
        "prior": last,
        "segmentation": runs[-1],
        "runs": runs,
        "machine": "{cores} cores, {platform}, {device}".format(**machine),
        "versions": ", ".join(f"{key} {value}" for key, value in last["versions"].items()),
        "data": {**assembly["data"], **last["data"], "is_synthetic": is_synthetic, "name": name},
        "case": _case(assembly["case"]),
        "note": assembly["note"],
        "quality": _quality(folder / "evaluation" / QUALITY_FILE),
        "table1": [list(row.values()) for row in table1_cells(_table1(folder), missing="")],
        "evaluation": _evaluation(folder / "evaluation" / RECORD_FILE),
        "scores": _scores(folder),
        "calibration": calibration_facts(folder),
        "figures": _figures(folder),
        "cost": _cost(runs),
    }


def _case(case: dict[str, Any] | None) -> dict[str, Any] | None:
    """The acceleration gets into the example, which is run: only a number may."""
    value = None if case is None else case["acceleration"]
    if case is not None and not (isinstance(value, int | float) and value is not True and 0 < value < math.inf):
        raise ValueError(f"`case.acceleration` of training/assembly.json must be a positive number, got {value!r}.")
    return case


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"The pipeline's folder holds no training/{path.name}, from which the card is filled. "
            "`training/assemble_pipeline.py` writes it; `push_to_hub` of the pipeline publishes one without records."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error


def _run(name: str, path: Path) -> dict[str, Any]:
    record = _record(path)
    last: dict[str, Any] = next(
        (row for row in reversed(record["history"]) if any(key.startswith("val_") for key in row)), {}
    )
    result = {key: value for key, value in last.items() if key.startswith("val_") and key != "val_errors"}
    return {**record, "name": name, "result": f"Validation: {json.dumps(result)}." if result else "Not validated."}


def _cost(runs: list[dict[str, Any]]) -> dict[str, Any]:
    machines = {(run["machine"]["device"], run["machine"]["cores"]) for run in runs}
    minutes = sum(run["minutes"] for run in runs)
    if len(machines) > 1 or next(iter(machines))[0] != "cpu":
        return {"minutes": f"{minutes:.0f}", "kwh": None, "watts": None}
    watts = WATTS_PER_CORE * next(iter(machines))[1]
    return {"minutes": f"{minutes:.0f}", "kwh": f"{watts * minutes / 60 / 1000:.2g}", "watts": watts}


def _figures(folder: Path) -> list[dict[str, str]]:
    paths = sorted((folder / "evaluation").glob("figure*.png"))
    return [{"path": f"evaluation/{path.name}", "title": CAPTIONS.get(path.stem, path.stem)} for path in paths]


def _quality(path: Path) -> dict[str, Any] | None:
    """Measured numbers of the quality benchmark, as the template wants them.

    `None` if it was not run, or its record does not say of which weights and scans it is.
    """
    if not path.is_file():
        return None
    measured = _record(path)
    if not names_its_weights(measured):
        return None
    for kind in ("psnr", "bounds"):
        rows = {key.removeprefix(f"{kind}_"): row for key, row in measured.items() if key.startswith(f"{kind}_")}
        measured[kind] = [{"acceleration": name.rstrip("x"), **row} for name, row in rows.items()]
    return measured


def _evaluation(path: Path) -> dict[str, Any] | None:
    """Data, steps and commands of the evaluation that a report is of; `None` if they are not recorded."""
    if not path.is_file():
        return None
    record = _record(path)
    settings = record["identity"]["settings"]
    return {
        "data": record["data"],
        "split": settings["split"],
        "n_slices": record["n_slices"],
        "steps": settings["num_inference_steps"],
        "strength": f"{settings['guidance_strength']:.4g}",
        "guidance_from": settings.get("guidance_from", 1.0),
        "seed": settings["seed"],
        "commands": list(dict.fromkeys(run["command"] for run in record["runs"])),
    }


def _table1(folder: Path) -> list[dict[str, Any]]:
    path = folder / "evaluation" / "table1.csv"
    return read_table1(path) if path.is_file() else []


def _scores(folder: Path) -> list[dict[str, Any]]:
    """Scores of the guided bounds, one at a time: acceleration, metric, value, of what they are and on which split."""
    evaluation = _evaluation(folder / "evaluation" / RECORD_FILE) or {}
    rows = [{**row, "split": evaluation.get("split")} for row in _table1(folder) if row["method"] == "SGR"]
    quality = _quality(folder / "evaluation" / QUALITY_FILE)
    if not rows and quality is not None:
        same = {"reference": "fully_sampled", "split": quality["split"]}
        rows = [{**row, "acceleration": float(row["acceleration"]), **same} for row in quality["bounds"]]
    return [
        {"metric": name, "value": row[name], **{key: row[key] for key in ("acceleration", "reference", "split")}}
        for row in rows
        for name in _TABLE1_SCORES
        if not math.isnan(row.get(name, math.nan))
    ]


def _metadata(facts: dict[str, Any], source: str | Path, dataset: str | None, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    name, evaluation = facts["data"]["name"], facts["evaluation"] or {}
    licences = {SYNTHETIC: {"license": "apache-2.0"}, SKM_TEA: SKM_TEA_LICENCE}
    if licence is not None and name in licences:
        raise ValueError(
            f"`licence` must be left out, got {licence!r}: that of weights trained on {name} is "
            f"{' '.join(licences[name].values())}."
        )
    if licence is None and name not in licences:
        raise ValueError(
            "`licence` must be given: the records do not say that the weights were trained on synthetic data or on "
            "SKM-TEA, so that their owner has to say what may be done with them: --license NAME."
        )
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name="Bounds of tissues in undersampled MRI",
            dataset_type=dataset or {SYNTHETIC: "synthetic-knee", SKM_TEA: "skm-tea"}.get(name, "skm-tea-layout"),
            dataset_name=evaluation.get("data") or name or "data in the SKM-TEA layout",
            dataset_config=f"{score['acceleration']:g}x, reference {score['reference'].replace('_', ' ')}",
            dataset_split=score["split"],
            metric_type=score["metric"],
            metric_name=_SCORE_NAMES[score["metric"]],
            metric_value=round(score["value"], 4),
        )
        for score in facts["scores"]
    ]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        **licences.get(name, {"license": licence}),
        tags=["mri", "image-reconstruction", "uncertainty", "segmentation", "diffusion", "medical"],
        datasets=[dataset] if dataset else None,
        model_name=str(source).rsplit("/", maxsplit=1)[-1] if results else None,
        eval_results=results or None,
    ).to_yaml()


def write_eval_results(folder: str | Path, dataset: str) -> list[str]:
    """Write the scores of a pipeline as `.eval_results/*.yaml`, the form that the Hub shows beside the data set.

    Args:
        folder: folder of the pipeline, with its records.
        dataset: name of the repository of the data set on the Hub.

    Returns:
        The files written, none if nothing was measured.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f"{score['metric']}_{score['acceleration']:g}x_{score['reference']}",
            value=round(score["value"], 4),
            notes=f"{_SCORE_NAMES[score['metric']]} at {score['acceleration']:g}x, guided bounds"
            + (f", {score['split']} split" if score["split"] else ""),
        )
        for score in _scores(Path(folder))
    ]
    if not entries:
        return []
    name = f".eval_results/{dataset.replace('/', '--')}.yaml"
    path = Path(folder) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
    return [name]
