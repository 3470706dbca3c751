"""A pipeline's folder, or that of the Space, enters; a folder as it shall be on the Hub leaves."""

import contextlib
import io
import re
import shutil
from pathlib import Path

from ..hub_layout import INDEX, make_portable
from ..model_index import read_json
from ..output_folder import RECORD_FILE
from .cards import python_blocks, template_folder
from .model_card import model_card, write_eval_results

__all__ = ["run_snippet", "stage_model", "stage_space"]

_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "*.part", "*~")


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
        folder: written by `save_pretrained` or `training/assemble_pipeline.py`, with the records of its training.
        stage: empty folder to fill.
        repo_id: for the card.
        dataset: repository of the data set on the Hub, if it is there.
        report: folder of `sgr report` on this pipeline; what it holds takes the place of the folder `evaluation`.
        licence: of the weights, where it does not follow from the data.

    Raises:
        ValueError: it is not the folder of a pipeline, a record is missing, it holds k-space of a person, or the
            report is of other weights.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no {INDEX}: not the folder of a pipeline.")
    _check_hdf5(folder)
    shutil.copytree(folder, stage, dirs_exist_ok=True, ignore=_LEFT_OUT)
    make_portable(stage)
    if report is not None:
        _add_report(Path(report), folder, stage / "evaluation")
    (stage / "README.md").write_text(model_card(stage, repo_id, dataset, licence), encoding="utf-8")
    if dataset:
        write_eval_results(stage, dataset)


def _add_report(report: Path, pipeline: Path, evaluation: Path) -> None:
    """Copy Table 1, the figures and the record of a report, once it is known to be of these weights."""
    from ..evaluation.identity import weights_hash
    from ..reconstruct import load_pipeline

    record = report / RECORD_FILE
    if not (report / "table1.csv").is_file() or not record.is_file():
        raise ValueError(f"`report` {report} holds no table1.csv and {RECORD_FILE}: not a folder of `sgr report`.")
    identity = read_json(record)["identity"]
    pipe = load_pipeline(pipeline, "cpu", identity["settings"]["dtype"])
    found = [weights_hash(network) for network in (pipe.unet, pipe.segmentation_model)]
    if found != identity["weights"].split("-")[:2]:  # a second segmentation model may follow
        raise ValueError(
            f"`report` {report} is of other weights than those of {pipeline}: {identity['weights']} there, "
            f"{'-'.join(found)} here. Evaluate this pipeline: sgr evaluate DATA_DIR --model {pipeline}."
        )
    shutil.rmtree(evaluation, ignore_errors=True)
    evaluation.mkdir()
    for path in (report / "table1.csv", record, *report.glob("*.png")):
        shutil.copyfile(path, evaluation / path.name)


def _check_hdf5(folder: Path) -> None:
    """Raw data may come along only as the synthetic test case."""
    import h5py

    for path in sorted(path for suffix in ("h5", "hdf5", "nii", "gz", "dcm") for path in folder.rglob(f"*.{suffix}")):
        scan_id = ""
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                scan_id = str(file.attrs.get("scan_id", ""))
        if not scan_id.startswith("SYN_"):
            raise ValueError(
                f"{path} may hold data of a person, which is never published with a model. Only a case of synthetic "
                "data may come along."
            )


def stage_space(stage: Path, model: str | None = None, package: str | None = None) -> None:
    """Copy the Space.

    Args:
        stage: empty folder to fill.
        model: repository whose pipeline the Space is to show, named in its card; `None` for what stands there.
        package: where the Space gets this package, a requirement as pip takes it; `None` for its name and version.

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


def run_snippet(folder: Path, licence: str | None = None) -> str:
    """Run the first Python block of a model's card as it would run for a user, at two steps. Returns what it printed.

    Args:
        folder: of the pipeline, with its records and `case.h5`.
        licence: as for `stage_model`.

    Raises:
        ValueError: it ends in an error, or prints nothing.
    """
    code = python_blocks(model_card(folder, str(folder), licence=licence))[0]
    code = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", code)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(code, "snippet of the card", "exec"), {"__name__": "snippet"})
    except Exception as error:  # whatever it may be: the card promises that there is none
        raise ValueError(f"the snippet of the card does not run: {type(error).__name__}: {error}") from error
    if not printed.getvalue().strip():
        raise ValueError("the snippet of the card prints nothing.")
    return printed.getvalue()
