"""The prior, the forward operator and the pipeline as deepinv's denoiser, physics and reconstructor, and back.

Images of deepinv are `(batch, 2, y, x)`, real and imaginary part, its k-space is `(batch, 2, coil, y, x)`.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..mri.operators import SenseOperator, channels_to_complex, complex_to_channels
from ..pipeline.networks import predict
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..schedulers.sampler import NoiseLevel
from ..schedulers.support import prediction_type_of
from ..utils.late_import import require

if TYPE_CHECKING:
    import deepinv
else:
    deepinv = require("deepinv", "deepinv")

__all__ = [
    "PriorDenoiser",
    "SGRReconstructor",
    "from_kspace",
    "from_physics",
    "to_kspace",
    "to_physics",
    "to_unit_interval",
]


class PriorDenoiser(deepinv.models.Denoiser):
    """The prior as a denoiser of deepinv: images with noise of standard deviation `sigma` in, clean ones out.

    Nothing is clipped: real and imaginary parts have both signs. The scale of the images is that of the prior, each
    slice divided by the 0.99 quantile of its magnitude (`pipe(...).scale`). Samplers of deepinv that clip to [0, 1],
    such as DiffPIR and DPS, take the images u of `to_unit_interval`, for which `limit` is given.

    Args:
        pipe: pipeline with the prior and its scheduler.
        limit: largest absolute value c of a channel in images u = x / (2 c) + 1/2; `None` for images x.
    """

    def __init__(self, pipe: SGRMRIPipeline, limit: float | None = None):
        """Hold the prior and the noise levels that it was trained with."""
        super().__init__(device=pipe.device)
        self.unet, self.prediction_type = pipe.unet, prediction_type_of(pipe.scheduler)
        self.width, self.offset = (1.0, 0.0) if limit is None else (2 * limit, 0.5)
        alphas_cumprod = pipe.scheduler.alphas_cumprod.double().numpy()
        self.log_levels = 0.5 * np.log((1 - alphas_cumprod) / alphas_cumprod)  # of sigma / alpha

    def forward(
        self, x: Float[Tensor, "batch 2 y x"], sigma: float | Float[Tensor, "..."], **_: Any
    ) -> Float[Tensor, "batch 2 y x"]:
        """Denoise images.

        Args:
            x: noisy images.
            sigma: standard deviation of the noise, one number or one for each image.
        """
        images, sigmas = (x - self.offset) * self.width, self._handle_sigma(sigma, batch_size=len(x)) * self.width
        clean = torch.empty_like(images)
        for level in sigmas.unique():
            chosen = sigmas.to(x.device) == level
            clean[chosen] = self._denoise(images[chosen], float(level))
        return clean / self.width + self.offset

    def _denoise(self, images: Tensor, noise_to_signal: float) -> Tensor:
        alpha = (1 + noise_to_signal**2) ** -0.5
        level = NoiseLevel(alpha, alpha * noise_to_signal, self.prediction_type)
        timestep = np.interp(np.log(noise_to_signal), self.log_levels, np.arange(len(self.log_levels)))
        noisy = alpha * images.float()
        output = predict(self.unet, noisy, torch.tensor(timestep, dtype=torch.float32, device=images.device))
        return level.denoise(output, noisy)[0].to(images.dtype)


class SGRReconstructor(deepinv.models.Reconstructor):
    """The pipeline as a reconstructor of deepinv: k-space and `MultiCoilMRI` in, unguided images out.

    Args:
        pipe: pipeline.
        seed: seed of the noise, the same in each call.
        **arguments: further arguments of the pipeline's call, such as `num_inference_steps`.
    """

    def __init__(self, pipe: SGRMRIPipeline, seed: int = 0, **arguments: Any):
        """Hold the pipeline."""
        super().__init__(device=pipe.device)
        self.pipe, self.seed, self.arguments = pipe, seed, arguments

    def forward(self, y: Float[Tensor, "batch 2 coil y x"], physics: Any, **_: Any) -> Float[Tensor, "batch 2 y x"]:
        """Reconstruct images in the unit of the k-space.

        Args:
            y: measured k-space.
            physics: `MultiCoilMRI` by which it was measured.
        """
        operator, kspace = from_physics(physics), to_kspace(y)
        maps = operator.coil_maps.expand(*kspace.shape) if operator.coil_maps.ndim == 4 else operator.coil_maps
        images, *_others = self.pipe(
            kspace,
            operator.mask.expand(len(kspace), *operator.shape),
            target="none",
            coil_maps=maps,
            generator=torch.Generator().manual_seed(self.seed),
            **self.arguments,
            return_dict=False,
        )
        return complex_to_channels(images[:, 0, 0]).to(y.device)


def to_physics(operator: SenseOperator) -> "deepinv.physics.MultiCoilMRI":
    """Return the operator of deepinv that does the same.

    Args:
        operator: forward operator with at most one batch axis.
    """
    mask = operator.mask if operator.mask.ndim == 2 else operator.mask[:, None].expand(-1, 2, -1, -1)
    return deepinv.physics.MultiCoilMRI(
        mask=mask.to(operator.coil_maps.real.dtype), coil_maps=operator.coil_maps, device=operator.device
    )


def from_physics(physics: Any) -> SenseOperator:
    """Return the forward operator that does the same as the operator of deepinv.

    Raises:
        TypeError: `physics` is no `MultiCoilMRI`.
        ValueError: it is three-dimensional, or its mask differs between real and imaginary part.
    """
    if not isinstance(physics, deepinv.physics.MultiCoilMRI):
        raise TypeError(f"`physics` must be deepinv's MultiCoilMRI, got {type(physics).__name__}.")
    if physics.three_d:
        raise ValueError("`physics` must be two-dimensional, got three_d=True. Reconstruct slice by slice.")
    mask = physics.mask
    if not torch.equal(mask, mask[:, :1].expand_as(mask)):
        raise ValueError("`physics.mask` must be the same for real and imaginary part.")
    return SenseOperator(physics.coil_maps, mask[:, 0])


def to_kspace(y: Float[Tensor, "batch 2 coil y x"]) -> Complex[Tensor, "batch coil y x"]:
    """Return the complex k-space that deepinv's stands for."""
    return channels_to_complex(y.movedim(2, 1))


def from_kspace(kspace: Complex[Tensor, "batch coil y x"]) -> Float[Tensor, "batch 2 coil y x"]:
    """Return k-space as deepinv has it."""
    return complex_to_channels(kspace).movedim(1, 2)


def to_unit_interval(
    y: Float[Tensor, "batch 2 coil y x"], physics: Any, limit: float
) -> Float[Tensor, "batch 2 coil y x"]:
    """Return the k-space of u = x / (2 c) + 1/2, for samplers that clip images to [0, 1].

    The images x = 2 c (u - 1/2) come back by the same formula.

    Args:
        y: k-space of images x in the scale of the prior.
        physics: `MultiCoilMRI` by which it was measured.
        limit: largest absolute value c of a channel of x.
    """
    half = torch.full((len(y), 2, *y.shape[-2:]), 0.5, dtype=y.dtype, device=y.device)
    return y / (2 * limit) + physics.A(half)
