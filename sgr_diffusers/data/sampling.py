"""Draws the endless, resumable order in which to visit the slices of a data set, given their foreground flags."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from jaxtyping import Bool
from torch.utils.data import Sampler

__all__ = ["SliceSampler"]


class SliceSampler(Sampler):
    """Endless indices into a data set. The n-th is a function of the seed and n alone: a run can resume anywhere.

    Slices come in random order, each once before any comes again. A fixed share of the draws is taken from the
    foreground (the paper oversamples it: 40 %), in the same manner and evenly among the other draws.

    Args:
        n_items: size of the data set.
        seed: seed of the order.
        foreground: flag of each item, true if it is foreground; needed where `foreground_fraction` is not 0.
        foreground_fraction: share of the draws, in [0, 1], that come from the foreground only.
        start: number of the first draw of this process.
        stride: pair (draws of this process in a row, draws of all processes together). With several processes, each
            takes its own part of every common batch.

    Raises:
        ValueError: if there is no item, `foreground_fraction` is out of range or asked of a set without foreground.
    """

    def __init__(
        self,
        n_items: int,
        seed: int,
        foreground: Bool[np.ndarray, " item"] | None = None,
        foreground_fraction: float | int = 0.0,
        start: int = 0,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        """Nothing is drawn yet."""
        if n_items < 1:
            raise ValueError(f"`n_items` must be at least 1, got {n_items}.")
        if not 0 <= foreground_fraction <= 1:
            raise ValueError(f"`foreground_fraction` must be in [0, 1], got {foreground_fraction}.")
        if foreground_fraction > 0 and (foreground is None or not foreground.any()):
            raise ValueError(
                f"`foreground_fraction` is {foreground_fraction}, but no slice shows any tissue class. Pass 0, or "
                "check the segmentation files."
            )
        self.n_items = n_items
        self.seed = seed
        self.foreground = np.flatnonzero(() if foreground is None else foreground)
        self.fraction = Fraction(foreground_fraction).limit_denominator(1000)
        self.start = start
        self.stride = stride
        self._order: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[int]:
        """Indices without end."""
        n_of_process, everyone = self.stride
        first = self.start
        while True:
            yield from (self.index(first + offset) for offset in range(n_of_process))
            first += everyone

    def index(self, n: int) -> int:
        """Return the index of the item that comes `n`-th, from 0."""
        n_foreground = n * self.fraction.numerator // self.fraction.denominator
        if (n + 1) * self.fraction.numerator // self.fraction.denominator > n_foreground:
            return int(self.foreground[self._draw(1, n_foreground, len(self.foreground))])
        return self._draw(0, n - n_foreground, self.n_items)

    def _draw(self, stream: int, n: int, n_items: int) -> int:
        epoch, position = divmod(n, n_items)
        if self._order.get(stream, (None,))[0] != epoch:
            order = np.random.default_rng((self.seed, stream, epoch)).permutation(n_items)
            self._order[stream] = (epoch, order)
        return int(self._order[stream][1][position])
