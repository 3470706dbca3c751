"""Provide the networks: the diffusion prior (a plain ``UNet2DModel``) and the segmentation model."""
