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
from safetensors.torch import load_file, save_file

from sgr_diffusers.calibration.quantiles import Group, GroupQuantiles
from sgr_diffusers.calibration.record import FILE_NAME, Calibration, CalibrationSettings
from sgr_diffusers.pretrained import GENERAL, PRETRAINED
from sgr_diffusers.publishing.cards import card_faults, package_link, render_card, template_folder
from sgr_diffusers.publishing.general_card import general_card
from sgr_diffusers.publishing.model_card import model_card, model_facts, write_eval_results
from sgr_diffusers.publishing.stages import run_snippet, stage_model, stage_space
from sgr_diffusers.reconstruction.volume import load_pipeline
from sgr_diffusers.utils.weights import weights_hash

ROOT = Path(__file__).parents[2]
TABLE1 = """acceleration,method,reference,precision_lower,recall_upper,uncertain_share,ssim,psnr,n_scans
8.0,SGR,fully_sampled,0.98765,0.9911,0.3219,0.8571,30.84,8
8.0,RR,fully_sampled,0.9712,0.9763,0.0754,,30.92,8
8.0,SGR,manual,0.9012,0.9113,0.3219,0.8571,30.84,8
"""


RECORDS = sorted(path.name for path in (PRETRAINED / "training").glob("[0-9]*.json"))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(PRETRAINED, tmp_path / "pipeline")


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
    quantiles = GroupQuantiles(group, 0.9, 20, ("one",), (0.1,), (0.2,), 0.1, 0.2)
    settings = CalibrationSettings({}, {"class": "DDPMScheduler"}, 3, (500, 90, 0), 1.0, 0.05, 0.2, "cg", 3, "replace")
    splits = {"train": (), "tune": (), "calibration": tuple(map(str, range(20)))}
    Calibration((quantiles,), settings, splits, "fully_sampled", "slices all", 0, {}).save(folder)
    card = model_card(folder, "org/knee")
    assert "Calibrated on 20 scans" in card and "masks 8x lines; DDPMScheduler, 3 steps at t = 500, 90, 0" in card
    assert "Measured on other scans" not in card
    row = {"acceleration": 8.0, "mask": "lines", "coverage": 0.9, "class": "one", "n_calibration": 20, "n_test": 30}
    row |= {"n_covered": 28, "share": 28 / 30, "expected_low": 0.7, "expected_high": 1.0, "ci_low": 0.78}
    row |= {"ci_high": 0.99, "width_mm3": 12.4, "bounds_width_mm3": 9.6}
    pd.DataFrame([row]).to_csv(folder / "evaluation" / "coverage.csv", index=False)
    card = model_card(folder, "org/knee")
    assert "| 8x | 0.9 | one | 28 of 30 | 0.70 to 1.00 | 0.78 to 0.99 | 12 | 10 |" in card
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


def report_of(pipeline, report, **identity):
    """A folder as `sgr report` leaves it."""
    pipe = load_pipeline(pipeline, "cpu")
    weights = "-".join(weights_hash(network) for network in (pipe.unet, pipe.segmentation_model))
    settings = {
        "dtype": "float32",
        "num_inference_steps": 7,
        "guidance_strength": 0.00999999,
        "guidance_from": 0.25,
        "seed": 3,
        "split": "val",
    }
    identity = {"settings": settings, "weights": f"{weights}-ofthesecond", **identity}
    record = {
        "data": "Knees",
        "n_slices": 5,
        "identity": identity,
        "runs": [{"command": "sgr evaluate here", "machine": "none"}],
    }
    report.mkdir()
    (report / "settings.json").write_text(json.dumps(record))
    (report / "table1.csv").write_text(TABLE1)
    shutil.copyfile(template_folder() / "synthetic_knee.png", report / "figure3_bounds.png")
    return report


def test_a_report_comes_along(folder, tmp_path):
    report = report_of(folder, tmp_path / "report")
    (tmp_path / "stage").mkdir()
    stage_model(folder, tmp_path / "stage", "org/knee", "org/data", report)
    files = {path.name for path in (tmp_path / "stage/evaluation").iterdir()}
    assert files == {"table1.csv", "settings.json", "figure3_bounds.png"}  # and nothing of an earlier evaluation
    card = (tmp_path / "stage/README.md").read_text()
    protocol = (
        "5 slices of the split val of Knees, 7 steps, b = 0.01 in each below t = 0.25 of the training time, seed 3, by"
    )
    assert f"{protocol}\n\n```\nsgr evaluate here\n```\n\n| acc." in card
    assert "![figure3 bounds](evaluation/figure3_bounds.png)" in card
    result = ModelCard(card).data.eval_results[0]
    assert (result.dataset_name, result.dataset_split) == ("Knees", "val")
    assert card_faults(card, "model", tmp_path / "stage") == []


def test_a_report_of_other_weights_is_refused(folder, tmp_path):
    report = report_of(folder, tmp_path / "report", weights="0123-4567")
    (tmp_path / "stage").mkdir()
    with pytest.raises(
        ValueError, match=r"settings.json is of other weights than .*: 0123-4567 there, \w{16}-\w{16} her"
    ):
        stage_model(folder, tmp_path / "stage", "org/knee", report=report)
    with pytest.raises(ValueError, match=r"holds no table1.csv and settings.json"):
        stage_model(folder, tmp_path / "stage", "org/knee", report=tmp_path)


def halve_the_prior(folder):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({key: value / 2 for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def test_an_evaluation_that_was_there_before_the_weights_is_refused(folder, tmp_path):
    halve_the_prior(folder)
    with pytest.raises(ValueError, match=r"evaluation/settings.json is of other weights"):
        stage_model(folder, tmp_path / "stage", "org/knee")


@pytest.mark.parametrize("name", ["table1.csv", "figure3_bounds.png"])
def test_an_evaluation_without_its_record_is_refused(folder, tmp_path, name):
    for path in (folder / "evaluation").iterdir():
        if path.name != name:
            path.unlink()
    with pytest.raises(ValueError, match=rf"evaluation/{name} cannot be published without settings.json"):
        stage_model(folder, tmp_path / "stage", "org/knee")


def write_quality(folder, **entries):
    """A record as the quality benchmark leaves it, for whatever weights are there."""
    pipe = load_pipeline(folder, "cpu")
    measured = {
        "command": "python benchmark",
        "weights": "-".join(weights_hash(network) for network in (pipe.unet, pipe.segmentation_model)),
        "split": "val",
        "scans": ["a"],
        "steps": 7,
        "seed": 0,
        "dice": {"meniscus": 0.4321},
        "psnr_4x": {"zero_filled": 20.0, "cg_sense": 30.0, "unguided": 31.5},
    }
    measured["bounds_4x"] = dict.fromkeys(("ordered", "uncertain_share", "precision_lower", "recall_upper"), 0.875)
    measured["bounds_4x"] |= {"psnr_lower": -0.25, "psnr_upper": -0.125}
    (folder / "evaluation/quality.json").write_text(json.dumps({**measured, **entries}))


def test_numbers_of_the_quality_benchmark(folder, tmp_path):
    for path in (folder / "evaluation").iterdir():
        path.unlink()
    write_quality(folder)
    stage_model(folder, tmp_path / "stage", "org/knee", "org/data")
    card = (tmp_path / "stage/README.md").read_text()
    assert "on 1 scans of the split val, 7 steps" in card and "meniscus 0.432" in card
    results = ModelCard(card).data.eval_results
    assert {(one.dataset_split, one.metric_value) for one in results} == {("val", 0.875)}
    entries = yaml.safe_load((tmp_path / "stage/.eval_results/org--data.yaml").read_text())
    assert entries[0]["notes"] == "Precision of the lower bound at 4x, guided bounds, val split"
    halve_the_prior(folder)
    with pytest.raises(ValueError, match=r"evaluation/quality.json is of other weights"):
        stage_model(folder, tmp_path / "other", "org/knee")


def test_numbers_that_do_not_say_of_which_weights_they_are_are_left_out(folder, tmp_path):
    write_quality(folder, weights=None)
    stage_model(folder, tmp_path / "stage", "org/knee")
    assert "0.432" not in (tmp_path / "stage/README.md").read_text()
    assert not (tmp_path / "stage/evaluation/quality.json").exists()


def test_results_name_the_split_that_was_recorded(folder):
    path = folder / "evaluation/settings.json"
    record = json.loads(path.read_text())
    record["identity"]["settings"]["split"] = "val"
    path.write_text(json.dumps(record))
    write_eval_results(folder, "org/data")
    notes = {one["notes"] for one in yaml.safe_load((folder / ".eval_results/org--data.yaml").read_text())}
    assert notes and all(note.endswith(", val split") for note in notes)


def test_a_pipeline_without_weights_is_not_published(folder, tmp_path):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "case.h5").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        stage_model(folder, tmp_path / "stage", "org/knee")


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


def test_the_snippet_of_the_card_runs(folder):
    assert "femoral_cartilage" in run_snippet(folder)
    (folder / "case.h5").unlink()
    with pytest.raises(ValueError, match=r"the snippet of the card does not run: \w+Error"):
        run_snippet(folder)


@pytest.mark.parametrize("acceleration", ["(open('ran', 'w'), 8.0)[1]", True, float("nan"), float("inf"), -8.0, None])
def test_only_a_number_gets_into_the_example(folder, tmp_path, monkeypatch, acceleration):
    path = folder / "training/assembly.json"
    assembly = json.loads(path.read_text())
    assembly["case"]["acceleration"] = acceleration
    path.write_text(json.dumps(assembly))
    monkeypatch.chdir(tmp_path)
    for use in (run_snippet, lambda folder: model_card(folder, "org/knee")):
        with pytest.raises(ValueError, match=r"`case.acceleration` .* must be a positive number, got"):
            use(folder)
    assert not (tmp_path / "ran").exists()


def test_no_other_text_of_a_record_is_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder / "training/1_prior.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "parameters": "1\n```python\nopen('ran', 'w')\n```\n"})
    )
    assert "femoral_cartilage" in run_snippet(folder)
    strange = folder.rename(tmp_path / 'a" + str(open("ran", "w")) + "')
    assert "femoral_cartilage" in run_snippet(strange)
    assert not (tmp_path / "ran").exists()


def test_raw_data_of_people_does_not_come_along(folder, tmp_path):
    import h5py

    people = tmp_path / "people"
    people.mkdir()
    with h5py.File(people / "MTR_005.h5", "w") as file:
        file.attrs["scan_id"] = "MTR_005"
    (folder / "scans").symlink_to(people)
    with pytest.raises(ValueError, match=r"scans/MTR_005.h5 may hold data of a person"):
        stage_model(folder, tmp_path / "linked", "org/knee")
    (folder / "scans").unlink()
    for name in (
        "SCAN.H5",
        "scan.h5",
        "scan.mat",
        "scan.cfl",
        "scan.hdr",
        "P1.7",
        "meas.dat",
        "a.mrd",
        "b.nii.gz",
        "c.DCM",
    ):
        (folder / name).write_bytes(b"raw")
        with pytest.raises(ValueError, match=f"{name} may hold data of a person"):
            stage_model(folder, tmp_path / name.replace(".", "_"), "org/knee")
        (folder / name).unlink()


def test_installed_packages_have_the_templates():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    covered = {path for patterns in listed.values() for pattern in patterns for path in ROOT.glob(pattern)}
    assert {path for path in template_folder().rglob("*") if path.is_file()} <= covered


def test_the_space_is_complete_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sgr_diffusers.publishing.stages.template_folder", lambda: tmp_path)
    (tmp_path / "space").mkdir()
    for name, text in (("app.py", "print()\n"), ("requirements.txt", "sgr-diffusers\n")):
        (tmp_path / "space" / name).write_text(text)
    with pytest.raises(ValueError, match=r"\['README.md'\] are missing"):
        stage_space(tmp_path / "stage")
    card = "---\ntitle: SGR\nsdk: gradio\nsdk_version: 6.0.0\napp_file: app.py\n---\n\nNot for clinical use.\n"
    (tmp_path / "space" / "README.md").write_text(card)
    stage_space(tmp_path / "stage", "org/knee")
    text = (tmp_path / "stage" / "README.md").read_text()
    assert "org/knee" in text and card_faults(text, "space", tmp_path / "stage") == []
    address = "sgr-diffusers[app] @ https://example.org/sgr_diffusers-0.1.0-py3-none-any.whl"
    (tmp_path / "space" / "README.md").write_text(f"{card}\n    pip install 'sgr-diffusers'\n")
    stage_space(tmp_path / "stage", package=address)
    assert (tmp_path / "stage" / "requirements.txt").read_text() == f"{address}\n"
    assert f"pip install '{address}'" in (tmp_path / "stage" / "README.md").read_text()
    for who in ("user:a-password@", "a-token@", ":a-password@"):
        private = address.replace("example.org", f"{who}example.org")
        for wrong in (private, private.replace("https", "git+https"), private.replace("sgr-diffusers[app]", "x y")):
            with pytest.raises(ValueError, match="must hold no user name, password or token") as refusal:
                stage_space(tmp_path / "stage", package=wrong)
            assert "a-" not in str(refusal.value)
    for wrong in ("gradio", "sgr-diffusers", "sgr-diffusers[app] https://example.org"):
        with pytest.raises(ValueError, match="`package` must be"):
            stage_space(tmp_path / "stage", package=wrong)
    assert "app_file other.py is not there" in card_faults(
        text.replace("app.py", "other.py"), "space", tmp_path / "stage"
    )
