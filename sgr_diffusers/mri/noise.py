"""Noise of the measurement: its standard deviation in each coil, and the residual that it leaves.

Standard deviations are those of the real part of a k-space entry, which are also those of its imaginary part.
Prewhitened k-space has the standard deviation 1.
"""

import warnings

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

_OUTER_SHARE = 0.1
_SAMPLES_PER_COIL = 8
_LEAST_SHARE = 1e-6  # of a coil's root mean square: no division by zero for data without noise


def estimate_noise_std(
    kspace: Complex[Tensor, "batch coil y x"], mask: Bool[Tensor, "batch y x"]
) -> Float[Tensor, "batch coil"]:
    """Estimate the noise of each coil from the outermost measured k-space, where there is least signal.

    Coils share the signal but not the noise: what counts is the part of a coil that is no linear combination of the
    others, which for independent noise alone is all of it. Signal that reaches the edge of k-space makes the estimate
    too large, strong correlation of the noise between coils makes it too small.

    Args:
        kspace: complex `(batch, coil, y, x)`, any unit.
        mask: `(batch, y, x)`, true where measured. Entries that are zero in all coils are left out.

    Returns:
        Standard deviation of the real part of the noise, `(batch, coil)`, float32, in the unit of `kspace`; positive
        in every slice that holds a measurement.
    """
    slices = zip(kspace.to(torch.complex128), mask, strict=True)
    return torch.stack([_noise_std_of_slice(*one) for one in slices]).float()


def _noise_std_of_slice(kspace: Complex[Tensor, "coil y x"], mask: Bool[Tensor, "y x"]) -> Float[Tensor, "coil"]:
    n_coils = len(kspace)
    axes = [(torch.arange(n, device=kspace.device) - n // 2) / (n / 2) for n in kspace.shape[1:]]
    radius = torch.hypot(axes[0][:, None], axes[1][None, :])
    is_measured = mask & (kspace != 0).any(dim=0)
    samples = kspace[:, is_measured]
    n_samples = min(max(int(_OUTER_SHARE * samples.shape[1]), _SAMPLES_PER_COIL * n_coils), samples.shape[1])
    samples = samples[:, radius[is_measured].argsort(descending=True)[:n_samples]]
    covariance = samples @ samples.mH / n_samples
    variance = covariance.diagonal().real
    floor = (_LEAST_SHARE**2 * kspace.abs().square().mean()).clamp_min(torch.finfo(torch.float32).tiny)
    if n_samples >= 2 * n_coils:  # else every coil is a combination of the others
        inverse = torch.linalg.inv(covariance + floor * torch.eye(n_coils, device=kspace.device))
        variance = n_samples / (n_samples - n_coils + 1) / inverse.diagonal().real
    return (variance.clamp_min(floor) / 2).sqrt()


def noise_residual(
    kspace: Complex[Tensor, "batch coil y x"], mask: Bool[Tensor, "batch y x"], noise_std: Float[Tensor, "batch coil"]
) -> Float[Tensor, "batch"]:
    """Relative residual ||A x - y|| / ||y|| that noise alone leaves: the expected one of the true image."""
    noise_energy = 2 * noise_std.square().sum(dim=1) * mask.sum(dim=(1, 2))
    return noise_energy.sqrt() / torch.linalg.vector_norm(kspace * mask[:, None], dim=(1, 2, 3))


def warn_of_residual(
    data_residual: Float[Tensor, "batch class target"], noise_residual: Float[Tensor, "batch"]
) -> None:
    """Warn of slices whose reconstruction misses the measurement by more than 3 times what noise explains."""
    largest = data_residual.amax(dim=(1, 2))
    suspect = [k for k, is_suspect in enumerate((largest > 3 * noise_residual).tolist()) if is_suspect]
    if suspect:
        warnings.warn(
            f"the reconstruction misses the measured `kspace` of slices {suspect} by "
            f"{', '.join(f'{float(largest[k]):.2g}' for k in suspect)} (`data_residual`), where noise alone leaves "
            f"{', '.join(f'{float(noise_residual[k]):.2g}' for k in suspect)} (`noise_residual`). Check that "
            "`coil_maps`, `mask` and `kspace` belong together before you trust these images.",
            stacklevel=3,
        )


__all__ = ["estimate_noise_std", "noise_residual", "warn_of_residual"]
