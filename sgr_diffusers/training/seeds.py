"""Create seeds and generators that depend on nothing but where a run stands."""

import numpy as np
import torch
from torch import Generator

__all__ = ["random_seed", "step_generator"]


def random_seed(*parts: int) -> int:
    """Compute a seed that differs for every sequence of non-negative numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def step_generator(seed: int, step: int, micro_step: int = 0, rank: int = 0) -> Generator:
    """Create the CPU generator of a micro-step of a process, whatever came before."""
    return torch.Generator().manual_seed(random_seed(seed, step, micro_step, rank))
