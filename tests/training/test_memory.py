import logging

import pytest
import torch
from accelerate import Accelerator

from sgr_diffusers.models.prior import create_prior
from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training.memory import available_memory, check_memory, estimate_memory, saved_activations
from sgr_diffusers.training.options import TrainingOptions
from tests.helpers.tiny_training import tiny_model


def really_saved(model, *inputs):
    own = {id(parameter) for parameter in model.parameters()}
    storages = {}

    def count(tensor):
        if id(tensor) not in own and id(tensor._base) not in own:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(*inputs)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["prior", "segmentation"])
def test_activations_are_counted_as_they_are_saved(kind, gradient_checkpointing):
    if kind == "prior":
        model, inputs = create_prior(block_out_channels=(8, 32), norm_num_groups=4), (torch.rand(1, 2, 16, 8), 5)
    else:
        model, inputs = SegmentationUNet(channels=(4, 8), strides=(2,)), (torch.rand(1, 1, 16, 8),)
    model.train()
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
    estimate = saved_activations(model, *inputs, gradient_checkpointing=gradient_checkpointing)
    assert estimate == pytest.approx(really_saved(model, *inputs), rel=0.25)


def test_the_paper_s_network_is_estimated_without_its_memory():
    with torch.device("meta"):
        model = create_prior("paper")
    inputs = torch.zeros(1, 2, 512, 160), torch.zeros(1)
    options = TrainingOptions(max_train_steps=1, train_batch_size=2)
    parts = estimate_memory(model, options, *inputs)
    assert parts["weights and gradients"] == 2 * 4 * 138_286_468
    assert parts["optimizer"] == parts["weights and gradients"]
    assert 6 * 2**30 < parts["activations"] < 12 * 2**30
    less = TrainingOptions(max_train_steps=1, train_batch_size=2, gradient_checkpointing=True, ema_decay=0.0)
    small = estimate_memory(model, less, *inputs)
    assert small["activations"] < 0.5 * parts["activations"] and small["averaged weights"] == 0


def test_what_does_not_fit_is_refused_or_warned_of(caplog):
    model, inputs = tiny_model(), (torch.zeros(1, 2, 8, 8), torch.zeros(1))
    one = estimate_memory(model, TrainingOptions(max_train_steps=1, train_batch_size=1), *inputs)["activations"]
    available = available_memory(torch.device("cpu"))
    assert available > 2**20
    accelerator = Accelerator(cpu=True)
    too_many = {"max_train_steps": 1, "train_batch_size": 2 * available // one}
    with pytest.raises(MemoryError, match=r"about .* GiB are needed \(.*activations .*GiB are available on cpu"):
        check_memory(model, TrainingOptions(**too_many), accelerator, *inputs)
    with caplog.at_level(logging.WARNING):
        check_memory(model, TrainingOptions(**too_many, skip_memory_check=True), accelerator, *inputs)
    assert "may not fit into memory" in caplog.text
    check_memory(model, TrainingOptions(max_train_steps=1), accelerator, *inputs)
