"""What a Space carries: a card that its builder understands, and an app that is a thin entry to the package."""

import runpy
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

import sgr_diffusers
from sgr_diffusers import cli
from sgr_diffusers.app import server

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "hub_cards/space"


def pinned(name):
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return pins[name]


def test_card_and_requirements_are_of_this_version():
    data = SpaceCard.load(SPACE / "README.md").data
    assert (data.sdk, data.app_file, data.sdk_version) == ("gradio", "app.py", pinned("gradio"))
    assert len(data["short_description"]) <= 60  # the Hub refuses longer ones
    requirement = f"sgr-diffusers[app]=={sgr_diffusers.__version__}"
    assert (SPACE / "requirements.txt").read_text() == f"{requirement}\n"
    text = (SPACE / "README.md").read_text()
    assert requirement in text and "not for clinical use" in text


@pytest.mark.parametrize(
    ("card", "variable", "expected"),
    [([], None, None), (["org/knee", "org/other"], None, "org/knee"), (["org/knee"], "org/mine", "org/mine")],
)
def test_the_space_shows_the_model_of_its_card(card, variable, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("SGR_MODEL", raising=False)
    if variable is not None:
        monkeypatch.setenv("SGR_MODEL", variable)
    (tmp_path / "app.py").write_bytes((SPACE / "app.py").read_bytes())
    content = SpaceCard.load(SPACE / "README.md")
    if card:
        content.data.models = card
    content.save(tmp_path / "README.md")
    assert runpy.run_path(str(tmp_path / "app.py"))["model_of_the_space"]() == expected


def test_without_gradio_the_way_to_it_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    assert cli.main(["app"]) == 2
    error = capsys.readouterr().err
    assert "the app needs gradio" in error and "pip install 'sgr-diffusers[app]'" in error


def test_a_model_without_classes_is_refused(tmp_path):
    pytest.importorskip("gradio")
    from tests.helpers.pipeline_parts import build

    build(None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have a segmentation model"):
        server.launch_app(str(tmp_path), "cpu")
