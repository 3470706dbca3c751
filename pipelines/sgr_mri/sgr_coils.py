# Made from the Python package sgr_diffusers (Apache-2.0) by `sgr publish bundle`.
# To change it, change the package.
"""Coil sensitivity maps: undersampled multi-coil k-space with a calibration region enters, complex64 maps leave."""

import numpy as np
import torch
from .sgr_shapes import Complex, Shaped
from torch import Tensor

from .sgr_masks import calibration_region

_KERNEL_WIDTH = 6
_LEAST_WIDTH = _KERNEL_WIDTH + 2


def estimate_coil_maps(
    kspace: Complex[Tensor | np.ndarray, "*batch coil y x"],
    mask: Shaped[Tensor | np.ndarray, "*mask_batch mask_y mask_x"],
    calibration_width: int | None = None,
    eigenvalue_threshold: float = 0.95,
    singular_value_threshold: float = 0.02,
) -> Complex[Tensor, "*batch coil y x"]:
    """ESPIRiT coil maps from the fully sampled centre of k-space (Uecker et al., MRM 71:990-1001, 2014).

    The calibration is sigpy's, with the phase taken from the coil with the strongest signal.

    Args:
        kspace: Complex `(coil, y, x)` or `(batch, coil, y, x)`, in any unit, centred as `fft2c` is.
        mask: `(y, x)`, or `(batch, y, x)`; bool or 0/1, true where measured.
        calibration_width: Side of the square calibration region. `None`: as large as the mask allows, 24 at most.
        eigenvalue_threshold: Pixels whose largest ESPIRiT eigenvalue (0 to 1) is not above it are taken as outside
            the body. Lower it for noisy calibration data.
        singular_value_threshold: Singular values of the calibration matrix below this share of the largest are noise.

    Returns:
        complex64 maps in the shape and on the device of `kspace`. Their squares sum to 1 over the coils inside the
        body and are 0 outside. The coil with the strongest signal is real and positive. A single coil gets ones:
        there is nothing to estimate.

    Raises:
        TypeError: `kspace` is not complex.
        ValueError: the shapes do not fit, the mask has no fully sampled centre of at least 8 x 8 (or smaller than
            `calibration_width`), k-space is zero or not finite there, or no pixel passes the threshold.
        ImportError: sigpy is not there.
    """
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
        settings = calibration_width, eigenvalue_threshold, singular_value_threshold
        return torch.stack([estimate_coil_maps(*sample, *settings) for sample in zip(kspace, masks, strict=True)])
    if kspace.shape[0] == 1:
        return torch.ones_like(kspace, dtype=torch.complex64)

    n_y, n_x = kspace.shape[-2:]
    width = _check_width(calibration_region(mask.cpu().numpy()), calibration_width)
    if min(n_y, n_x) < 2 * _KERNEL_WIDTH:
        raise ValueError(
            f"`kspace` must be at least {2 * _KERNEL_WIDTH} in y and x, got {(n_y, n_x)}. Pass `coil_maps`."
        )
    first_y, first_x = n_y // 2 - width // 2, n_x // 2 - width // 2
    centre = kspace.detach()[:, first_y : first_y + width, first_x : first_x + width].to(torch.complex128)
    energy = centre.abs().square().sum(dim=(1, 2))
    if not bool(energy.isfinite().all()):
        raise ValueError("`kspace` has values in its calibration region that are not finite.")
    if not bool(energy.any()):
        raise ValueError("`kspace` is zero in its calibration region: there is nothing to estimate coil maps from.")

    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError as error:  # where a Hub repository is used without this package
        raise ImportError("estimating `coil_maps` needs sigpy: pip install sigpy, or pass the maps.") from error

    calibration = EspiritCalib(
        (kspace.detach() / energy.sum().sqrt()).to(torch.complex64).cpu().numpy(),
        calib_width=width,
        thresh=singular_value_threshold,
        kernel_width=_KERNEL_WIDTH,
        crop=eigenvalue_threshold,
        show_pbar=False,
    )
    maps = torch.from_numpy(calibration.run()).to(kspace.device, torch.complex64)
    maps = maps * torch.sgn(maps[energy.argmax()]).conj()
    inside = maps.abs().sum(dim=0) > 0
    if not bool(inside.any()):
        raise ValueError(
            f"no pixel has an ESPIRiT eigenvalue above `eigenvalue_threshold` {eigenvalue_threshold}: the calibration "
            "data of `kspace` is too noisy or inconsistent. Lower the threshold or pass `coil_maps`."
        )
    return maps.contiguous()


def _check_width(region: tuple[int, int], wanted: int | None) -> int:
    if min(region) < _LEAST_WIDTH:
        raise ValueError(
            f"`mask` has a fully sampled region of {region} about the k-space centre, but coil maps need at least "
            f"{_LEAST_WIDTH} x {_LEAST_WIDTH}. Pass `coil_maps`, estimated from a calibration scan."
        )
    if wanted is None:
        return min(*region, 24)
    if not _LEAST_WIDTH <= wanted <= min(region):
        raise ValueError(
            f"`calibration_width` must be from {_LEAST_WIDTH} to {min(region)}, the fully sampled region of `mask`, "
            f"got {wanted}."
        )
    return wanted


__all__ = ["estimate_coil_maps"]
