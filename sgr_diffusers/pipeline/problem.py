"""The reconstruction problem of a call: measured k-space in the scale of the prior, and its forward operator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Complex, Float, Int
from torch import Generator, Tensor

from ..mri.consistency import StepConsistency, data_residual, fully_consistent
from ..mri.operators import SenseOperator, channels_to_complex, complex_to_channels
from ..schedulers.sampler import NoiseLevel
from .inputs import Measurement, slice_scale

__all__ = ["Problem"]

Slices = slice | Int[Tensor, " image"]
_REPLICAS = 16  # of the noise: its variance in a pixel is then known within a quarter, that of an image far better


@dataclass(frozen=True)
class Problem:
    """What the images of each slice have to agree with.

    Attributes:
        operator: forward model A of the slices.
        kspace: k-space `(slice, coil, y, x)`, complex64, divided by `scale`; zero where not measured.
        noise_std: standard deviation `(slice, coil)`, float32, of the real part of the noise in `kspace`.
        scale: scale `(slice,)`, float32: unit of the k-space given over that of the prior.
        zero_filled: zero-filled image A^H y `(slice, y, x)`, complex64, in the unit of the k-space given.
        step_consistency: data consistency within a step.
        denoising_variance: error of the prior at each noise level, as `NoiseLevel.open_variance` takes it.
    """

    operator: SenseOperator
    kspace: Complex[Tensor, "slice coil y x"]
    noise_std: Float[Tensor, "slice coil"]
    scale: Float[Tensor, "slice"]
    zero_filled: Complex[Tensor, "slice y x"]
    step_consistency: StepConsistency
    denoising_variance: Mapping[str, Sequence[float]] | None = None

    @classmethod
    def from_measurement(
        cls,
        measurement: Measurement,
        coil_maps: Complex[Tensor, "slice coil y x"],
        consistency: str,
        scale_quantile: float,
        scale_correction: float,
        denoising_variance: Mapping[str, Sequence[float]] | None = None,
    ) -> "Problem":
        """Divide the measurement by its scale and set up the forward operator.

        Args:
            measurement: measured k-space, sampling mask and noise of all slices.
            coil_maps: given or estimated coil maps.
            consistency: method of data consistency within a step, one of `mri.consistency.CONSISTENCY`.
            scale_quantile: quantile of the magnitude that a slice is divided by, see `slice_scale`.
            scale_correction: factor that this quantile is multiplied by.
            denoising_variance: error of the prior at each noise level, if it was measured.
        """
        operator = SenseOperator(coil_maps, measurement.mask)
        zero_filled = operator.adjoint(measurement.kspace)
        scale = slice_scale(zero_filled, scale_quantile, scale_correction)
        kspace = measurement.kspace / scale[:, None, None, None]
        noise_std = measurement.known_or_estimated_noise() / scale[:, None]
        step_consistency = StepConsistency(operator, kspace, noise_std, consistency)
        return cls(operator, kspace, noise_std, scale, zero_filled, step_consistency, denoising_variance)

    def make_consistent(
        self, x0: Float[Tensor, "image 2 y x"], slices: Slices, level: NoiseLevel, n_iterations: int
    ) -> Float[Tensor, "image 2 y x"]:
        """Pull predicted clean images to the measurement of their slices (paper Eq. 5).

        Args:
            x0: predicted clean images.
            slices: index of the slice of each image, or of the one that serves all.
            level: noise level of the step.
            n_iterations: most conjugate gradient iterations.
        """
        image = channels_to_complex(x0)
        open_variance = level.open_variance(self.denoising_variance)
        consistent = self.step_consistency(image, slices, open_variance, n_iterations)
        return complex_to_channels(consistent)

    def finish(
        self, x0: Float[Tensor, "image 2 y x"], slices: Slices, method: str
    ) -> tuple[Complex[Tensor, "image y x"], Float[Tensor, " image"]]:
        """Make clean images agree with the measurement in full.

        Args:
            x0: clean images.
            slices: index of the slice of each image, or of the one that serves all.
            method: one of `mri.consistency.FINAL_CONSISTENCY`.

        Returns:
            Complex images in the scale of the prior, and their data residual.
        """
        operator, kspace = self.operator[slices], self.kspace[slices]
        image = fully_consistent(operator, channels_to_complex(x0), kspace, method)
        return image, data_residual(operator, image, kspace)

    def finishing_noise(self, method: str, generators: Sequence[Generator]) -> Float[Tensor, "slice y x"]:
        """Measure how much noise `finish` carries from the measurement into images.

        By pseudo replicas (Robson et al., Magnetic Resonance in Medicine 60, 2008): noise is drawn in place of the
        measurement, and taken through the last step, which is linear.

        Args:
            method: one of `mri.consistency.FINAL_CONSISTENCY`.
            generators: generator of the noise of each slice.

        Returns:
            Variance of each complex pixel, in the scale of the prior squared.
        """
        variances = []
        for k, generator in enumerate(generators):
            operator, deviation = self.operator[k : k + 1], 2**0.5 * self.noise_std[k : k + 1, :, None, None]
            images = []
            for _ in range(_REPLICAS):  # one at a time: each is as large as the measurement of all coils
                kspace = self.kspace[k : k + 1]
                noise = deviation * randn_tensor(kspace.shape, generator, kspace.device, kspace.dtype)
                images.append(fully_consistent(operator, torch.zeros_like(noise[:, 0]), noise, method))
            variances.append(torch.cat(images).abs().square().mean(dim=0))
        return torch.stack(variances)
