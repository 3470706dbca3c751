"""Turns the raw arguments of a pipeline call into checked tensors, and refuses what does not fit with the way out.

Nothing is repaired: every check names the argument, what was expected and what came.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from ..mri.coils import estimate_coil_maps
from ..mri.noise import estimate_noise_std
from .settings import CallSettings

__all__ = [
    "OUTPUT_TYPES",
    "Measurement",
    "Slices",
    "check_callback",
    "check_measurement",
    "check_sampling_inputs",
    "latents_of_callback",
    "slice_scale",
]

OUTPUT_TYPES = ("pt", "np")

ArrayLike = Tensor | np.ndarray
Slices = ArrayLike | Sequence[ArrayLike]

# Magnitudes whose squares, and those of their noise, are within the range of single precision.
_KSPACE_RANGE = (1e-12, 1e12)
_MAPS_RANGE = (1e-3, 1e3)
# Type codes of numpy for which torch has no type, or hardly any operation.
_TORCH_TYPES = {"g": "d", "G": "D", "H": "q", "I": "q", "L": "q", "Q": "q"}


@dataclass(frozen=True)
class Measurement:
    """A batch of undersampled slices, in the unit of the scanner.

    Attributes:
        kspace: k-space `(batch, coil, y, x)`, complex64; zero where `mask` is false.
        mask: sampling mask `(batch, y, x)`, bool; true where measured.
        coil_maps: coil maps `(batch, coil, y, x)`, complex64, or `None` if they are to be estimated.
        noise_std: standard deviation `(batch, coil)`, float32, of the real part of the noise, or
            `None` if it is to be estimated.
    """

    kspace: Complex[Tensor, "batch coil y x"]
    mask: Bool[Tensor, "batch y x"]
    coil_maps: Complex[Tensor, "batch coil y x"] | None
    noise_std: Float[Tensor, "batch coil"] | None = None

    def known_or_estimated_maps(self, settings: CallSettings) -> Complex[Tensor, "batch coil y x"]:
        """Return the coil maps given, or estimate them by `estimate_coil_maps` with the settings of a call.

        Raises:
            ValueError: coil maps are given, and so is a setting of their estimation.
        """
        if self.coil_maps is None:
            how = settings.calibration_width, settings.kernel_width, settings.crop
            return estimate_coil_maps(self.kspace, self.mask, *how)
        if settings.sets_maps:
            raise ValueError(
                "`calibration_width`, `kernel_width` and `crop` say how coil maps are estimated, but `coil_maps` is "
                "given. Leave out one or the other."
            )
        return self.coil_maps

    def known_or_estimated_noise(self) -> Float[Tensor, "batch coil"]:
        """Return the noise given, or estimate it from the outermost k-space of each slice."""
        return estimate_noise_std(self.kspace, self.mask) if self.noise_std is None else self.noise_std


def check_measurement(
    kspace: Slices,
    mask: Slices,
    coil_maps: Slices | None,
    device: torch.device,
    noise_std: float | ArrayLike | None = None,
) -> Measurement:
    """Check k-space, mask and coil maps, and give all of them their batch and coil axes.

    Each of them may be a list with one array for each slice.

    Args:
        kspace: complex k-space `(batch, coil, y, x)`, `(coil, y, x)` or `(y, x)`.
        mask: sampling mask, bool or 0/1, `(y, x)` or `(batch, y, x)`.
        coil_maps: complex coil maps `(batch, coil, y, x)`, or `(coil, y, x)` for all slices, or `None`.
        device: device on which the result is put.
        noise_std: standard deviation of the real part of the noise in the unit of `kspace`: one number, `(coil,)` or
            `(batch, coil)`; `None` to estimate it.

    Raises:
        TypeError: k-space or maps are not complex, or an argument is neither tensor nor array.
        ValueError: a shape does not fit, a value is not finite or too large or small to compute with, k-space or mask
            is empty, the mask has other values than 0 and 1, or k-space is not zero where the mask says unmeasured.
    """
    kspace = _check_complex(kspace, "kspace", "(batch, coil, y, x), (coil, y, x) or (y, x)", (2, 3, 4)).to(device)
    kspace = kspace.reshape((1,) * (4 - kspace.ndim) + tuple(kspace.shape))
    if 0 in kspace.shape:
        raise ValueError(f"`kspace` must not be empty, got shape {tuple(kspace.shape)}.")
    empty = [k for k, is_empty in enumerate((kspace == 0).flatten(1).all(dim=1).tolist()) if is_empty]
    if empty:
        raise ValueError(
            f"`kspace` must hold a measurement in every slice, got only zeros in slices {empty} of {len(kspace)}. "
            "Leave these slices out."
        )
    _check_range("kspace", kspace.abs().amax(dim=(1, 2, 3)), _KSPACE_RANGE, "the largest magnitude")
    mask = _check_mask(mask, kspace)
    _check_unmeasured(kspace, mask)
    n_coils = kspace.shape[1]
    if coil_maps is not None:
        coil_maps = _check_coil_maps(coil_maps, kspace)
    elif n_coils == 1:
        coil_maps = torch.ones_like(kspace)
    noise_std = None if noise_std is None else _check_noise_std(noise_std, kspace)
    return Measurement(kspace, mask, coil_maps, noise_std)


def _as_tensor(array: Slices, name: str) -> Tensor:
    """Make a dense tensor of an array, or of a list with one array for each slice."""
    wanted = f"`{name}` must be a dense torch tensor or numpy array of numbers, or a list of them, one for each slice"
    if isinstance(array, list | tuple):
        if not array:
            raise ValueError(f"`{name}` must not be an empty list.")
        other = [type(entry).__name__ for entry in array if not isinstance(entry, Tensor | np.ndarray)]
        if other:
            raise TypeError(f"{wanted}, got a list with {other[0]}.")
        slices = [_as_tensor(entry, name) for entry in array]
        shapes = [tuple(entry.shape) for entry in slices]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"`{name}` must be a list of slices of one shape, got {list(dict.fromkeys(shapes))}. Reconstruct "
                "slices of different shapes in calls of their own."
            )
        return torch.stack([entry.to(slices[0].device) for entry in slices])
    if isinstance(array, np.ndarray) and array.dtype.kind in "biufc":
        dtype = _TORCH_TYPES.get(array.dtype.char, array.dtype.newbyteorder("="))
        array = torch.tensor(np.ascontiguousarray(array, dtype=dtype))
    if not isinstance(array, Tensor):
        kind = f" of {array.dtype}" if isinstance(array, np.ndarray) else ""
        raise TypeError(f"{wanted}, got {type(array).__name__}{kind}.")
    if array.layout != torch.strided or array.is_meta or array.is_quantized or array.is_nested:
        raise TypeError(f"{wanted}, got a tensor that is sparse, nested, quantized or without values.")
    return array.detach()


def _check_range(name: str, values: Float[Tensor, " batch"], limits: tuple[float, float], quantity: str) -> None:
    least, most = limits
    outside = [k for k, value in enumerate(values.tolist()) if not least <= value <= most]
    if outside:
        raise ValueError(
            f"`{name}` must have {quantity} of each slice between {least:g} and {most:g}, got "
            f"{values[outside[0]]:.3g} in slice {outside[0]}: single precision does not hold its square. Multiply "
            f"`{name}` by a power of ten."
        )


def _check_complex(array: Slices, name: str, shapes: str, n_axes: tuple[int, ...]) -> Tensor:
    array = _as_tensor(array, name)
    if not array.is_complex():
        raise TypeError(
            f"`{name}` must be complex, got {array.dtype} of shape {tuple(array.shape)}. Real and imaginary parts in "
            "a last axis of length 2 are joined by `torch.view_as_complex`."
        )
    if array.ndim not in n_axes:
        raise ValueError(f"`{name}` must be {shapes}, got shape {tuple(array.shape)}.")
    # The data type is changed before values are checked: what overflows in complex64 becomes infinite.
    array = array.to(torch.complex64)
    n_bad = int((~torch.isfinite(torch.view_as_real(array.resolve_conj())).all(dim=-1)).sum())
    if n_bad:
        raise ValueError(
            f"`{name}` must be finite, got {n_bad} entries of {array.numel()} with NaN or infinity (in complex64). "
            "Check the file or the preprocessing they come from."
        )
    return array.resolve_conj()


def _check_mask(mask: Slices, kspace: Complex[Tensor, "batch coil y x"]) -> Bool[Tensor, "batch y x"]:
    mask = _as_tensor(mask, "mask")
    batch, _, *size = kspace.shape
    if tuple(mask.shape) not in {tuple(size), (batch, *size)}:
        raise ValueError(
            f"`mask` must have the shape (y, x) = {tuple(size)} or (batch, y, x) = {(batch, *size)} of `kspace`, got "
            f"{tuple(mask.shape)}. A smaller stored mask is centre-padded by `sgr_diffusers.mri.masks.pad_mask`."
        )
    mask = mask.to(kspace.device)
    is_other = ~((mask == 0) | (mask == 1))
    if is_other.any():
        raise ValueError(
            f"`mask` must be bool or hold only 0 and 1, got {int(is_other.sum())} other values, such as "
            f"{mask[is_other][0].item()}. Pass `mask != 0` if every other value means measured."
        )
    mask = mask.bool().expand(batch, *size)
    empty = [k for k, is_used in enumerate(mask.flatten(1).any(dim=1).tolist()) if not is_used]
    if empty:
        raise ValueError(
            f"`mask` must be true (measured) somewhere in every slice, got only zeros in slices {empty}. Leave them "
            "out."
        )
    return mask


def _check_unmeasured(kspace: Complex[Tensor, "batch coil y x"], mask: Bool[Tensor, "batch y x"]) -> None:
    unmeasured = kspace * ~mask[:, None]
    n_entries = int(torch.count_nonzero(unmeasured))
    if n_entries:
        energy, total = (float(torch.linalg.vector_norm(part)) ** 2 for part in (unmeasured, kspace))
        share = n_entries / (int((~mask).sum()) * kspace.shape[1])
        raise ValueError(
            f"`kspace` must be zero where `mask` says unmeasured, got {n_entries} non-zero entries there "
            f"({share:.1%} of the unmeasured ones) with {energy / total:.2%} of the energy. Undersample it by "
            "`kspace * mask`, or pass the mask that belongs to this k-space."
        )


def _check_coil_maps(
    coil_maps: Slices, kspace: Complex[Tensor, "batch coil y x"]
) -> Complex[Tensor, "batch coil y x"]:
    coil_maps = _check_complex(coil_maps, "coil_maps", "(batch, coil, y, x) or (coil, y, x)", (3, 4))
    if tuple(coil_maps.shape) not in {tuple(kspace.shape), tuple(kspace.shape[1:])}:
        raise ValueError(
            "`coil_maps` must have the coils and the size of `kspace`, "
            f"{tuple(kspace.shape)} or {tuple(kspace.shape[1:])}, got {tuple(coil_maps.shape)}. Leave them out to "
            "have them estimated from the calibration region."
        )
    coil_maps = coil_maps.to(kspace.device).expand(kspace.shape)
    empty = [k for k, is_used in enumerate((coil_maps != 0).flatten(1).any(dim=1).tolist()) if not is_used]
    if empty:
        raise ValueError(f"`coil_maps` must not be zero everywhere, but they are in slices {empty}.")
    largest = torch.linalg.vector_norm(coil_maps.to(torch.complex128), dim=1).amax(dim=(1, 2))
    _check_range("coil_maps", largest.float(), _MAPS_RANGE, "the largest root sum of squares of its coils, usually 1,")
    return coil_maps


def _check_noise_std(
    noise_std: float | ArrayLike, kspace: Complex[Tensor, "batch coil y x"]
) -> Float[Tensor, "batch coil"]:
    try:
        values = torch.as_tensor(noise_std, dtype=torch.float32, device=kspace.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`noise_std` must be a number or an array of numbers, got {noise_std!r}.") from error
    shape = tuple(kspace.shape[:2])
    if tuple(values.shape) not in {(), shape[1:], shape}:
        raise ValueError(
            f"`noise_std` must be one number, or have the shape (coil,) = {shape[1:]} or (batch, coil) = {shape} of "
            f"`kspace`, got {tuple(values.shape)}."
        )
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(
            f"`noise_std` must be positive and finite, got {noise_std}. Leave it out to have it estimated from the "
            "outermost k-space."
        )
    return values.expand(shape)


def check_sampling_inputs(
    slices: tuple[int, ...],
    settings: CallSettings,
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
) -> None:
    """Refuse generators and latents that do not fit the slices.

    Args:
        slices: shape of the k-space, `(batch, coil, y, x)`.
        settings: settings of the call.
        generator: generator of all noise, or a list of one for each slice; `None` for a fresh seed.
        latents: noise to start with, `(batch, 2, y, x)`; `None` to draw it.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    n_slices, _, *size = slices
    generators = generator if isinstance(generator, list) else [generator] * (generator is not None)
    other = [type(entry).__name__ for entry in generators if not isinstance(entry, torch.Generator)]
    if other:
        raise TypeError(
            f"`generator` must be a torch.Generator, or a list of one for each slice, got {other[0]}. A seed becomes "
            "one by `torch.Generator().manual_seed(seed)`."
        )
    if isinstance(generator, list) and len(generator) != n_slices:
        raise ValueError(
            f"`generator` must be one generator, or a list of one for each of {n_slices} slices, got {len(generator)}."
        )
    if latents is None:
        return
    shape = (n_slices, 2, *size)
    if not isinstance(latents, Tensor) or latents.layout != torch.strided or latents.is_meta:
        raise TypeError(
            f"`latents` must be a dense torch tensor of shape (batch, 2, y, x) = {shape}, got "
            f"{type(latents).__name__}."
        )
    if not latents.is_floating_point() or tuple(latents.shape) != shape or not torch.isfinite(latents).all():
        raise ValueError(
            f"`latents` must be real, finite and (batch, 2, y, x) = {shape}, got {latents.dtype} of shape "
            f"{tuple(latents.shape)}{'' if torch.isfinite(latents).all() else ' with NaN or infinity'}. Draw them "
            "from a standard normal distribution."
        )
    if settings.num_samples > 1 and settings.eta == 0:
        raise ValueError(
            f"`latents` with `eta=0` make all of num_samples={settings.num_samples} equal. Leave out `latents` or "
            "raise `eta`."
        )


def check_callback(callback: Any, names: Any, available: Sequence[str]) -> None:
    """Refuse a callback that cannot be called, or that asks for tensors that there are not.

    Args:
        callback: `callback_on_step_end` of a call.
        names: `callback_on_step_end_tensor_inputs` of a call, names of tensors.
        available: names of the tensors that there are.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if callback is not None and not callable(callback):
        raise TypeError(
            "`callback_on_step_end` must be a function of (pipe, step, timestep, tensors), got "
            f"{type(callback).__name__}."
        )
    is_list = names is None or isinstance(names, list | tuple)
    unknown = [name for name in names or () if name not in available] if is_list else names
    if not is_list or unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be a list of names among {list(available)}, got {unknown!r}."
        )


def latents_of_callback(returned: Any, latents: Float[Tensor, "image 2 y x"]) -> Float[Tensor, "image 2 y x"]:
    """Return the latents that a callback has returned, or those it was given where it has returned none.

    Raises:
        TypeError: the callback has returned something other than `None` or a dictionary.
        ValueError: its latents have another shape or are not finite.
    """
    if returned is not None and not isinstance(returned, dict):
        raise TypeError(
            f"`callback_on_step_end` must return None or a dictionary of tensors, got {type(returned).__name__}."
        )
    changed = (returned or {}).get("latents", latents)
    if changed is latents:
        return latents
    if not isinstance(changed, Tensor) or changed.shape != latents.shape or not changed.isfinite().all():
        shape = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(
            f"`callback_on_step_end` must return finite `latents` of shape {tuple(latents.shape)}, got {shape}."
        )
    return changed


def slice_scale(
    image: Complex[Tensor, "batch y x"], quantile: float = 0.99, correction: float = 1.0
) -> Float[Tensor, " batch"]:
    """Return the scale that each slice is divided by: `correction` times the given quantile of its magnitude.

    The prior knows images divided by the 0.99 quantile of their fully sampled magnitude (paper Sec. 3.3). Here `image`
    is the zero-filled one A^H y; `correction` is the ratio of the two quantiles to assume.

    Raises:
        ValueError: the quantile of a slice is zero.
    """
    scale = torch.quantile(image.abs().flatten(1), quantile, dim=1) * correction
    empty = [k for k, value in enumerate(scale.tolist()) if not value > 0]
    if empty:
        raise ValueError(
            f"`kspace` must give an image with a positive {quantile} quantile of its magnitude; it is zero in slices "
            f"{empty}. Check that `coil_maps` and `kspace` belong together."
        )
    return scale
