import torch

from sgr_diffusers.training.memory import available_memory


def test_memory_of_this_machine_is_known():
    assert available_memory(torch.device("cpu")) > 2**20
    assert available_memory(torch.device("meta")) is None
