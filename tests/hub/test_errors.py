"""A Hub that nobody answers at: one clear error wherever it is asked for something."""

import pytest
from huggingface_hub import constants

from sgr_diffusers import cli
from sgr_diffusers.data.load import load_skmtea
from sgr_diffusers.data.mini_set import fetch_mini
from sgr_diffusers.hub.errors import hub_errors
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.publish import create_repository

NOBODY = "http://127.0.0.1:9"  # the port of the discard protocol


@pytest.fixture(autouse=True)
def out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)


@pytest.mark.parametrize(
    ("asked_for", "ask"),
    [
        ("org/knee", lambda folder: load_skmtea("org/knee", "train")),
        ("org/mini", lambda folder: fetch_mini(folder, "org/mini", endpoint=NOBODY)),
        (
            "--push-to-hub org/prior",
            lambda folder: create_repository(
                TrainingOptions(max_train_steps=1, push_to_hub=True, hub_model_id="org/prior")
            ),
        ),
    ],
)
def test_what_was_asked_for_and_where_is_said(tmp_path, asked_for, ask):
    with pytest.raises(OSError, match=f"{asked_for}.*{NOBODY} cannot be reached"):
        ask(tmp_path)


def test_publishing_ends_in_one_line(capsys):
    assert cli.main(["publish", "space", "--repo", "org/sgr", "--yes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sgr: error: org/sgr: the Hub at") and error.count("\n") == 1
    assert cli.main(["publish", "space", "--repo", "org/sgr", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert (
        "could not be compared" in printed
        and "a new repository" not in printed
        and "  + app.py" in printed
        and "Nothing was pushed" in printed
    )


def test_errors_of_the_disk_stay_what_they_are():
    with pytest.raises(FileNotFoundError, match="gone"), hub_errors("org/knee"):
        raise FileNotFoundError("gone")
