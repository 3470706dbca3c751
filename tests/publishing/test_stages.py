"""What is put into a folder before it is published: report, measurements, raw data, the Space."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from sgr_diffusers.publishing.cards import card_faults, template_folder
from sgr_diffusers.publishing.model_card import model_card
from sgr_diffusers.publishing.stages import run_snippet, stage_model, stage_space
from sgr_diffusers.reconstruction.volume import load_pipeline
from sgr_diffusers.utils.weights import weights_hash
from tests.helpers.evaluation_results import quality_record

TABLE1 = """acceleration,method,reference,precision_lower,recall_upper,uncertain_share,ssim,psnr,n_scans
8.0,SGR,fully_sampled,0.98765,0.9911,0.3219,0.8571,30.84,8
8.0,RR,fully_sampled,0.9712,0.9763,0.0754,,30.92,8
8.0,SGR,manual,0.9012,0.9113,0.3219,0.8571,30.84,8
"""


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
    assert "![Fig. 3: bounds](evaluation/figure3_bounds.png)" in card
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
    measured = quality_record(load_pipeline(folder, "cpu"), split="val")
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


def test_a_pipeline_without_weights_is_not_published(folder, tmp_path):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "case.h5").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        stage_model(folder, tmp_path / "stage", "org/knee")


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
