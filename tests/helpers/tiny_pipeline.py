"""An untrained pipeline of a few thousand parameters, for the tests of everything that loads one from disk."""

from pathlib import Path

import torch

from sgr_diffusers import SegmentationUNet, SGRMRIPipeline, create_prior, create_scheduler
from sgr_diffusers.calibration.quantiles import Group, GroupQuantiles
from sgr_diffusers.calibration.record import Calibration
from sgr_diffusers.pipeline.calibrated import calibration_settings, measured_group
from sgr_diffusers.reconstruction.demo import COVERAGE
from sgr_diffusers.reconstruction.settings import SamplingSettings
from sgr_diffusers.reconstruction.volume import load_pipeline, with_fast_scheduler


def save_tiny_pipeline(folder: Path) -> Path:
    """Save it in Hub layout. The prior is damped, so that reconstructions stay near the zero-filled image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = create_prior(
            "small", block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8
        )
        segmentation_model = SegmentationUNet(channels=(4, 8), strides=(2,), num_res_units=1)
    unet.conv_out.weight.data *= 0.1
    unet.conv_out.bias.data.zero_()
    SGRMRIPipeline(unet, create_scheduler("v_prediction"), segmentation_model).save_pretrained(folder)
    return folder


def calibrate_tiny_pipeline(folder: Path, mask: torch.Tensor, acceleration: float) -> Path:
    """Give it a calibration for two fast steps and two slices that are measured by this mask."""
    pipe = with_fast_scheduler(load_pipeline(folder, "cpu"))
    steps = SamplingSettings(num_inference_steps=2, fast=True)
    settings = calibration_settings(pipe, steps, steps.visited_timesteps)
    measured, family = measured_group(mask)
    group, names = Group(acceleration, family, (measured, measured)), tuple(pipe.class_names)
    quantiles = GroupQuantiles(group, COVERAGE, 20, names, (0.2,) * 4, (0.1,) * 4, 0.2, 0.1, (0.1,) * 4, (20,) * 4)
    splits = {"train": (), "tune": (), "calibration": tuple(map(str, range(20)))}
    Calibration((quantiles,), settings, splits, "fully_sampled", "all slices", (2, 2), 0, {}).save(folder)
    return folder
