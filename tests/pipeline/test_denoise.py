"""The gradient that enters the network in another scale."""

import torch
from torch import nn
from torch.nn import functional as F

from sgr_diffusers.pipeline.denoise import TwoStageGradient


def small_network():
    generator = torch.Generator().manual_seed(0)
    network = nn.Conv2d(2, 2, 3, padding=1)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def cut_gradient(network, noisy, loss_of):
    gradient_of = TwoStageGradient(lambda start: network(start.to(network.weight.dtype)).float(), noisy)
    return gradient_of(loss_of(gradient_of.noisy, gradient_of.output))


def test_cut_gradient_is_the_gradient():
    network, noisy = small_network(), torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1))

    def loss_of(x, output):
        return (F.softplus(output) * x).sum(dim=(1, 2, 3)) * torch.tensor([1.0, 1e-3, 0.0])

    whole = noisy.clone().requires_grad_()
    expected = torch.autograd.grad(loss_of(whole, network(whole)).sum(), whole)[0]
    torch.testing.assert_close(cut_gradient(network, noisy, loss_of), expected)
    assert network.weight.grad is None


def test_half_precision_holds_tiny_and_huge_gradients():
    network, noisy = small_network(), torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    size = torch.tensor([1.0, 1e-10, 1e10])

    def loss_of(x, output):
        return output.sum(dim=(1, 2, 3)) * size

    expected = cut_gradient(network, noisy, loss_of)
    gradient = cut_gradient(network.half(), noisy, loss_of)
    for half, full in zip(gradient, expected, strict=True):
        torch.testing.assert_close(half, full, rtol=1e-2, atol=1e-2 * float(full.abs().max()))
