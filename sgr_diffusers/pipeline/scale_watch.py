"""Warns where the images of a call have another scale than those that the prior was trained with."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ..schedulers.sampler import NoiseLevel

__all__ = ["ScaleWatch"]

_NOISE_TO_SIGNAL = 3.0, 30.0  # (sigma / alpha)^2: below, data decides the scale; above, the prior knows little
_EXPECTED = 0.75, 1.3  # chosen on validation slices, see docs/how-to/authors-weights.md
_FEWEST_STEPS = 3  # that tell it together


class ScaleWatch:
    """Compares how strong images are by the measurement with how strong the prior predicts them.

    A prior predicts the mean x0 of all clean images that a noisy one can stand for. The product of x0 with the clean
    image x is then, in expectation, the energy of x0, at every noise level. A prior that was trained with weaker or
    stronger images predicts too little or too much, and <x, x0> / <x0, x0> is above or below 1. It moves less than the
    scale does. Nothing waits for the device before `warn`.
    """

    def __init__(self) -> None:
        """Begin with nothing to compare."""
        self._is_noise_alone = True
        self._products: list[Float[Tensor, "2 image"]] = []

    def note(
        self, level: NoiseLevel, x0: Float[Tensor, "image 2 y x"], x0_consistent: Float[Tensor, "image 2 y x"]
    ) -> None:
        """Take the images of a step into account, unless its noise level says little of the scale.

        Args:
            level: noise level of the step.
            x0: clean images that the prior predicts.
            x0_consistent: the same images, made consistent with the measurement.
        """
        low, high = _NOISE_TO_SIGNAL
        if not self._is_noise_alone and low * level.alpha**2 <= level.sigma**2 <= high * level.alpha**2:
            self._products.append(torch.stack([(x0 * x0_consistent).sum((1, 2, 3)), x0.square().sum((1, 2, 3))]))
        self._is_noise_alone = False

    def warn(self) -> None:
        """Warn if the median of all images is stronger or weaker than the prior predicts."""
        products, self._products = self._products, []
        if len(products) < _FEWEST_STEPS:
            return
        product, energy = torch.stack(products).sum(dim=0)
        ratio = float(torch.where(energy > 0, product / energy, torch.inf).median())  # a prior may predict nothing
        if not _EXPECTED[0] <= ratio <= _EXPECTED[1]:
            trained, way = ("stronger", "smaller") if ratio < 1 else ("weaker", "larger")
            warnings.warn(
                f"the images are {ratio:.2f} times as strong as the prior predicts them at medium noise, where about "
                f"1 is expected: the prior seems to be trained with {trained} images. Check its scale and type of "
                f"prediction; a {way} `scale_correction` of the checkpoint may help.",
                stacklevel=3,
            )
