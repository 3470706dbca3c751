import logging

import pytest
import torch

from tests.helpers.tiny_training import forget_accelerator


@pytest.fixture(autouse=True)
def leave_no_trace():
    threads, rng = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.random.set_rng_state(rng)
    forget_accelerator()
    logging.getLogger().setLevel(logging.WARNING)
