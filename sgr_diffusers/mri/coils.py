"""Coil sensitivity maps, estimated from the fully sampled rectangle about the k-space centre (ESPIRiT)."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Shaped
from torch import Tensor

from .completion import complete_kspace
from .masks import calibration_region
from .noise import estimate_noise_std
from .operators import ifft2c

_LEAST_WIDTH = 8
_LARGEST_WIDTH = 24
_KERNELS = ((16, 6), (12, 4), (10, 3), (0, 2))  # least side of the calibration region, width of the kernel
_COMPLETED_WIDTH = 14  # of a calibration region that is completed
_COMPLETED_BELOW = 12
_LEAST_MEASURED = 0.25  # of the entries that are added
_CROP = 0.8
_MAX_ERASED = 0.01
_LEAST_SINGULAR_VALUE = 0.002
_BLOCK = 4096  # pixels


def estimate_coil_maps(
    kspace: Complex[Tensor | np.ndarray, "*batch coil y x"],
    mask: Shaped[Tensor | np.ndarray, "*mask_batch mask_y mask_x"],
    calibration_width: int | None = None,
    kernel_width: int | None = None,
    crop: float | None = None,
) -> Complex[Tensor, "*batch coil y x"]:
    """Estimate ESPIRiT coil maps from the fully sampled centre of k-space (Uecker et al., MRM 71:990-1001, 2014).

    The calibration region is the largest fully sampled rectangle that holds the k-space centre, square and centred or
    not. One that is narrower than 12 is completed to 14 x 14 where a quarter of the rest is measured. Singular vectors
    of the calibration matrix count the less, the more of them noise alone could have made; so even a small region
    gives maps.

    Args:
        kspace: complex k-space `(coil, y, x)` or `(batch, coil, y, x)`, in any unit, centred as `fft2c` is.
        mask: sampling mask `(y, x)`, or `(batch, y, x)`; bool or 0/1, true where measured.
        calibration_width: largest side of the calibration region; `None` for 24.
        kernel_width: side of the ESPIRiT kernel in k-space; `None` for 6, or for 4, 3 or 2 where the shorter side of
            the calibration region, as completed, has less than 16, 12 or 10 samples.
        crop: the maps are zero where the largest ESPIRiT eigenvalue (0 to 1) is below. `None` for 0.8, or for 0 where
            that would erase pixels with more than 1 % of the energy of the zero-filled image.

    Returns:
        complex64 maps in the shape and on the device of `kspace`. Their squares sum to 1 over the coils where they
        are not zero. The coil with the strongest signal is real and positive. A single coil gets ones: there is
        nothing to estimate.

    Raises:
        TypeError: `kspace` is not complex.
        ValueError: the shapes do not fit, the mask has no fully sampled centre of at least 8 x 8, k-space is zero or
            not finite there, a setting is out of range, or `crop` would erase pixels with signal.
    """
    if crop is not None and not (isinstance(crop, Real) and 0 <= crop < 1):
        raise ValueError(f"`crop` must be from 0 (maps everywhere) to below 1, got {crop!r}.")
    for name, value in (("kspace", kspace), ("mask", mask)):
        if not isinstance(value, Tensor | np.ndarray):
            raise TypeError(f"`{name}` must be a torch tensor or numpy array, got {type(value).__name__}.")
    kspace, mask = torch.as_tensor(kspace), torch.as_tensor(mask)
    if not kspace.is_complex():
        raise TypeError(f"`kspace` must be complex, got {kspace.dtype}.")
    if kspace.ndim not in (3, 4) or mask.shape not in (kspace.shape[-2:], kspace.shape[:-3] + kspace.shape[-2:]):
        raise ValueError(
            "`kspace` must be (coil, y, x) or (batch, coil, y, x) and `mask` (y, x) or (batch, y, x), got shapes "
            f"{tuple(kspace.shape)} and {tuple(mask.shape)}."
        )
    if kspace.ndim == 4:
        masks = mask.expand(kspace.shape[0], *mask.shape[-2:])
        pairs = zip(kspace, masks, strict=True)
        return torch.stack([estimate_coil_maps(*pair, calibration_width, kernel_width, crop) for pair in pairs])
    if kspace.shape[0] == 1:
        return torch.ones_like(kspace, dtype=torch.complex64)

    calibration = _calibration(kspace.detach(), mask, calibration_width)
    width = _kernel_width(calibration, kernel_width)
    noise_std = estimate_noise_std(kspace.detach()[None], mask.to(kspace.device, torch.bool)[None])
    kernels = _signal_kernels(calibration, width, float(noise_std.square().mean().sqrt()))
    maps, eigenvalues = _largest_eigenvectors(kernels, kspace.shape[-2:])
    strongest = calibration.abs().square().sum(dim=(1, 2)).argmax()
    maps = maps * torch.sgn(maps[strongest]).conj()
    return (maps * _kept(eigenvalues, kspace.detach(), crop)).to(torch.complex64).contiguous()


def _calibration(
    kspace: Complex[Tensor, "coil y x"], mask: Shaped[Tensor, "y x"], width: int | None
) -> Complex[Tensor, "coil rows columns"]:
    """Return the calibration region in complex128."""
    largest = _LARGEST_WIDTH if width is None else width
    if not isinstance(largest, Integral) or largest < _LEAST_WIDTH:
        raise ValueError(f"`calibration_width` must be a whole number of at least {_LEAST_WIDTH}, got {width!r}.")
    y, x = (
        _centred(side, n, largest) for side, n in zip(calibration_region(mask.cpu().numpy()), mask.shape, strict=True)
    )
    region = kspace[:, y, x].to(torch.complex128)
    if min(region.shape[1:]) < _LEAST_WIDTH:
        raise ValueError(
            f"`mask` has a fully sampled region of {tuple(region.shape[1:])} about the k-space centre, but coil maps "
            f"need at least {_LEAST_WIDTH} x {_LEAST_WIDTH}. Give coil maps that were estimated from a "
            "calibration scan: `coil_maps` of a call, or stored in the file."
        )
    energy = region.abs().square().sum()
    if not bool(energy.isfinite()):
        raise ValueError("`kspace` has values in its calibration region that are not finite.")
    if not bool(energy > 0):
        raise ValueError("`kspace` is zero in its calibration region: there is nothing to estimate coil maps from.")
    is_small = min(region.shape[1:]) < _COMPLETED_BELOW and largest >= _COMPLETED_WIDTH
    return _completed(kspace, mask.to(kspace.device, torch.bool), (y, x)) if is_small else region


def _completed(
    kspace: Complex[Tensor, "coil y x"], mask: Bool[Tensor, "y x"], region: tuple[slice, slice]
) -> Complex[Tensor, "coil rows columns"]:
    """Enlarge the calibration region where enough is measured about it."""
    window = tuple(_centred(slice(0, n), n, _COMPLETED_WIDTH) for n in mask.shape)
    in_window = torch.zeros_like(mask)
    in_window[window] = True
    is_added = in_window.clone()
    is_added[region] = False
    if not in_window[region].all() or not is_added.any() or mask[is_added].float().mean() < _LEAST_MEASURED:
        return kspace[:, *region].to(torch.complex128)
    return complete_kspace(kspace[:, *window].to(torch.complex128), mask[window])


def _centred(side: slice, n: int, largest: int) -> slice:
    """Return the part of a side, at most `largest` long, whose middle is nearest to the k-space centre `n // 2`."""
    length = min(side.stop - side.start, largest)
    start = min(max(n // 2 - length // 2, side.start), side.stop - length)
    return slice(start, start + length)


def _kernel_width(calibration: Complex[Tensor, "coil rows columns"], wanted: int | None) -> int:
    side = min(calibration.shape[1:])
    if wanted is None:
        return next(width for least, width in _KERNELS if side >= least)
    if not isinstance(wanted, Integral) or not 2 <= wanted <= side // 2:
        raise ValueError(
            f"`kernel_width` must be a whole number from 2 to {side // 2}, half the shorter side of the calibration "
            f"region, got {wanted!r}."
        )
    return wanted


def _signal_kernels(
    calibration: Complex[Tensor, "coil rows columns"], width: int, noise_std: float
) -> Complex[Tensor, "kernel coil width width"]:
    """Compute right singular vectors of the calibration matrix, weighted by the share of signal in them."""
    patches = calibration.unfold(1, width, 1).unfold(2, width, 1)  # coil, rows, columns, width, width
    matrix = patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    _, singular_values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    # Largest singular value of a matrix of this size with independent noise (Marchenko and Pastur).
    of_noise = noise_std * 2**0.5 * sum(n**0.5 for n in matrix.shape)
    uncertain = max(of_noise, _LEAST_SINGULAR_VALUE * float(singular_values[0]))
    weights = singular_values / (singular_values.square() + uncertain**2).sqrt()
    return (weights[:, None] * vectors).unflatten(1, (-1, width, width))


def _largest_eigenvectors(
    kernels: Complex[Tensor, "kernel coil width width"], shape: Sequence[int]
) -> tuple[Complex[Tensor, "coil y x"], Float[Tensor, "y x"]]:
    """Compute the unit eigenvector of the largest eigenvalue of the coil matrix of the kernels in each pixel."""
    width = kernels.shape[-1]
    # The matrix of a pixel is a Fourier series whose coefficients are the correlations of the kernels.
    size = 2 * width - 1
    spectra = torch.fft.fft2(kernels, s=(size, size))
    correlations = torch.fft.ifft2(torch.einsum("kayx,kbyx->abyx", spectra, spectra.conj()))
    shifts = torch.fft.fftfreq(size, 1 / size, device=kernels.device)
    waves = [
        torch.exp(2j * torch.pi * torch.outer((torch.arange(n, device=kernels.device) - n // 2) / n, shifts))
        for n in shape
    ]
    maps, eigenvalues = [], []
    for row in waves[0].split(max(_BLOCK // shape[1], 1)):
        matrices = torch.einsum("yp,xq,abpq->yxab", row.to(correlations), waves[1].to(correlations), correlations)
        values, vectors = torch.linalg.eigh(matrices / width**2)
        maps.append(vectors[..., -1])
        eigenvalues.append(values[..., -1])
    return torch.cat(maps).movedim(-1, 0), torch.cat(eigenvalues)


def _kept(
    eigenvalues: Float[Tensor, "y x"], kspace: Complex[Tensor, "coil y x"], crop: float | None
) -> Shaped[Tensor, "y x"]:
    """Return the pixels in which the maps are not set to zero."""
    energy = ifft2c(kspace.to(torch.complex64)).abs().square().sum(dim=0)
    is_kept = eigenvalues >= (_CROP if crop is None else crop)
    erased = float((energy * ~is_kept).sum() / energy.sum())
    if erased <= _MAX_ERASED:
        return is_kept
    if crop is None:
        return torch.ones_like(is_kept)
    raise ValueError(
        f"`crop` {crop} would set the coil maps to zero in pixels with {erased:.0%} of the energy of the zero-filled "
        f"image, of which at most {_MAX_ERASED:.0%} may be lost. Lower it, or leave it out."
    )


__all__ = ["estimate_coil_maps"]
