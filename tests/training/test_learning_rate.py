import pytest
import torch
from diffusers.optimization import get_scheduler

from sgr_diffusers.training.learning_rate import LR_SCHEDULERS, learning_rate_factor


def test_learning_rate_factors():
    assert [learning_rate_factor("constant", step, 0.0, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    trapezoid = [learning_rate_factor("trapezoidal", 10, done, 0, 0.5) for done in (0, 0.5, 0.75, 1)]
    assert trapezoid == [1, 1, 0.5, 0]
    assert learning_rate_factor("linear", 10, 0.25) == 0.75
    assert learning_rate_factor("cosine", 10, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor("cosine", 10, 1.01) == 0
    assert learning_rate_factor("polynomial", 10, 0.5, power=2) == 0.25
    assert [learning_rate_factor("cosine_with_restarts", 0, done, n_cycles=2) for done in (0, 0.5, 1)] == [1, 1, 0]


@pytest.mark.parametrize("name", [name for name in LR_SCHEDULERS if name != "trapezoidal"])
def test_they_are_those_of_diffusers(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=0, num_training_steps=12, num_cycles=3 if "restarts" in name else 1, power=2
    )
    expected = []
    for _ in range(12):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = [learning_rate_factor(name, step, step / 12, n_cycles=3, power=2) for step in range(12)]
    if name == "cosine":  # theirs takes a number of half waves
        ours, expected = ours[:1], expected[:1]
    assert ours == pytest.approx(expected, abs=1e-6)
