"""Adapts priors of other kinds to what the pipeline calls: a network of noisy image and timestep, as `UNet2DModel`.

An adapted prior is put together in the program that uses it; it cannot be saved with a pipeline.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ConditionedPrior", "EDMPrior"]

Channels = Float[Tensor, "image 2 y x"]


class _AdaptedPrior(nn.Module):
    """A network that the pipeline calls by way of another one."""

    network: nn.Module

    @property
    def dtype(self) -> torch.dtype:
        """Type that the network computes in."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device


class ConditionedPrior(_AdaptedPrior):
    """A `UNet2DConditionModel` that is shown the same embedding in each call, such as that of an empty prompt.

    Args:
        network: network with 2 channels in and 2 or 4 out, such as that of ContextMRI.
        embedding: embedding `(token, width)`, computed once by the text encoder that belongs to the network.

    Raises:
        ValueError: the embedding has another width than the network takes.
    """

    network: UNet2DConditionModel
    embedding: Tensor

    def __init__(self, network: UNet2DConditionModel, embedding: Float[Tensor, "token width"]) -> None:
        """Hold network and embedding."""
        super().__init__()
        # Configurations that ask for a projection of the embedding take the width of what is projected.
        width = network.config.encoder_hid_dim or network.config.cross_attention_dim
        if embedding.shape[-1] != width:
            raise ValueError(
                f"`embedding` must be (token, {width}) for this network, got {tuple(embedding.shape)}. Compute it by "
                "the text encoder that the network was trained with."
            )
        self.network, self.config = network, network.config
        self.register_buffer("embedding", embedding)

    def forward(self, sample: Channels, timestep: Tensor, return_dict: bool = True) -> Any:
        """Return what the network predicts."""
        states = self.embedding.to(sample.dtype).expand(len(sample), -1, -1)
        return self.network(sample, timestep, encoder_hidden_states=states, return_dict=return_dict)


class EDMPrior(_AdaptedPrior):
    """A denoiser with the preconditioning of EDM (Karras et al. 2022, Table 1), as a prior that predicts images.

    The pipeline needs a scheduler with prediction_type "sample" beside it.

    Args:
        network: F of their Eq. 7, from the scaled image `(image, 2, y, x)` and ln(sigma) / 4 `(image,)` to an image.
        alphas_cumprod: abar of each timestep, that of the scheduler.
        sigma_data: standard deviation of the training images.
        n_levels: number of levels of the network; the sides of images are padded to a multiple of 2^(n_levels - 1).
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        network: nn.Module,
        alphas_cumprod: Float[Tensor, " timestep"],
        sigma_data: float = 0.5,
        n_levels: int = 4,
    ) -> None:
        """Hold network and noise levels."""
        super().__init__()
        self.network, self.sigma_data = network, sigma_data
        self.config = SimpleNamespace(in_channels=2, out_channels=2, block_out_channels=(None,) * n_levels)
        self.register_buffer("alphas_cumprod", alphas_cumprod.double())

    def forward(self, sample: Channels, timestep: Tensor, return_dict: bool = True) -> UNet2DOutput | tuple[Channels]:
        """Return the clean image D(x; sigma), for x and sigma in units of the clean image."""
        abar = self.alphas_cumprod.index_select(0, timestep.reshape(1).long())
        sigma = ((1 - abar) / abar).sqrt()
        total = (sigma**2 + self.sigma_data**2).sqrt()
        image = sample / abar.sqrt().to(sample.dtype)
        scaled, noise_level = image / total.to(sample.dtype), (sigma.log() / 4).to(sample.dtype)
        output = self.network(scaled, noise_level.expand(len(sample)))
        skip, out = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total
        clean = skip.to(sample.dtype) * image + out.to(sample.dtype) * output
        return UNet2DOutput(sample=clean) if return_dict else (clean,)
