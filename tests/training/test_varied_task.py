"""Training on varied images: both networks, resumed to the bit, and the batches that they see."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from sgr_diffusers.data.synthetic.anatomy_bank import render_bank
from sgr_diffusers.data.synthetic.appearance import VariedImages
from sgr_diffusers.models.prior import create_scheduler
from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training.prior_loss import timestep_density
from sgr_diffusers.training.varied_task import VariedPriorLoss
from tests.helpers.tiny_training import forget_accelerator

SCRIPT = Path(__file__).parents[2] / "training" / "train_varied.py"
QUICK = "--bank-slices 2 --validation-images 2 --train-batch-size 1 --num-threads 1 --channels 8 32".split()


def train(network, output_dir, *arguments):
    forget_accelerator()
    arguments = ["--network", network, "--output-dir", output_dir, *QUICK, *arguments]
    return runpy.run_path(str(SCRIPT))["main"]([str(argument) for argument in arguments])


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "pictures.h5", "w") as file:
        file["image"], file["fold"] = rng.integers(0, 255, (3, 64, 64), np.uint8), np.array([1, 2, 3])
    return tmp_path / "pictures.h5"


def test_prior_resumes_to_the_bit(tmp_path, pictures):
    options = ["--pictures", pictures, "--folds", 1, 3, "--noisy-share", 0.6, "--snr-gamma", 50]
    record = train("prior", tmp_path / "whole", *options, "--max-train-steps", 3)
    data = {"bank_slices": 2, "noisy_share": 0.6, "snr_gamma": 50, "folds": [1, 3], "pictures": 2}
    assert record["data"] == data
    assert record["history"][-1]["val_eps_mse"] > 0
    train("prior", tmp_path / "parts", *options, "--max-train-steps", 2)
    resumed = [*options, "--max-train-steps", 3, "--resume-from-checkpoint", "latest"]
    train("prior", tmp_path / "parts", *resumed)
    whole, parts = (UNet2DModel.from_pretrained(tmp_path / name / "unet") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_segmentation_starts_from_given_weights(tmp_path):
    train("segmentation", tmp_path / "first", "--max-train-steps", 1)
    folder = tmp_path / "first" / "segmentation_model"
    start = ["--init-from", tmp_path / "first", "--max-train-steps", 1, "--learning-rate", 1e-12]
    record = train("segmentation", tmp_path / "second", *start)
    assert set(record["history"][-1]["val_dice_per_class"]) == set(
        SegmentationUNet.from_pretrained(folder).config.class_names
    )
    first, second = (
        SegmentationUNet.from_pretrained(tmp_path / name / "segmentation_model") for name in ("first", "second")
    )
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_batches_of_other_sizes_have_as_many_pixels():
    shapes = []

    class Network(torch.nn.Module):
        def forward(self, noisy, timesteps):
            shapes.append(tuple(noisy.shape))
            return SimpleNamespace(sample=noisy)

    source = VariedImages(*render_bank(1))
    loss = VariedPriorLoss(source, ((32, 32), (64, 32)), scheduler=create_scheduler("v_prediction"))
    for seed in range(6):
        loss(Network(), {"draw": torch.arange(4)}, torch.Generator().manual_seed(seed))
    assert set(shapes) == {(4, 2, 32, 32), (2, 2, 64, 32)}


@pytest.mark.parametrize("gamma", [None, 5, 50])
def test_timesteps_are_drawn_evenly_or_where_they_weigh_most(gamma):
    drawn = []

    class Network(torch.nn.Module):
        def forward(self, noisy, timesteps):
            drawn.extend(timesteps.tolist())
            return SimpleNamespace(sample=noisy)

    source, scheduler = VariedImages(*render_bank(1)), create_scheduler("v_prediction")
    loss = VariedPriorLoss(source, ((32, 32),), scheduler=scheduler, snr_gamma=gamma)
    loss(Network(), {"draw": torch.arange(20)}, torch.Generator().manual_seed(0))
    share = 0.5 if gamma is None else float(timestep_density(scheduler, gamma)[:500].sum())
    assert sum(timestep < 500 for timestep in drawn) == pytest.approx(20 * share, abs=1)
    assert (share > 0.8) == (gamma is not None)
