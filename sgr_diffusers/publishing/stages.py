"""A pipeline's folder, or that of the Space, enters; a folder as it shall be on the Hub leaves."""

import contextlib
import io
import re
import shutil
from pathlib import Path

from ..hub_layout import INDEX, make_portable
from .cards import python_blocks, template_folder
from .model_card import model_card, write_eval_results

__all__ = ["run_snippet", "stage_model", "stage_space"]

_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "*.part", "*~")


def stage_model(folder: str | Path, stage: Path, repo_id: str, dataset: str | None = None) -> None:
    """Copy a pipeline, add the code it needs elsewhere, its card and its evaluation results.

    Args:
        folder: written by `save_pretrained` or `training/assemble_pipeline.py`, with the records of its training.
        stage: empty folder to fill.
        repo_id: for the card.
        dataset: repository of the data set on the Hub, if it is there.

    Raises:
        ValueError: it is not the folder of a pipeline, a record is missing, or it holds k-space of a person.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no {INDEX}: not the folder of a pipeline.")
    _check_hdf5(folder)
    shutil.copytree(folder, stage, dirs_exist_ok=True, ignore=_LEFT_OUT)
    make_portable(stage)
    (stage / "README.md").write_text(model_card(stage, repo_id, dataset), encoding="utf-8")
    if dataset:
        write_eval_results(stage, dataset)


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


def stage_space(stage: Path, model: str | None = None) -> None:
    """Copy the Space.

    Args:
        stage: empty folder to fill.
        model: repository whose pipeline the Space is to show, named in its card; `None` for what stands there.

    Raises:
        ValueError: the Space is not complete.
    """
    folder = template_folder() / "space"
    missing = [name for name in ("app.py", "README.md", "requirements.txt") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} must hold app.py, README.md and requirements.txt, but {missing} are missing.")
    shutil.copytree(folder, stage, dirs_exist_ok=True, ignore=_LEFT_OUT)
    if model is not None:
        from huggingface_hub import SpaceCard

        card = SpaceCard.load(stage / "README.md")
        card.data.models = [model]
        card.save(stage / "README.md")


def run_snippet(folder: Path) -> str:
    """Run the first Python block of a model's card as it would run for a user, at two steps. Returns what it printed.

    Args:
        folder: of the pipeline, with its records and `case.h5`.

    Raises:
        ValueError: it ends in an error, or prints nothing.
    """
    code = python_blocks(model_card(folder, str(folder)))[0]
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
