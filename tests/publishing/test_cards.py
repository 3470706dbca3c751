"""Cards: filled from records alone, and nothing is published with one that is wrong."""

import email.message
import importlib.metadata
import json
import shutil
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from sgr_diffusers.calibration.quantiles import Group, GroupQuantiles
from sgr_diffusers.calibration.record import FILE_NAME, Calibration, CalibrationSettings
from sgr_diffusers.pretrained import BRAIN_TUMOUR, GENERAL, PRETRAINED
from sgr_diffusers.publishing.brain_tumour_card import brain_tumour_card
from sgr_diffusers.publishing.cards import card_faults, package_link, render_card, template_folder
from sgr_diffusers.publishing.general_card import general_card
from sgr_diffusers.publishing.model_card import model_card, model_facts, write_eval_results

ROOT = Path(__file__).parents[2]
TABLE1 = """acceleration,method,reference,precision_lower,recall_upper,uncertain_share,ssim,psnr,n_scans
8.0,SGR,fully_sampled,0.98765,0.9911,0.3219,0.8571,30.84,8
8.0,RR,fully_sampled,0.9712,0.9763,0.0754,,30.92,8
8.0,SGR,manual,0.9012,0.9113,0.3219,0.8571,30.84,8
"""


RECORDS = sorted(path.name for path in (PRETRAINED / "training").glob("[0-9]*.json"))


def write_table1(folder, text=TABLE1):
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "table1.csv").write_text(text)


def test_card_of_the_bundled_checkpoint_is_what_its_records_say():
    source = PRETRAINED.relative_to(ROOT).as_posix()
    card = (PRETRAINED / "README.md").read_text()
    assert card == model_card(PRETRAINED, source)
    assert card_faults(card, "model", PRETRAINED) == []


def test_card_of_the_general_checkpoint_is_what_its_records_say():
    card = (GENERAL / "README.md").read_text()
    assert card == general_card(GENERAL)
    assert card_faults(card, "model", GENERAL) == []


def test_card_of_the_brain_tumour_checkpoint_is_what_its_records_say():
    card = (BRAIN_TUMOUR / "README.md").read_text()
    assert card == brain_tumour_card(BRAIN_TUMOUR)
    assert card_faults(card, "model", BRAIN_TUMOUR) == []


def test_numbers_come_from_the_records(folder):
    record, *others = (json.loads((folder / "training" / name).read_text()) for name in RECORDS)
    (folder / "training/1_prior.json").write_text(json.dumps({**record, "steps": 4711, "minutes": 1000.25}))
    card = model_card(folder, "org/knee")
    assert "4711 steps" in card and all(f"{other['parameters']} parameters" in card for other in others)
    minutes = 1000.25 + sum(other["minutes"] for other in others)
    assert f"{minutes:.0f} minutes of training" in card
    assert f"An estimate, not a measurement: at 30 W for the machine that is {30 * minutes / 6e4:.2g} kWh" in card


def test_a_calibration_is_described_with_what_was_measured_of_it(folder):
    (folder / FILE_NAME).unlink(missing_ok=True)
    (folder / "evaluation" / "coverage.csv").unlink(missing_ok=True)
    assert "Calibrated bounds" not in model_card(folder, "org/knee")
    group = Group(8.0, "lines", (8.0, 8.1))
    quantiles = GroupQuantiles(group, 0.9, 20, ("one",), (0.1,), (0.2,), 0.1, 0.2, (0.0,), (20,))
    settings = CalibrationSettings(
        {}, {"class": "DDPMScheduler"}, 3, (500, 90, 0), 1.0, 0.05, 0.2, False, None, "cg", 3, "replace"
    )
    splits = {"train": (), "tune": (), "calibration": tuple(map(str, range(20)))}
    Calibration((quantiles,), settings, splits, "fully_sampled", "slices all", (2, 4), 0, {}).save(folder)
    card = model_card(folder, "org/knee")
    assert "Calibrated on 20 scans, the unit being 2 to 4 slices of a scan together (slices all)" in card
    assert "masks 8x lines; DDPMScheduler, 3 steps at t = 500, 90, 0" in card
    assert "Measured on other scans" not in card
    row = {"acceleration": 8.0, "mask": "lines", "coverage": 0.9, "class": "one", "n_calibration": 20, "n_test": 30}
    row |= {"n_covered": 28, "share": 28 / 30, "expected_low": 0.7, "expected_high": 1.0, "ci_low": 0.78}
    row |= {"ci_high": 0.99, "width_mm3": 12.4, "bounds_width_mm3": 9.6, "n_seen_calibration": 9, "n_seen": 12}
    row |= {"n_seen_covered": 11, "seen_expected_low": float("nan"), "seen_expected_high": float("nan")}
    pd.DataFrame([row]).to_csv(folder / "evaluation" / "coverage.csv", index=False)
    card = model_card(folder, "org/knee")
    assert "| 8x | 0.9 | one | 28 of 30 (21 to 30) | 11 of 12 | 12 | 10 |" in card
    assert card_faults(card, "model", folder) == []


def test_energy_of_a_gpu_is_not_guessed(folder):
    path = folder / "training/1_prior.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "machine": {**record["machine"], "device": "cuda"}}))
    assert "Energy was not measured." in model_card(folder, "org/knee")


def test_nothing_is_said_of_what_was_not_measured(folder):
    shutil.rmtree(folder / "evaluation")
    card = model_card(folder, "org/knee")
    assert "## Evaluation\n\nNot measured." in card
    assert "dB" not in card and "model-index" not in card
    assert card_faults(card, "model", folder) == []
    assert write_eval_results(folder, "org/data") == []


def test_table1_becomes_table_and_results(folder):
    write_table1(folder)
    card = model_card(folder, "org/knee", dataset="org/data")
    assert "| 8x | SGR | fully sampled | 0.988 | 0.991 | 0.322 | 0.857 | 30.84 | 8 |" in card
    assert "| 8x | RR | fully sampled | 0.971 | 0.976 | 0.075 |  | 30.92 | 8 |" in card
    assert card_faults(card, "model", folder) == []
    data = ModelCard(card).data
    assert data.datasets == ["org/data"] and data.model_name == "knee"
    found = {(one.metric_type, one.dataset_config): one.metric_value for one in data.eval_results}
    assert found["recall_upper", "8x, reference fully sampled"] == 0.9911
    assert found["precision_lower", "8x, reference manual"] == 0.9012 and len(found) == 10

    assert write_eval_results(folder, "org/data") == [".eval_results/org--data.yaml"]
    entries = yaml.safe_load((folder / ".eval_results/org--data.yaml").read_text())
    assert len(entries) == 10
    assert entries[0]["dataset"] == {"id": "org/data", "task_id": "precision_lower_8x_fully_sampled"}
    assert entries[0]["value"] == 0.9877


@pytest.mark.parametrize(
    ("text", "message"),
    [("acceleration,method\n8,SGR\n", "must have the columns"), (TABLE1.replace("30.84", "thirty"), "no number")],
)
def test_damaged_tables(folder, text, message):
    write_table1(folder, text)
    with pytest.raises(ValueError, match=message):
        model_card(folder, "org/knee")


@pytest.mark.parametrize("name", [*RECORDS, "assembly.json"])
def test_missing_records(folder, name):
    (folder / "training" / name).unlink()
    with pytest.raises(ValueError, match="assemble_pipeline"):
        model_card(folder, "org/knee")


def test_a_value_that_was_not_recorded_is_an_error(folder):
    record = json.loads((folder / "training/1_prior.json").read_text())
    del record["images"]
    (folder / "training/1_prior.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"model_card.md.jinja asks for what was not recorded: .*images"):
        model_card(folder, "org/knee")
    with pytest.raises(ValueError, match="asks for what was not recorded"):
        render_card("model_card.md.jinja", {"metadata": ""})


def test_weights_from_people_have_their_licence(folder):
    assembly = json.loads((folder / "training/assembly.json").read_text())
    assembly |= {"data": {"command": None, "config": None, "name": "SKM-TEA"}, "case": None, "note": None}
    for name in RECORDS:
        record = (folder / "training" / name).read_text()
        (folder / "training" / name).write_text(record.replace("synthetic_knee", "knee"))
    (folder / "training/assembly.json").write_text(json.dumps(assembly))
    (folder / "case.h5").unlink()
    shutil.rmtree(folder / "evaluation")
    card = model_card(folder, "org/knee")
    data = ModelCard(card).data
    assert data.license == "other" and data.license_name and data.license_link.startswith("https://")
    assert "SKM-TEA" in card and "synthetic" not in card.lower().replace("on synthetic", "")
    assert card_faults(card, "model", folder) == []
    assert model_facts(folder)["title"] == "SGR on SKM-TEA"
    with pytest.raises(ValueError, match=r"`licence` must be left out, got 'mit': .*skm-tea-research-use"):
        model_card(folder, "org/knee", licence="mit")

    assembly["data"]["name"] = None  # somebody's own scans
    (folder / "training/assembly.json").write_text(json.dumps(assembly))
    with pytest.raises(ValueError, match=r"`licence` must be given: .*--license"):
        model_card(folder, "org/knee")
    card = model_card(folder, "org/knee", licence="cc-by-4.0")
    assert ModelCard(card).data.license == "cc-by-4.0" and "Its owner says what may be done" in card
    assert "Desai" not in card and card_faults(card, "model", folder) == []
    assert model_facts(folder)["title"] == "SGR on data in the SKM-TEA layout"


def test_results_name_the_split_that_was_recorded(folder):
    path = folder / "evaluation/settings.json"
    record = json.loads(path.read_text())
    record["identity"]["settings"]["split"] = "val"
    path.write_text(json.dumps(record))
    write_eval_results(folder, "org/data")
    notes = {one["notes"] for one in yaml.safe_load((folder / ".eval_results/org--data.yaml").read_text())}
    assert notes and all(note.endswith(", val split") for note in notes)


def test_a_command_that_was_not_recorded_is_not_named(folder):
    path = folder / "training/assembly.json"
    assembly = json.loads(path.read_text())
    assert assembly["data"]["command"] in model_card(folder, "org/knee")
    assembly["data"]["command"] = None
    path.write_text(json.dumps(assembly))
    assert "free to use (Apache-2.0).\n\n120 training scans" in model_card(folder, "org/knee")


def test_the_package_is_a_link_where_its_address_is_known(monkeypatch):
    def metadata_of(*urls):
        found = email.message.Message()
        for url in urls:
            found["Project-URL"] = url
        monkeypatch.setattr(importlib.metadata, "metadata", lambda name: found)

    metadata_of()
    assert package_link() == "sgr_diffusers"
    metadata_of("Issues, https://example.org/issues", "Repository, https://example.org/code")
    assert package_link() == "[sgr_diffusers](https://example.org/code)"
    assert "for [sgr_diffusers](https://example.org/code), a plugin" in model_card(PRETRAINED, "org/knee")


def test_no_text_names_an_address_that_is_not_there():
    texts = [*ROOT.glob("hub_cards/**/*"), ROOT / "sgr_diffusers/hub/repository.py"]
    for path in texts:
        assert path.suffix == ".png" or path.is_dir() or "github.com/sgr-diffusers" not in path.read_text(), path


GOOD = (PRETRAINED / "README.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("library_name: diffusers", "library_name: [", "metadata cannot be read"),
        ("license: apache-2.0\n", "", "no license"),
        ("license: apache-2.0\n", "license: other\n", "license_name"),
        ("## Evaluation", "## Results", "'Evaluation' is missing"),
        ("Not for clinical use", "Use it", "not for clinical use"),
        ("https://arxiv.org/abs/2407.18026", "http://arxiv", "leads nowhere"),
        ("https://arxiv.org/abs/2407.18026", "evaluation/none.png", "leads nowhere"),
        ("from sgr_diffusers import", "from sgr_diffusers improt", "no Python"),
        ("## Citation", "## Citation\n\nTODO", "left open"),
        ("## Citation", "## Citation\n\nhf_" + "a" * 34, "token"),
    ],
)
def test_faults_of_cards_are_found(old, new, fault):
    assert old in GOOD
    assert fault in " ".join(card_faults(GOOD.replace(old, new), "model", PRETRAINED))


def test_installed_packages_have_the_templates():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    covered = {path for patterns in listed.values() for pattern in patterns for path in ROOT.glob(pattern)}
    assert {path for path in template_folder().rglob("*") if path.is_file()} <= covered
