"""Noise of the measurement: its standard deviation in each coil, and the residual that it leaves.

Standard deviations are those of the real part of a k-space entry, which are also those of its imaginary part.
Prewhitened k-space has the standard deviation 1.
"""

import warnings

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

_OUTER_SHARE = 0.1
_SAMPLES_PER_ENTRY = 8
_PATCH_WIDTHS = (1, 3)
_MOST_RATIO = 2  # of the noise of a coil to that of the quietest one
_DEAD = 100  # times the least variance: below this a coil has measured nothing
_LEAST_SHARE = 1e-6  # of a coil's root mean square: no division by zero for data without noise


def estimate_noise_std(
    kspace: Complex[Tensor, "batch coil y x"], mask: Bool[Tensor, "batch y x"]
) -> Float[Tensor, "batch coil"]:
    """Estimate the noise of each coil from the outermost measured k-space, where there is least signal.

    Signal is shared by coils and neighbours in k-space, noise is not: what counts is the part of an entry that is no
    linear combination of the other coils', and, where whole patches of 3 x 3 are measured, of the patch. Signal that
    is not shared makes the estimate too large, noise that is correlated between coils makes it too small. No coil is
    taken to be more than twice as noisy as the quietest one.

    Args:
        kspace: complex k-space `(batch, coil, y, x)`, any unit.
        mask: sampling mask `(batch, y, x)`, true where measured. Entries that are zero in all coils are left out.

    Returns:
        Standard deviation of the real part of the noise, `(batch, coil)`, float32, in the unit of `kspace`; positive
        in every slice that holds a measurement.
    """
    slices = zip(kspace.to(torch.complex128), mask, strict=True)
    return torch.stack([_variance_of_slice(*each) for each in slices]).sqrt().float()


def _variance_of_slice(kspace: Complex[Tensor, "coil y x"], mask: Bool[Tensor, " y x"]) -> Float[Tensor, " coil"]:
    is_measured = mask & (kspace != 0).any(dim=0)
    floor = (_LEAST_SHARE**2 * kspace.abs().square().mean()).clamp_min(torch.finfo(torch.float32).tiny)
    candidates = []
    for width in _PATCH_WIDTHS:
        samples = _outermost_patches(kspace, is_measured, width)
        n_entries, n_samples = samples.shape
        if n_samples > 1.25 * n_entries:
            covariance = samples @ samples.mH / n_samples + floor * torch.eye(n_entries, device=kspace.device)
            precision = torch.linalg.inv(covariance).diagonal().real.reshape(len(kspace), -1).mean(dim=1)
            candidates.append(n_samples / (n_samples - n_entries + 1) / precision)
        elif width == 1:  # every coil is a combination of the others
            candidates.append(samples.abs().square().mean(dim=1))
    variance = torch.stack(candidates).amin(dim=0)
    # signal at the edge of k-space is left in some coils, while the noise of coils differs little
    quietest = variance[variance > _DEAD * floor]
    if len(quietest):
        variance = variance.clamp_max(_MOST_RATIO**2 * quietest.min())
    return variance.clamp_min(floor) / 2


def _outermost_patches(
    kspace: Complex[Tensor, "coil y x"], is_measured: Bool[Tensor, "y x"], width: int
) -> Complex[Tensor, "entry patch"]:
    """Return the fully measured patches that are farthest from the k-space centre, with the entries of all coils."""
    patches = is_measured.unfold(0, width, 1).unfold(1, width, 1).all(dim=-1).all(dim=-1).nonzero()
    centre = torch.tensor(kspace.shape[1:], device=kspace.device) / 2
    order = ((patches + width // 2) / centre - 1).norm(dim=1).argsort(descending=True)
    n_patches = max(int(_OUTER_SHARE * len(patches)), _SAMPLES_PER_ENTRY * len(kspace) * width**2)
    y, x = patches[order[:n_patches]].unbind(dim=1)
    offsets = range(width)
    return torch.stack([kspace[:, y + dy, x + dx] for dy in offsets for dx in offsets], dim=1).flatten(0, 1)


def noise_residual(
    kspace: Complex[Tensor, "batch coil y x"], mask: Bool[Tensor, "batch y x"], noise_std: Float[Tensor, "batch coil"]
) -> Float[Tensor, " batch"]:
    """Compute the residual ||A x - y|| / ||y|| that noise alone leaves: the expected residual of the true image."""
    noise_energy = 2 * noise_std.square().sum(dim=1) * mask.sum(dim=(1, 2))
    return noise_energy.sqrt() / torch.linalg.vector_norm(kspace * mask[:, None], dim=(1, 2, 3))


def warn_of_residual(
    data_residual: Float[Tensor, "batch class target"], noise_residual: Float[Tensor, " batch"]
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
