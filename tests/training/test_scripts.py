import dataclasses
import json
import runpy
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from layout_fixture import write_tiny_skm_tea

from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training.options import TrainingOptions

ROOT = Path(__file__).parents[2]


def script(name, *arguments):
    return runpy.run_path(str(ROOT / "training" / f"{name}.py"))["main"]([str(argument) for argument in arguments])


SHARED = "--max_train_steps 3 --train_batch_size 2 --num_threads 1 --logging_steps 1 --validation_steps 2".split()


@pytest.fixture
def data(tmp_path):
    return write_tiny_skm_tea(tmp_path / "data")


def test_train_prior_script(data, tmp_path):
    output = tmp_path / "prior"
    architecture = "--block_out_channels 8 32 --prediction_type v_prediction --snr_gamma 5 --max_shift 2 2".split()
    options = ["--data_dir", data, "--output_dir", output, *SHARED, "--foreground_fraction", 0.4]
    record = script("train_prior", *options, *architecture)
    prior = UNet2DModel.from_pretrained(output / "unet")
    assert prior.config.block_out_channels == [8, 32]
    assert DDIMScheduler.from_pretrained(output / "scheduler").config.prediction_type == "v_prediction"

    stored = json.loads((output / "training_record.json").read_text())
    assert stored["steps"] == 3
    assert stored["images"] == 6
    assert stored["seed"] == 0
    assert stored["data"]["slices"] == 12
    assert {entry["step"] for entry in stored["history"] if "val_eps_mse" in entry} == {2, 3}
    assert set(stored["options"]) == {field.name for field in dataclasses.fields(TrainingOptions)}
    assert record["history"][-1]["val_errors"][500]["eps_mse"] > 0

    start = script("train_prior", *options[:2], "--output_dir", tmp_path / "next", *SHARED, "--init_from", output)
    assert start["parameters"] == sum(parameter.numel() for parameter in prior.parameters())


def test_train_segmentation_script(data, tmp_path):
    output = tmp_path / "segmentation"
    options = ["--data_dir", data, "--output_dir", output, *SHARED, "--channels", 4, 8, "--strides", 2]
    record = script("train_segmentation", *options, "--num_res_units", 1, "--mirror_axes", "both", "--flip_average")
    assert set(record["history"][-1]["val_dice_per_scan"]) == {"MTR_003"}
    assert 0 <= record["history"][-1]["val_dice"] <= 1
    for name in ("segmentation_model", "segmentation_model_best"):
        model = SegmentationUNet.from_pretrained(output / name)
        assert model.config.flip_average
        assert model(torch.rand(1, 1, 24, 16)).shape == (1, 5, 24, 16)


def test_flip_average_without_mirroring_is_refused(capsys):
    with pytest.raises(SystemExit):
        script("train_segmentation", "--data_dir", "anywhere", "--flip_average")
    assert "--mirror_axes both" in capsys.readouterr().err
