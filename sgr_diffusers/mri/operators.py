"""The measurement model of Cartesian multi-coil MRI: maps complex images to the k-space of the coils, and back.

A x = M F (S x): coil maps S, centred orthonormal 2-D Fourier transform F, sampling mask M. Images are complex
`(*batch, y, x)`, k-space is complex `(*batch, coil, y, x)`. Everything runs in complex64, or in complex128 if the coil
maps come as complex128, whatever the precision of the networks around it.
"""

import itertools
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Complex, Float, Inexact, Shaped
from torch import Tensor

_AXES = (-2, -1)
_BLOCK_BYTES = 2_000_000  # fits the second level cache


def fft2c(image: Complex[Tensor, "*batch y x"]) -> Complex[Tensor, "*batch y x"]:
    """Compute the centred orthonormal 2-D Fourier transform over the last two axes.

    The origin of both domains is the pixel `n // 2`, for odd and even sizes alike.
    """
    shifted = torch.fft.ifftshift(image, dim=_AXES)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_AXES)


def ifft2c(kspace: Complex[Tensor, "*batch y x"]) -> Complex[Tensor, "*batch y x"]:
    """Compute the inverse, and adjoint, of `fft2c`."""
    shifted = torch.fft.ifftshift(kspace, dim=_AXES)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_AXES)


def complex_to_channels(image: Complex[Tensor, "*batch y x"]) -> Float[Tensor, "*batch 2 y x"]:
    """Turn complex images into the two real channels (real, imaginary) that a UNet works on."""
    return torch.view_as_real(image).movedim(-1, -3)


def channels_to_complex(channels: Float[Tensor, "*batch 2 y x"]) -> Complex[Tensor, "*batch y x"]:
    """Undo `complex_to_channels`; float16 and bfloat16 channels become complex64."""
    if channels.dtype in (torch.float16, torch.bfloat16):
        channels = channels.float()
    return torch.view_as_complex(channels.movedim(-3, -1).contiguous())


class SenseOperator:
    """Forward model A x = M F (S x) of undersampled multi-coil MRI (paper Eq. 1).

    The batch axes of the maps and of the mask broadcast against those of the image: maps `(coil, y, x)` serve any
    batch, maps `(b, 1, coil, y, x)` serve images `(b, k, y, x)`. Results have the broadcast batch axes. All
    methods are differentiable with respect to their argument; maps and mask are constants.
    """

    def __init__(
        self, coil_maps: Inexact[Tensor, "*maps_batch coil y x"], mask: Shaped[Tensor, "*mask_batch mask_y mask_x"]
    ) -> None:
        """Check maps and mask and hold what the hot path needs.

        Args:
            coil_maps: Complex sensitivities `(*batch, coil, y, x)`. Their sum of squares over coils need not be 1.
            mask: `(y, x)`, or with batch axes that broadcast against those of `coil_maps`; bool or 0/1, true where
                measured.

        Raises:
            TypeError: `coil_maps` is neither complex64 nor complex128.
            ValueError: the shapes of maps and mask do not fit together, the mask holds other values than 0 and 1, or
                the maps require a gradient.
        """
        if coil_maps.dtype not in (torch.complex64, torch.complex128):
            raise TypeError(f"`coil_maps` must be complex64 or complex128, got {coil_maps.dtype}.")
        if coil_maps.ndim < 3 or mask.ndim < 2 or mask.shape[-2:] != coil_maps.shape[-2:]:
            raise ValueError(
                "`coil_maps` must be (*batch, coil, y, x) and `mask` (*batch, y, x) with the same y and x, got "
                f"{tuple(coil_maps.shape)} and {tuple(mask.shape)}. A smaller stored mask is padded by `pad_mask`."
            )
        if coil_maps.ndim > 3 and mask.ndim > 2 and coil_maps.ndim - 1 != mask.ndim:
            raise ValueError(
                "`mask` must have no batch axes or as many as `coil_maps`, got shapes "
                f"{tuple(mask.shape)} and {tuple(coil_maps.shape)}. Insert axes of length 1 where it is shared."
            )
        if coil_maps.requires_grad:
            raise ValueError(
                "`coil_maps` are constants of the operator but require a gradient; pass `coil_maps.detach()`."
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("`mask` must hold only 0 and 1 (or false and true), got other values. Pass `mask != 0`.")
        try:
            self.batch_shape = torch.broadcast_shapes(coil_maps.shape[:-3], mask.shape[:-2])
        except RuntimeError as error:
            raise ValueError(
                "the batch axes of `mask` and `coil_maps` must broadcast, got shapes "
                f"{tuple(mask.shape)} and {tuple(coil_maps.shape)}."
            ) from error
        self.coil_maps = coil_maps.resolve_conj()
        self.mask = mask.to(coil_maps.device, torch.bool)
        # Held ready for the hot path: a resolved conjugate, and the mask as a real factor in plain FFT order.
        self._conjugate_maps = self.coil_maps.conj().resolve_conj()
        self._fft_mask = torch.fft.ifftshift(self.mask, dim=_AXES).to(coil_maps.real.dtype).unsqueeze(-3)

    @property
    def shape(self) -> tuple[int, int]:
        """Image size (y, x)."""
        return self.coil_maps.shape[-2], self.coil_maps.shape[-1]

    @property
    def n_coils(self) -> int:
        """Number of coils."""
        return self.coil_maps.shape[-3]

    @property
    def device(self) -> torch.device:
        """Device of maps and mask."""
        return self.coil_maps.device

    @property
    def dtype(self) -> torch.dtype:
        """complex64 or complex128: what images and k-space must have."""
        return self.coil_maps.dtype

    @cached_property
    def sum_of_squares(self) -> Float[Tensor, "*batch y x"]:
        """Sum over coils of abs(S)^2, in the batch shape of the maps."""
        return self.coil_maps.abs().square().sum(dim=-3)

    def forward(self, image: Complex[Tensor, "*batch y x"]) -> Complex[Tensor, "*out coil y x"]:
        """Compute A x, the k-space `(*batch, coil, y, x)` of an image; exactly zero where the mask is false."""
        return self.coil_kspace(image) * self.mask.unsqueeze(-3)

    def coil_kspace(self, image: Complex[Tensor, "*batch y x"]) -> Complex[Tensor, "*out coil y x"]:
        """Compute F S x: as `forward`, without the mask."""
        self._check(image, "image")
        return fft2c(self.coil_maps * image.unsqueeze(-3))

    def adjoint(self, kspace: Complex[Tensor, "*batch coil y x"]) -> Complex[Tensor, "*out y x"]:
        """Compute A^H y, the sum over coils of conj(S_c) F^H (M y_c); entries where the mask is false are ignored."""
        return self.combine(kspace * self.mask.unsqueeze(-3))

    def combine(self, kspace: Complex[Tensor, "*batch coil y x"]) -> Complex[Tensor, "*out y x"]:
        """Compute S^H F^H y: as `adjoint`, without the mask."""
        self._check(kspace, "kspace")
        return (self._conjugate_maps * ifft2c(kspace)).sum(dim=-3)

    def normal(self, image: Complex[Tensor, "*batch y x"]) -> Complex[Tensor, "*out y x"]:
        """Compute A^H A x, for little more than the cost of its two Fourier transforms."""
        self._check(image, "image")
        batch_shape = torch.broadcast_shapes(self.batch_shape, image.shape[:-2])
        image = image.expand(*batch_shape, *self.shape)
        if torch.is_grad_enabled() and image.requires_grad:
            return _Normal.apply(image, self)
        return _normal(image, self)  # a node of the graph would take a tenth of the time

    def to(self, device: torch.device | str) -> "SenseOperator":
        """Return the same operator on another device."""
        return self._apply(lambda tensor, _: tensor.to(device))

    def __getitem__(self, selection: int | slice | list[int] | Tensor) -> "SenseOperator":
        """Return the operator of a selection along the leading batch axis, indexed as a tensor is.

        Raises:
            IndexError: neither the maps nor the mask have a batch axis.
        """
        if not self.batch_shape:
            raise IndexError("this operator has no batch axis to select from; it serves every batch as it is.")
        n_batch_axes, length = len(self.batch_shape), self.batch_shape[0]

        def select(tensor: Tensor, n_core_axes: int) -> Tensor:
            if tensor.ndim - n_core_axes < n_batch_axes:  # shared by the whole batch
                return tensor
            return tensor.expand(length, *tensor.shape[1:])[selection]

        return self._apply(select)

    def _apply(self, function: Callable[[Tensor, int], Tensor]) -> "SenseOperator":
        """Make an operator whose tensors are `function(tensor, n)` of ours; n axes of a tensor are not batch axes."""
        new = object.__new__(SenseOperator)
        new.coil_maps = function(self.coil_maps, 3)
        new.mask = function(self.mask, 2)
        new._conjugate_maps = function(self._conjugate_maps, 3)
        new._fft_mask = function(self._fft_mask, 3)
        new.batch_shape = torch.broadcast_shapes(new.coil_maps.shape[:-3], new.mask.shape[:-2])
        return new

    def _check(self, tensor: Tensor, name: str) -> None:
        axes = "(*batch, y, x)" if name == "image" else "(*batch, coil, y, x)"
        core = self.shape if name == "image" else (self.n_coils, *self.shape)
        if tensor.dtype != self.dtype:
            raise TypeError(f"`{name}` must be {self.dtype} as the coil maps are, got {tensor.dtype}.")
        if tuple(tensor.shape[-len(core) :]) != core:
            raise ValueError(f"`{name}` must be {axes} ending in {core}, got shape {tuple(tensor.shape)}.")


class _Normal(torch.autograd.Function):
    """A^H A as one node of the autograd graph: it is its own gradient, so no coil image has to be kept.

    The centring of the Fourier transform cancels: a shift of the image domain is a linear phase in k-space, which
    commutes with the mask and meets its conjugate. Only the mask has to be in the order of the plain FFT.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, operator: SenseOperator) -> Tensor:
        ctx.operator = operator
        return _normal(image, operator)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Normal.apply(gradient, ctx.operator), None


def _normal(image: Tensor, operator: SenseOperator) -> Tensor:
    """Compute A^H A without a graph."""
    factors = (operator.coil_maps, operator._conjugate_maps, operator._fft_mask)
    if image.device.type == "cpu":
        return _normal_in_blocks(image, *factors)
    maps, conjugate_maps, mask = factors
    kspace = torch.fft.fft2(maps * image.unsqueeze(-3))
    return torch.fft.ifft2(kspace.mul_(mask)).mul_(conjugate_maps).sum(dim=-3)


def _normal_in_blocks(image: Tensor, coil_maps: Tensor, conjugate_maps: Tensor, fft_mask: Tensor) -> Tensor:
    """Compute A^H A on a CPU, in blocks of images and coils small enough for the cache.

    The page faults and cache misses of large coil arrays would cost more than the Fourier transforms: this is two
    to three times faster. How a sample is cut into blocks of coils does not depend on the batch it is in, so
    neither does its result.
    """
    *batch, n_y, n_x = image.shape
    if not batch:
        return _normal_in_blocks(image[None], coil_maps, conjugate_maps, fft_mask)[0]
    coil_bytes = n_y * n_x * image.element_size()
    n_coils = min(coil_maps.shape[-3], max(1, _BLOCK_BYTES // coil_bytes))
    n_images = max(1, _BLOCK_BYTES // (2 * n_coils * coil_bytes))  # input and output of a transform

    result = torch.empty(image.shape, dtype=image.dtype)
    factors = [factor.expand(*batch, *factor.shape[-3:]) for factor in (coil_maps, conjugate_maps, fft_mask)]
    for outer in itertools.product(*map(range, batch[:-1])):
        rows = [tensor[outer].split(n_images) for tensor in (result, image, *factors)]
        for out, images, maps, conjugates, mask in zip(*rows, strict=True):
            blocks = zip(maps.split(n_coils, dim=1), conjugates.split(n_coils, dim=1), strict=True)
            for number, (some_maps, some_conjugates) in enumerate(blocks):
                kspace = torch.fft.fft2(some_maps * images[:, None])
                coil_images = torch.fft.ifft2(kspace.mul_(mask)).mul_(some_conjugates)
                if number == 0:
                    torch.sum(coil_images, dim=1, out=out)
                else:
                    out.add_(coil_images.sum(dim=1))
    return result


__all__ = ["SenseOperator", "channels_to_complex", "complex_to_channels", "fft2c", "ifft2c"]
