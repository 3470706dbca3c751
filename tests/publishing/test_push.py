"""`sgr publish` against a Hub on this machine."""

import io
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, SpaceCard

from sgr_diffusers.data.scan_files import close_files
from sgr_diffusers.data.synthetic.knee import SyntheticKneeConfig, write_synthetic_dataset
from sgr_diffusers.hub.code_bundle import bundle_files
from sgr_diffusers.hub.errors import redact
from sgr_diffusers.pretrained import PRETRAINED
from sgr_diffusers.publishing.dataset_card import INDEX_COLUMNS, check_synthetic, stage_index
from sgr_diffusers.publishing.push import _BLOCK, ask_on_terminal, check_stage
from tests.helpers.hub_client import OWNER, WRONG
from tests.helpers.layout_fixture import write_tiny_skm_tea

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sgr(worker):
    """The command with a token: its exit code and all that it printed."""

    def run(*arguments, token=OWNER):
        code = f"""
import contextlib, io, os
from sgr_diffusers.cli import main
os.environ["HF_TOKEN"] = {token!r}
printed = io.StringIO()
try:
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main({[str(one) for one in arguments]!r})
finally:
    del os.environ["HF_TOKEN"]
result = [code, printed.getvalue()]
"""
        exit_code, printed = worker.run(code)
        worker.printed += printed
        assert token not in printed
        return exit_code, printed

    return run


def test_publish_a_model(hub, worker, sgr, folder):
    arguments = ("publish", "model", folder, "--repo", "org/published", "--dataset", "org/knees")
    code, printed = sgr(*arguments, "--dry-run")
    assert (
        code == 0 and "a new repository" in printed and "+ pipeline.py" in printed and "Nothing was pushed" in printed
    )
    assert "+## Evaluation" not in printed and "+library_name: diffusers" in printed  # the card, as far as it is shown
    assert ("model", "org/published") not in hub.repositories

    code, printed = sgr(*arguments, "--skip-snippet")
    assert code == 2 and "--yes" in printed and ("model", "org/published") not in hub.repositories

    code, printed = sgr(*arguments, "--skip-snippet", "--yes")
    assert code == 0 and "/org/published/commit/" in printed
    repository = hub.repository("org/published")
    assert set(bundle_files()) | {"case.h5", "README.md", ".eval_results/org--knees.yaml"} <= set(repository.files)
    assert json.loads(repository.files["model_index.json"])["_class_name"] == ["pipeline", "SGRMRIPipeline"]
    assert repository.at("main").message == "Publish the model by sgr"
    configs = [content for name, content in repository.files.items() if name.endswith("config.json")]
    assert len(configs) == 3 and b"_name_or_path" not in b"".join(configs)

    n_commits = len(repository.commits)
    code, printed = sgr(*arguments, "--skip-snippet", "--yes")
    assert code == 0 and "is up to date" in printed and len(repository.commits) == n_commits

    record = json.loads((folder / "training/1_prior.json").read_text())
    (folder / "training/1_prior.json").write_text(json.dumps({**record, "seed": 815}, indent=1))
    repository.commit({**repository.files, "notes.txt": b"by hand"}, "by hand")
    code, printed = sgr(*arguments, "--skip-snippet", "--yes", "--message", "Another seed")
    lines = printed.splitlines()
    assert "  ~ README.md" in lines and "  ~ training/1_prior.json" in lines and "  ~ pipeline.py" not in lines
    assert "  = notes.txt (only on the Hub, stays)" in lines
    assert [line for line in lines if line.startswith("-Seed 1,")] and [line for line in lines if "+Seed 815," in line]
    assert repository.at("main").message == "Another seed" and "notes.txt" in repository.files

    card = repository.files["README.md"].decode()
    snippet = card.split("```python\n")[1].split("```")[0]
    assert "hf_hub_download" in snippet
    printed = worker.run(
        "import io, contextlib\nprinted = io.StringIO()\nwith contextlib.redirect_stdout(printed):\n    exec("
        + repr(snippet.replace("steps=100", "steps=6"))
        + ")\nresult = printed.getvalue()"
    )
    assert "femoral_cartilage" in printed


def test_publish_a_space(hub, sgr):
    address = "sgr-diffusers[app] @ https://example.org/sgr_diffusers-0.1.0-py3-none-any.whl"
    arguments = ("publish", "space", "--repo", "org/page", "--model", "org/knee", "--package", address)
    code, printed = sgr(*arguments, "--dry-run")
    assert code == 0 and "+ app.py" in printed and ("space", "org/page") not in hub.repositories
    code, printed = sgr(*arguments, "--yes")
    assert code == 0, printed
    files = hub.repository("org/page", "space").files
    assert files["requirements.txt"].decode() == f"{address}\n"
    card = SpaceCard(files["README.md"].decode())
    assert card.data.models == ["org/knee"] and card.data.sdk == "gradio" and f"'{address}'" in card.text
    code, printed = sgr(*arguments[:4], "--package", "gradio", "--yes")
    assert code == 2 and "`package` must be sgr-diffusers[app]" in printed


def test_a_stranger_and_a_wrong_token(hub, sgr, folder):
    hub.add("org/theirs", {"README.md": b"# theirs"})
    code, printed = sgr("publish", "model", folder, "--repo", "org/theirs", "--skip-snippet", "--yes", token=WRONG)
    assert code == 2 and "401" in printed
    assert hub.repository("org/theirs").files == {"README.md": b"# theirs"}
    code, printed = sgr("publish", "model", folder, "--repo", "elsewhere/new", "--skip-snippet", "--yes")
    assert code == 2 and "403" in printed
    code, printed = sgr("publish", "model", folder, "--repo", "noslash", "--yes")
    assert code == 2 and "org/name" in printed


TINY = SyntheticKneeConfig(
    matrix_shape=(4, 24, 20), n_coils=2, n_echoes=1, accelerations=(4.0,), calibration_shape=(8, 8)
)


def test_publish_a_synthetic_data_set(hub, worker, sgr, tmp_path):
    data = write_synthetic_dataset(tmp_path / "knee", (1, 1, 1), TINY, progress=False)
    code, printed = sgr("publish", "dataset", data, "--repo", "org/knees", "--yes")
    assert code == 0, printed
    files = hub.repository("org/knees", "dataset").files
    for name in (path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()):
        assert files[name] == (data / name).read_bytes()
    card = files["README.md"].decode()
    assert DatasetCard(card).data.license == "apache-2.0" and "1 scans for train" in card and "[4, 24, 20]" in card
    snippet = card.split("```python\n")[1].split("```")[0].replace("acceleration=8", "acceleration=4")
    assert worker.run(snippet + "\nresult = list(dataset[0]['kspace'].shape)") == [2, 24, 20]


def anonymous(hub, name):
    """Status of the answer to somebody without a token who asks for the first file of a data set."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        url = f"{hub.url}/datasets/{name}/resolve/main/data/train-00000-of-00001.parquet"
        with opener.open(url) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_of_people_only_an_index_is_published(hub, sgr, tmp_path):
    data = write_tiny_skm_tea(tmp_path / "data")
    close_files()
    code, printed = sgr("publish", "dataset", data, "--repo", "org/people", "--yes")
    assert code == 2 and "was not written by `sgr synthesize`" in printed
    assert ("dataset", "org/people") not in hub.repositories
    code, printed = sgr("publish", "dataset", data, "--repo", "org/index", "--index", "--yes")
    assert code == 0, printed
    assert anonymous(hub, "org/index") == 401
    repository = hub.repository("org/index", "dataset")
    asked = [path for method, path, _ in hub.requests if "org/index" in path and method in ("PUT", "POST")]
    assert asked.index("/api/datasets/org/index/settings") < asked.index("/api/datasets/org/index/commit/main")
    repository.gated, n_commits = False, len(repository.commits)  # as an earlier version left it
    assert anonymous(hub, "org/index") == 200
    code, printed = sgr("publish", "dataset", data, "--repo", "org/index", "--index", "--dry-run")
    assert code == 0 and "  gated: only readers who agree" in printed and not repository.gated
    code, printed = sgr("publish", "dataset", data, "--repo", "org/index", "--index", "--yes")
    assert code == 0 and anonymous(hub, "org/index") == 401 and len(repository.commits) == n_commits
    code, printed = sgr("publish", "dataset", data, "--repo", "org/index", "--index", "--yes")
    assert code == 0 and "is up to date" in printed
    files = repository.files
    assert {name for name in files if not name.startswith("data/")} == {".gitattributes", "README.md"}
    annotations = json.loads((data / "annotations/v1.0.0/train.json").read_text())["images"]
    rows = pq.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"])).to_pylist()
    assert len(rows) == sum(image["matrix_shape"][0] for image in annotations)
    assert rows[1]["slice"] == 1 and rows[1]["scan_id"] == annotations[0]["scan_id"]
    assert "subject_id" in annotations[0] and set(rows[0]) == set(INDEX_COLUMNS)  # no word of who it is
    data = DatasetCard(files["README.md"].decode()).data
    assert data.license == "other" and data.license_name and "research use agreement" in data.extra_gated_prompt
    assert "checkbox" in data.extra_gated_fields.values()


def test_no_index_is_made_of_scans_whose_names_may_tell_of_whom_they_are(tmp_path):
    data = write_tiny_skm_tea(tmp_path / "data")
    close_files()
    path = data / "annotations/v1.0.0/train.json"
    path.write_text(path.read_text().replace("MTR_001", "Doe_Jane"))
    (tmp_path / "stage").mkdir()
    with pytest.raises(ValueError, match="'Doe_Jane' in the annotations of train is no scan of SKM-TEA"):
        stage_index(data, tmp_path / "stage", "org/index")


def test_a_scan_hidden_in_a_synthetic_data_set_is_found(tmp_path):
    import h5py

    data = write_synthetic_dataset(tmp_path / "knee", (1, 1, 1), TINY, progress=False)
    scan = data / "files_recon_calib-24" / "SYN_train_000.h5"
    renamed = scan.with_name("MTR_005.h5")
    shutil.copyfile(scan, renamed)
    with pytest.raises(ValueError, match=r"MTR_005.h5 was not written by"):
        check_synthetic(data)
    renamed.unlink()
    with h5py.File(scan, "r+") as file:
        del file.attrs["config"]
    with pytest.raises(ValueError, match=r"SYN_train_000.h5 does not say how it was synthesized"):
        check_synthetic(data)


def test_folders_without_annotations(tmp_path):
    with pytest.raises(ValueError, match="not a folder in the SKM-TEA layout"):
        stage_index(tmp_path, tmp_path, "org/index")


def test_a_token_in_a_file_is_not_published(tmp_path, monkeypatch):
    shutil.copyfile(PRETRAINED / "README.md", tmp_path / "README.md")
    shutil.copytree(PRETRAINED / "evaluation", tmp_path / "evaluation")  # figures that the card shows
    monkeypatch.delenv("HF_TOKEN", raising=False)
    check_stage(tmp_path, "model")
    (tmp_path / "log.txt").write_text(f"token={OWNER}")
    with pytest.raises(ValueError, match=r"log.txt holds what looks like a token") as refusal:
        check_stage(tmp_path, "model")
    assert OWNER not in str(refusal.value)
    (tmp_path / "log.txt").unlink()
    for name in ("train.log", "notebook.ipynb"):
        (tmp_path / name).write_text(f"token={OWNER}")
    (tmp_path / "large.safetensors").write_bytes(b"\0" * (_BLOCK - 10) + OWNER.encode())  # across two blocks
    with pytest.raises(ValueError, match=r"large.safetensors holds.*notebook.ipynb holds.*train.log holds"):
        check_stage(tmp_path, "model")
    for name in ("train.log", "notebook.ipynb", "large.safetensors"):
        (tmp_path / name).unlink()
    monkeypatch.setenv("HF_TOKEN", "an unusual token")
    (tmp_path / "weights.safetensors").write_bytes(b"...an unusual token...")
    with pytest.raises(ValueError, match=r"weights.safetensors holds"):
        check_stage(tmp_path, "model")
    assert redact(f"401 for {OWNER} and an unusual token") == "401 for hf_*** and hf_***"


def test_pickles_are_not_published(tmp_path):
    shutil.copyfile(PRETRAINED / "README.md", tmp_path / "README.md")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.ckpt would have to be unpickled"):
        check_stage(tmp_path, "model")


def test_nobody_is_asked_where_nobody_is(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ValueError, match="--yes"):
        ask_on_terminal("Push?")
