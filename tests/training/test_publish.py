import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers import UNet2DModel
from huggingface_hub import ModelCard

from sgr_diffusers.data.skm_tea import SKM_TEA, SYNTHETIC
from sgr_diffusers.publishing.cards import card_faults
from sgr_diffusers.publishing.training_card import training_card
from sgr_diffusers.training.log import Validation
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.publish import create_repository, upload_run, write_hub_folder
from sgr_diffusers.training.record import training_record
from tests.helpers import local_hub
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_training import train

ROOT = Path(__file__).parents[2]


def validate(network):
    pictures = {"samples": np.full((2, 4, 4), 9, np.uint8)}
    return Validation({"val_eps_mse": 0.125, "val_errors": {10: {"x0_mse": 0.5}}}, pictures)


@pytest.fixture
def finished(tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    _, state = train(tmp_path / "knee-prior", accelerator=accelerator, validate=validate, max_train_steps=2)
    options = TrainingOptions(str(tmp_path / "knee-prior"), max_train_steps=2, hub_token="hf_secret")
    arguments = {"prediction_type": "epsilon", "hub_token": "hf_secret", "max_shift": (2, 2)}
    data = {"slices": 10, "size": [8, 8], "scans": 2, "data_dir": "somewhere", "quantile": 0.99, "name": None}
    return options, training_record(options, state, accelerator, data=data, arguments=arguments, parameters=1234)


def test_a_card_tells_how_the_weights_came_to_be(finished):
    options, record = finished
    shutil.copyfile(
        Path(options.output_dir) / "pictures/0000002_samples.png",
        Path(options.output_dir) / "pictures/0000002_reconstruction.png",  # of a scan, which may be a person's
    )
    folder = write_hub_folder(Path(options.output_dir), record, "lab/knee-prior")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "pictures", "training_record.json", "unet"]
    assert [path.name for path in (folder / "pictures").iterdir()] == ["0000002_samples.png"]
    UNet2DModel.from_pretrained(folder, subfolder="unet")

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "unconditional-image-generation"
    assert 'UNet2DModel.from_pretrained("lab/knee-prior", subfolder="unet")' in card.text
    assert (
        "2 training scans with 10 slices of data in the SKM-TEA layout" in card.text and "1234 parameters" in card.text
    )
    assert "slices of about 8 x 8 pixels" in card.text and card.data.license is None and "Desai" not in card.text
    assert "| val_eps_mse | 0.125 |\n| val_errors 10 x0_mse | 0.5 |" in card.text
    assert "| max_shift | (2, 2) |" in card.text and "(pictures/0000002_samples.png)" in card.text
    assert "not for clinical use" in card.text.lower()


@pytest.mark.parametrize(
    ("name", "licence", "said"),
    [
        (SYNTHETIC, "apache-2.0", "of synthetic knees"),
        (SKM_TEA, "other", "bind whoever uses what was made from the data"),
    ],
)
def test_a_card_tells_what_the_data_was(finished, name, licence, said):
    options, record = finished
    text = training_card({**record, "data": {**record["data"], "name": name}}, "unet", "lab/knee-prior")
    assert ModelCard(text).data.license == licence and said in text
    assert card_faults(text, "network", Path(options.output_dir)) == []


def test_a_record_with_a_token_is_not_published(finished):
    options, record = finished
    record["arguments"]["report_to"] = "hf_" + "a" * 30
    with pytest.raises(ValueError, match=r"training_record.json holds what looks like a token"):
        write_hub_folder(Path(options.output_dir), record, "lab/knee-prior")
    assert not (Path(options.output_dir) / "hub").exists()


def test_the_token_is_written_nowhere(finished):
    options, record = finished
    folder = write_hub_folder(Path(options.output_dir), record, "lab/knee-prior")
    assert "hf_secret" not in json.dumps(record)
    for path in folder.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_nothing_is_published_unasked(finished):
    options, record = finished
    assert create_repository(options) is None
    upload_run(options, record, None)
    assert not (Path(options.output_dir) / "hub").exists()


needs_writable_hub = pytest.mark.skipif(
    not hasattr(local_hub, "LocalHub"), reason="the local Hub of this checkout only serves files"
)


@needs_writable_hub
def test_a_training_is_published_and_loads_from_there(tmp_path):
    from tests.helpers.hub_client import OWNER, run_client

    data = write_tiny_skm_tea(tmp_path / "data")
    options = (
        f"--data-dir {data} --output-dir {tmp_path / 'out'} --channels 4 8 --strides 2 --max-train-steps 1 --cpu "
    )
    options += "--train-batch-size 2 --num-threads 1 --push-to-hub --hub-model-id lab/knee --hub-private-repo"
    code = f"""
import runpy
runpy.run_path({str(ROOT / "training/train_segmentation.py")!r})["main"]({options.split()!r})
from sgr_diffusers import SegmentationUNet
print(SegmentationUNet.from_pretrained("lab/knee", subfolder="segmentation_model").config.channels)
"""
    with local_hub.local_hub() as hub:
        hub.tokens[OWNER] = "lab"
        done = run_client(code, tmp_path / "home", endpoint=hub.url, token=OWNER, path=(ROOT,))
        assert "[4, 8]" in done.stdout
        names = [path for method, path, *_ in hub.requests if method == "POST"]
    assert any(path.endswith("/commit/main") for path in names)
    assert (tmp_path / "out/hub/README.md").read_text().count("lab/knee") == 1


@needs_writable_hub
def test_a_token_that_may_not_write_is_refused(tmp_path):
    from tests.helpers.hub_client import WRONG, run_client

    code = """
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.publish import create_repository
create_repository(TrainingOptions(max_train_steps=1, push_to_hub=True, hub_model_id="lab/knee"))
"""
    with local_hub.local_hub() as hub:
        done = run_client(code, tmp_path / "home", endpoint=hub.url, token=WRONG, path=(ROOT,), check=False)
    assert done.returncode == 1 and "401 Unauthorized" in done.stderr
