"""Prepares the folder of a pipeline, or of the Space, as it shall be on the Hub."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

from ..hub.model_index import read_json
from ..hub.repository import INDEX, make_portable
from ..utils.files import RECORD_FILE
from .cards import template_folder, token_like
from .measured import QUALITY_FILE, check_measured, names_its_weights
from .model_card import card_snippet, model_card, write_eval_results

__all__ = ["run_snippet", "stage_model", "stage_space"]

_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "*~")
# Of what a pipeline's repository holds; all else may be raw data, which comes in more formats than can be listed.
_ALLOWED = (".json", ".safetensors", ".py", ".md", ".txt", ".csv", ".yaml", ".yml", ".png", ".svg", ".h5")
_ALLOWED_NAMES = ("LICENSE", "NOTICE")


def stage_model(
    folder: str | Path,
    stage: Path,
    repo_id: str,
    dataset: str | None = None,
    report: str | Path | None = None,
    licence: str | None = None,
) -> None:
    """Copy a pipeline, add the code it needs elsewhere, its card and its evaluation results.

    Args:
        folder: folder of a pipeline, written by `save_pretrained` or `training/assemble_pipeline.py`, with the records
            of its training.
        stage: empty folder to fill.
        repo_id: name of the repository, for the card.
        dataset: name of the repository of the data set on the Hub, if it is there.
        report: folder that `sgr report` wrote on this pipeline; what it holds takes the place of the folder
            `evaluation`.
        licence: licence of the weights, where it does not follow from the data.

    Raises:
        ValueError: it is not the folder of a pipeline, or of one that does not load; a record is missing; a file
            may be data of a person; or what was measured is of other weights.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no {INDEX}: not the folder of a pipeline.")
    shutil.copytree(folder, stage, dirs_exist_ok=True, ignore=_LEFT_OUT)
    _check_data(stage)  # what was copied: links have been followed
    make_portable(stage)
    if report is not None:
        _add_report(Path(report), stage / "evaluation")
    quality = stage / "evaluation" / QUALITY_FILE
    if quality.is_file() and not names_its_weights(read_json(quality)):
        quality.unlink()
    check_measured(stage)
    (stage / "README.md").write_text(model_card(stage, repo_id, dataset, licence), encoding="utf-8")
    if dataset:
        write_eval_results(stage, dataset)


def _add_report(report: Path, evaluation: Path) -> None:
    """Copy Table 1, the figures and the record of a report."""
    record = report / RECORD_FILE
    if not (report / "table1.csv").is_file() or not record.is_file():
        raise ValueError(f"`report` {report} holds no table1.csv and {RECORD_FILE}: not a folder of `sgr report`.")
    shutil.rmtree(evaluation, ignore_errors=True)
    evaluation.mkdir()
    for path in (report / "table1.csv", record, *report.glob("*.png")):
        shutil.copyfile(path, evaluation / path.name)


def _check_data(stage: Path) -> None:
    """Of data, only the synthetic test case may come along; what is of no known kind may be data, too."""
    for path in sorted(path for path in stage.rglob("*") if path.is_file()):
        name = path.relative_to(stage).as_posix()
        if path.suffix not in _ALLOWED and path.name not in _ALLOWED_NAMES:
            raise ValueError(
                f"{name} may hold data of a person, which is never published with a model: files may end in "
                f"{', '.join(_ALLOWED)}. Remove it from the folder."
            )
        if path.suffix == ".h5" and not _is_synthetic(path):
            raise ValueError(
                f"{name} may hold data of a person, which is never published with a model. Only a case of synthetic "
                "data may come along."
            )


def _is_synthetic(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path) as file:
            return str(file.attrs.get("scan_id", "")).startswith("SYN_")
    except OSError:  # no HDF5 file, whatever it is called
        return False


def stage_space(stage: Path, model: str | None = None, package: str | None = None) -> None:
    """Copy the Space.

    Args:
        stage: empty folder to fill.
        model: name of the repository whose pipeline the Space is to show, named in its card; `None` for what stands
            there.
        package: requirement, as pip takes it, by which the Space gets this package; `None` for its name and version.

    Raises:
        ValueError: the Space is not complete, or `package` is no requirement of this package with its app.
    """
    folder = template_folder() / "space"
    missing = [name for name in ("app.py", "README.md", "requirements.txt") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} must hold app.py, README.md and requirements.txt, but {missing} are missing.")
    shutil.copytree(folder, stage, dirs_exist_ok=True, ignore=_LEFT_OUT)
    if package is not None:
        _require(stage, package)
    if model is not None:
        from huggingface_hub import SpaceCard

        card = SpaceCard.load(stage / "README.md")
        card.data.models = [model]
        card.save(stage / "README.md")


def _require(stage: Path, package: str) -> None:
    """Let the Space install the package from elsewhere, and say so in its card."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    if re.search(r"://[^/\s]*@", package) or token_like(package):  # first of all: no error repeats it
        raise ValueError(
            "`package` must hold no user name, password or token: it is published in the Space's requirements and "
            "card. Give an address that needs none."
        )
    try:
        wanted = Requirement(package)
    except InvalidRequirement as error:
        raise ValueError(f"`package` must be a requirement as pip takes it, got {package!r}: {error}.") from error
    if canonicalize_name(wanted.name) != "sgr-diffusers" or "app" not in wanted.extras:
        raise ValueError(
            f"`package` must be sgr-diffusers[app], got {package!r}; for example 'sgr-diffusers[app] @ https://...'."
        )
    before = (stage / "requirements.txt").read_text(encoding="utf-8").strip()
    (stage / "requirements.txt").write_text(f"{package}\n", encoding="utf-8")
    card = (stage / "README.md").read_text(encoding="utf-8")
    (stage / "README.md").write_text(card.replace(before, package), encoding="utf-8")


def run_snippet(folder: Path) -> str:
    """Run the example of a model's card as it would run for a user, at few steps. Returns what it printed.

    It is rendered by itself: no other text of a record is run.

    Args:
        folder: folder of the pipeline, with its records and `case.h5`.

    Raises:
        ValueError: the example ends in an error, or prints nothing.
    """
    code = card_snippet(folder, str(folder))
    guided_from = float(json.loads((folder / "model_index.json").read_text()).get("guidance_from", 1.0))
    n_steps = int(1 / guided_from) + 1  # so that one before the last is pushed
    code = re.sub(r"num_inference_steps=\d+", f"num_inference_steps={n_steps}", code)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(code, "snippet of the card", "exec"), {"__name__": "snippet"})
    except Exception as error:  # whatever it may be: the card promises that there is none
        raise ValueError(f"the snippet of the card does not run: {type(error).__name__}: {error}") from error
    if not printed.getvalue().strip():
        raise ValueError("the snippet of the card prints nothing.")
    return printed.getvalue()
