import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import UNet2DModel
from huggingface_hub import ModelCard
from tiny_training import train

from sgr_diffusers.training.log import Validation
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.publish import create_repository, upload_run, write_hub_folder
from sgr_diffusers.training.record import training_record

TEMPLATE = Path(__file__).parents[2] / "hub_cards/training_card.md.jinja"


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
    data = {"slices": 10, "size": [8, 8], "scans": 2, "data_dir": "somewhere"}
    return options, training_record(options, state, accelerator, data=data, arguments=arguments, parameters=1234)


def test_a_card_tells_how_the_weights_came_to_be(finished):
    options, record = finished
    folder = write_hub_folder(Path(options.output_dir), record, "lab/knee-prior", TEMPLATE)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "pictures", "training_record.json", "unet"]
    assert [path.name for path in (folder / "pictures").iterdir()] == ["0000002_samples.png"]
    UNet2DModel.from_pretrained(folder, subfolder="unet")

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "unconditional-image-generation"
    assert 'UNet2DModel.from_pretrained("lab/knee-prior", subfolder="unet")' in card.text
    assert "10 slices of 8 x 8\npixels, from 2 scans" in card.text and "1234 parameters" in card.text
    assert "| val_eps_mse | 0.125 |\n| val_errors 10 x0_mse | 0.5 |" in card.text
    assert "| max_shift | (2, 2) |" in card.text and "(pictures/0000002_samples.png)" in card.text
    assert "not for clinical use" in card.text


def test_the_token_is_written_nowhere(finished):
    options, record = finished
    folder = write_hub_folder(Path(options.output_dir), record, "lab/knee-prior", TEMPLATE)
    assert "hf_secret" not in json.dumps(record)
    for path in folder.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_nothing_is_published_unasked(finished):
    options, record = finished
    assert create_repository(options) is None
    upload_run(options, record, None, TEMPLATE)
    assert not (Path(options.output_dir) / "hub").exists()
