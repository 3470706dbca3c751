import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file

from sgr_diffusers.models.prior import create_scheduler
from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training.options import TrainingOptions
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.pipeline_parts import build_unet
from tests.helpers.tiny_training import forget_accelerator, free_port

ROOT = Path(__file__).parents[2]


def script(name, *arguments):
    forget_accelerator()
    return runpy.run_path(str(ROOT / "training" / f"{name}.py"))["main"]([str(argument) for argument in arguments])


QUICK = "--validation-inference-steps 2 --validation-samples 2".split()
SHARED = "--max-train-steps 3 --train-batch-size 2 --num-threads 1 --logging-steps 1 --validation-steps 2".split()


@pytest.fixture
def data(tmp_path):
    return write_tiny_skm_tea(tmp_path / "data")


def test_train_prior_script(data, tmp_path):
    output = tmp_path / "prior"
    architecture = (
        "--block-out-channels 8 32 --prediction-type v_prediction --snr-gamma 5 --max-shift 2 2".split() + QUICK
    )
    options = ["--data-dir", data, "--output-dir", output, *SHARED, "--foreground-fraction", 0.4]
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

    again = ["--output-dir", tmp_path / "next", *SHARED, *QUICK, "--init-from", output]
    start = script("train_prior", *options[:2], *again)
    assert start["parameters"] == sum(parameter.numel() for parameter in prior.parameters())


def test_train_segmentation_script(data, tmp_path):
    output = tmp_path / "segmentation"
    options = ["--data-dir", data, "--output-dir", output, *SHARED, "--channels", 4, 8, "--strides", 2]
    record = script("train_segmentation", *options, "--num-res-units", 1, "--mirror-axes", "both", "--flip-average")
    assert set(record["history"][-1]["val_dice_per_scan"]) == {"MTR_003"}
    assert 0 <= record["history"][-1]["val_dice"] <= 1
    for name in ("segmentation_model", "segmentation_model_best"):
        model = SegmentationUNet.from_pretrained(output / name)
        assert model.config.flip_average
        assert model(torch.rand(1, 1, 24, 16)).shape == (1, 5, 24, 16)


def test_segmentation_takes_the_classes_of_the_data(tmp_path):
    data = write_tiny_skm_tea(tmp_path / "data", class_names=tuple("abcdef"))
    options = ["--data-dir", data, "--output-dir", tmp_path / "seg", *SHARED, *"--channels 4 8 --strides 2".split()]
    record = script("train_segmentation", *options, "--num-res-units", 1)
    model = SegmentationUNet.from_pretrained(tmp_path / "seg" / "segmentation_model")
    assert tuple(model.config.class_names) == tuple("abcdef")
    assert set(record["history"][-1]["val_dice_median"]) == set("abcdef")


def test_flip_average_without_mirroring_is_refused(capsys):
    with pytest.raises(SystemExit):
        script("train_segmentation", "--data-dir", "anywhere", "--flip-average")
    assert "--mirror-axes both" in capsys.readouterr().err


def test_pictures_and_numbers_reach_disk_and_tensorboard(data, tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "prior"
    options = ["--data-dir", data, "--output-dir", output, *SHARED, *QUICK, "--block-out-channels", 8, 32]
    trackers = ["--report-to", "tensorboard", "--tracker-project-name", "knees"]
    record = script("train_prior", *options, *trackers, "--validation-pictures", 1)

    assert sorted(path.name for path in (output / "pictures").iterdir()) == [
        f"{step:07d}_{name}.png" for step in (2, 3) for name in ("reconstructions", "samples")
    ]
    with Image.open(output / "pictures/0000003_samples.png") as samples:
        assert samples.size == (2 * 16, 24)
    with Image.open(output / "pictures/0000003_reconstructions.png") as sheet:
        sheet = np.asarray(sheet)  # fully sampled, reconstructed, error
    assert sheet.shape == (24, 3 * 16) and sheet[:, :16].mean() > 50

    events = EventAccumulator(str(output / "trackers/knees")).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    logged = {row["step"]: row["loss"] for row in record["history"] if "loss" in row}
    assert losses == pytest.approx(logged) and set(losses) == {1, 2, 3}
    assert {"val_psnr", "val_eps_mse", "val_errors/500/x0_mse", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("samples")] == [2, 3]


def test_segmentation_is_trained_on_attacked_images(data, tmp_path):
    output = tmp_path / "robust"
    options = ["--data-dir", data, "--output-dir", output, *SHARED, "--channels", 4, 8, "--strides", 2]
    attack = ["--adversarial-fraction", 0.5, "--adversarial-norm", "l2", "--adversarial-radius", 2]
    attack += ["--adversarial-steps", 2, "--adversarial-validation-slices", 3]
    record = script("train_segmentation", *options, "--num-res-units", 1, *attack)
    last = record["history"][-1]
    assert 0 <= last["val_attacked_dice"] <= 1 and set(last["val_attacked_dice_per_scan"]) == {"MTR_003"}
    assert record["arguments"]["adversarial_norm"] == "l2"
    assert (output / "segmentation_model_best").is_dir()


def test_resume_with_another_recipe_is_refused(data, tmp_path):
    options = ["--data-dir", data, "--output-dir", tmp_path / "out", *SHARED, "--channels", 4, 8, "--strides", 2]
    script("train_segmentation", *options)
    with pytest.raises(ValueError, match=r"max_noise: 0.05 there, 0.1 now"):
        script("train_segmentation", *options, "--resume-from-checkpoint", "latest", "--max-noise", 0.1)


def test_slices_read_from_disk_train_the_same(data, tmp_path):
    def weights(folder, *options):
        output = tmp_path / folder
        network = ["--channels", 4, 8, "--strides", 2, "--num-res-units", 1]
        script("train_segmentation", "--data-dir", data, "--output-dir", output, *SHARED, *network, *options)
        return load_file(output / "segmentation_model/diffusion_pytorch_model.safetensors")

    held = weights("held", "--min-foreground", 1)
    read = weights("read", "--min-foreground", 1, "--no-preload", "--dataloader-num-workers", 1)
    read_by_thread = weights("thread", "--min-foreground", 1, "--no-preload")
    assert all(torch.equal(held[key], read[key]) for key in held)
    assert all(torch.equal(held[key], read_by_thread[key]) for key in held)
    assert json.loads((tmp_path / "read/training_record.json").read_text())["data"]["slices"] == 4


@pytest.mark.parametrize("mode", ["bf16", "gradient_checkpointing"])
def test_other_ways_to_the_same_loss(data, tmp_path, mode):
    options = ["--data-dir", data, *SHARED, *QUICK, "--validation-steps", 0, "--block-out-channels", 8, 32]
    how = ["--mixed-precision", "bf16"] if mode == "bf16" else ["--gradient-checkpointing"]
    plain = script("train_prior", *options, "--output-dir", tmp_path / "plain")
    other = script("train_prior", *options, "--output-dir", tmp_path / "other", *how)
    losses = [[row["loss"] for row in record["history"] if "loss" in row] for record in (plain, other)]
    tolerance = 0.03 if mode == "bf16" else 1e-5
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert mode != "bf16" or losses[0] != losses[1]


@pytest.mark.parametrize(
    ("script_name", "options", "error", "message"),
    [
        ("train_prior", ["--block-out-channels", 8, 8, 8, 8, 8, 32], ValueError, "Pass --size 32 32"),
        (
            "train_prior",
            ["--min-foreground", 10**6],
            ValueError,
            "No slice of the 2 scans of the split 'train' is left",
        ),
        ("train_prior", ["--slices", "1:2:3:4"], ValueError, "`slices` must be all, paper"),
        ("train_prior", ["--mixed-precision", "fp16"], ValueError, "fp16 needs a GPU"),
        ("train_prior", ["--init-from", "x", "--dropout", 0.1], ValueError, "leave out --dropout"),
        ("train_segmentation", ["--init-from", "x", "--channels", 4, 8], ValueError, "leave out --channels"),
        ("train_prior", ["--use-8bit-adam"], ImportError, "pip install bitsandbytes"),
        ("train_segmentation", ["--adversarial-fraction", 2], ValueError, "`adversarial_fraction`"),
        ("train_segmentation", ["--echo", 7], IndexError, "`echo` 7"),
        ("train_prior", ["--snr-gamma", -1], ValueError, "min-SNR weights must be positive, got -1"),
        ("train_prior", ["--validation-timesteps", 1000], ValueError, "must be in 0..999"),
        ("train_prior", ["--validation-inference-steps", 0], ValueError, "must be in 1..1000, got 0"),
        ("train_prior", ["--validation-samples", -1], ValueError, "`n_samples` must not be negative"),
        ("train_prior", ["--validation-slices", 0], SystemExit, "2"),
        ("train_prior", ["--max-shift", 500, 0], ValueError, "`max_shift` .500, 0. leaves nothing"),
        ("train_segmentation", ["--max-noise", -1], ValueError, "`max_noise` must not be negative"),
        ("train_segmentation", ["--gain-range", 3], ValueError, "`gain_range` must be in"),
        ("train_segmentation", ["--zoom-range", 1], ValueError, "`zoom_range` must be in"),
        ("train_segmentation", ["--max-turn", -1], ValueError, "`max_turn` must be in 0..180"),
        (
            "train_segmentation",
            ["--adversarial-fraction", 1, "--adversarial-validation-slices", -2],
            ValueError,
            "validated under attack",
        ),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(data, tmp_path, script_name, options, error, message):
    with pytest.raises(error, match=message):
        script(script_name, "--data-dir", data, "--output-dir", tmp_path / "out", "--max-train-steps", 1, *options)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_data_that_does_not_fit_is_refused_before_it_is_read(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sgr_diffusers.training.data.available_memory", lambda device: 1000)
    options = ["--data-dir", data, "--output-dir", tmp_path / "out", "--max-train-steps", 1]
    for name in ("train_prior", "train_segmentation"):
        with pytest.raises(MemoryError, match=r"of the split 'train' take .* --no-preload"):
            script(name, *options)
    network = ["--channels", 4, 8, "--strides", 2, "--num-res-units", 1]
    script("train_segmentation", *options, *network, "--skip-memory-check")


def test_a_run_that_is_refused_deletes_nothing_of_an_earlier_one(data, tmp_path):
    output = tmp_path / "out"
    network = ["--channels", 4, 8, "--strides", 2, "--num-res-units", 1]
    options = ["--data-dir", data, "--output-dir", output, *SHARED, *network]
    script("train_segmentation", *options)
    (output / "nonfinite-step-7").mkdir()
    before = sorted(output.rglob("*"))
    for wrong in (["--use-8bit-adam"], ["--foreground-fraction", 1.5]):
        with pytest.raises((ImportError, ValueError), match=r"use_8bit_adam|foreground_fraction"):
            script("train_segmentation", *options, "--overwrite-output-dir", *wrong)
        assert sorted(output.rglob("*")) == before
    script("train_segmentation", *options, "--overwrite-output-dir")
    assert not (output / "nonfinite-step-7").exists()


def test_a_prior_goes_on_predicting_what_it_did(data, tmp_path):
    build_unet().save_pretrained(tmp_path / "prior/unet")
    create_scheduler("v_prediction").save_pretrained(tmp_path / "prior/scheduler")
    options = ["--data-dir", data, "--output-dir", tmp_path / "out", "--max-train-steps", 1]
    for start in ("prior", "prior/unet"):
        with pytest.raises(ValueError, match="predicts v_prediction, not epsilon"):
            script("train_prior", *options, "--init-from", tmp_path / start, "--prediction-type", "epsilon")
    script("train_prior", *options, *QUICK, "--init-from", tmp_path / "prior")
    assert DDIMScheduler.from_pretrained(tmp_path / "out/scheduler").config.prediction_type == "v_prediction"


def test_data_that_is_not_there_is_named(data, tmp_path):
    options = ["--data-dir", data, "--output-dir", tmp_path / "out", "--max-train-steps", 1]
    (data / "segmentation_masks/raw-data-track/MTR_002.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="MTR_002 has no segmentation"):
        script("train_segmentation", *options, "--no-preload")
    (data / "files_recon_calib-24/MTR_003.h5").unlink()
    with pytest.raises(ValueError, match=r"MTR_003\.h5: the file is missing"):
        script("train_prior", *options)
    annotations = data / "annotations/v1.0.0/val.json"
    annotations.write_text('{"images": []}')
    with pytest.raises(ValueError, match="the split 'val' list no scan"):
        script("train_prior", *options)
    annotations.unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.json is missing"):
        script("train_prior", *options)


def test_networks_that_do_not_fit_the_data_are_refused(data, tmp_path):
    options = ["--data-dir", data, "--output-dir", tmp_path / "out", "--max-train-steps", 1]
    build_unet(in_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(ValueError, match="got 1 in and 2 out"):
        script("train_prior", *options, "--init-from", tmp_path / "grey")
    SegmentationUNet(class_names=("bone",), channels=(4, 8), strides=(2,)).save_pretrained(tmp_path / "bone")
    with pytest.raises(ValueError, match=r"must have the classes of the data, .* got \('bone',\)"):
        script("train_segmentation", *options, "--init-from", tmp_path / "bone")
    SegmentationUNet(in_channels=2, channels=(4, 8), strides=(2,)).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="must have 1 input channel"):
        script("train_segmentation", *options, "--init-from", tmp_path / "two")


@pytest.mark.parametrize("name", ["train_prior", "train_segmentation"])
def test_the_settings_of_the_paper(name):
    parse = runpy.run_path(str(ROOT / "training" / f"{name}.py"))["parse_arguments"]
    args = parse(["--data-dir", "anywhere", "--settings", "paper", "--max-train-steps", "1000000"])
    if name == "train_prior":
        assert (args.preset, args.train_batch_size, args.max_train_steps) == ("paper", 2, 1_000_000)
        assert args.prediction_type == "epsilon" and args.snr_gamma is None and args.no_mirror and args.no_phase
    else:
        assert (args.foreground_fraction, args.mirror_axes, args.max_noise) == (0.4, "both", 0.05)


@pytest.mark.slow
def test_two_launched_processes_resume(data, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    options = ["--data-dir", data, "--train-batch-size", 2, "--channels", 4, 8, "--strides", 2, "--logging-steps", 1]
    options += ["--lr-scheduler", "constant", "--cpu", "--num-threads", 1]

    def run(folder, *more):
        command = [
            *launch,
            ROOT / "training/train_segmentation.py",
            *options,
            "--output-dir",
            tmp_path / folder,
            *more,
        ]
        run_outside(command)
        return load_file(tmp_path / folder / "segmentation_model/diffusion_pytorch_model.safetensors")

    whole = run("whole", "--max-train-steps", 4)
    run("parts", "--max-train-steps", 2)
    parts = run("parts", "--max-train-steps", 4, "--resume-from-checkpoint", "latest")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    record = json.loads((tmp_path / "whole/training_record.json").read_text())
    assert record["machine"]["processes"] == 2 and record["images"] == 16


@pytest.mark.slow
def test_accelerate_launch_on_one_cpu(data, tmp_path):
    config = ROOT / "training/accelerate_configs/cpu.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    options = ["--data-dir", data, "--output-dir", tmp_path / "out", "--channels", 4, 8, "--strides", 2]
    run_outside([*launch, ROOT / "training/train_segmentation.py", *options, "--max-train-steps", 1])
    record = json.loads((tmp_path / "out/training_record.json").read_text())
    assert record["machine"]["device"] == "cpu" and record["steps"] == 1


def run_outside(command):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([str(part) for part in command], check=True, env=environment)
