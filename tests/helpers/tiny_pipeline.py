"""An untrained pipeline of a few thousand parameters, for the tests of everything that loads one from disk."""

from pathlib import Path

import torch

from sgr_diffusers import SegmentationUNet, SGRMRIPipeline, create_prior, create_scheduler


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
