import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sgr_diffusers.training.adversarial import ATTACK_NORMS, adversarial_images, attack_loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disc_images(n, size=24):
    """Two discs of different brightness in noise, and their labels 1 and 2."""
    generator = seeded(n)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(n, size, size, dtype=torch.long)
    for sample in range(n):
        for label in (1, 2):
            centre = 6 + 12 * torch.rand(2, generator=generator)
            labels[sample][(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 16] = label
    images = torch.tensor([0.2, 0.5, 0.8])[labels] + 0.05 * torch.randn(labels.shape, generator=generator)
    return images.clamp_min(0)[:, None], labels


@pytest.fixture(scope="module")
def trained():
    """A network of three layers that segments the discs, trained for a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(12, 3, 1),
        )
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        images, labels = disc_images(16)
        for _ in range(120):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def dice(network, images, labels):
    predicted = network(images).argmax(dim=1)
    scores = [
        2 * ((predicted == c) & (labels == c)).sum() / ((predicted == c).sum() + (labels == c).sum()) for c in (1, 2)
    ]
    return float(sum(scores) / 2)


def lengths(change, norm):
    return change.flatten(1).norm(float("inf") if norm == "linf" else 2, dim=1)


RADIUS = {"linf": 0.2, "l2": 2.5}


@pytest.mark.parametrize("norm", ATTACK_NORMS)
def test_the_segmentation_becomes_worse(trained, norm):
    images, labels = disc_images(4)
    found = adversarial_images(trained, images, labels, seeded(), norm=norm, radius=RADIUS[norm])
    with torch.no_grad():
        assert dice(trained, images, labels) > 0.9
        assert dice(trained, found, labels) < 0.7


@pytest.mark.parametrize("norm", ATTACK_NORMS)
def test_it_is_the_gradient_that_does_it_and_not_the_noise(trained, norm):
    images, labels = disc_images(4)
    noise = torch.randn(images.shape, generator=seeded())
    noise = noise.sign() if norm == "linf" else noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    noisy = (images + RADIUS[norm] * noise).clamp_min(0)
    found = adversarial_images(trained, images, labels, seeded(), norm=norm, radius=RADIUS[norm])
    with torch.no_grad():
        assert dice(trained, found, labels) < dice(trained, noisy, labels) - 0.1


def test_more_steps_are_the_stronger_attack(trained):
    images, labels = disc_images(4)
    settings = {"norm": "l2", "radius": 2.0}
    with torch.no_grad():
        one, many = (
            dice(trained, adversarial_images(trained, images, labels, seeded(), steps=n, **settings), labels)
            for n in (1, 10)
        )
    assert many < one - 0.1


def test_a_longer_search_never_leaves_more_pixels_right(trained):
    images, labels = disc_images(1)
    settings = {"radius": 0.1, "step_size": 0.08, "random_start": False}
    with torch.no_grad():
        n_right = [
            (trained(found).argmax(dim=1) == labels).sum()
            for found in (
                adversarial_images(trained, images, labels, seeded(), steps=n, **settings) for n in (1, 2, 5)
            )
        ]
    assert n_right[0] >= n_right[1] >= n_right[2]


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("norm", ATTACK_NORMS)
def test_the_change_stays_within_each_samples_radius(trained, norm, random_start):
    images, labels = disc_images(3)
    radii = RADIUS[norm] * torch.tensor([0.0, 0.5, 2.0])
    settings = {"norm": norm, "steps": 4, "step_size": 5.0, "random_start": random_start}
    found = adversarial_images(trained, images, labels, seeded(), radius=radii, **settings)
    reached = lengths(found - images, norm)
    assert (reached <= radii * (1 + 1e-5) + 1e-6).all()
    assert (reached[1:] > 0.3 * radii[1:]).all()
    assert torch.equal(found[0], images[0])
    assert found.min() >= 0


def test_no_pixel_becomes_negative(trained):
    images, labels = disc_images(2)
    found = adversarial_images(trained, images / 4, labels, seeded(), radius=0.3)
    assert found.min() == 0


@pytest.mark.parametrize("norm", ATTACK_NORMS)
def test_a_seed_gives_the_same_images_and_the_global_generator_is_left_alone(trained, norm):
    images, labels = disc_images(2)
    state = torch.get_rng_state()
    first, again, other = (
        adversarial_images(trained.train(), images, labels, seeded(seed), norm=norm, radius=RADIUS[norm])
        for seed in (1, 1, 2)
    )
    trained.eval()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_random_start_the_generator_is_not_read(trained):
    images, labels = disc_images(2)
    generator = seeded()
    adversarial_images(trained, images, labels, generator, radius=0.1, random_start=False)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_samples_do_not_influence_each_other(trained):
    images, labels = disc_images(3)
    settings = {"norm": "l2", "radius": 1.0, "random_start": False}
    together = adversarial_images(trained, images, labels, seeded(), **settings)
    one_by_one = [adversarial_images(trained, images[[k]], labels[[k]], seeded(), **settings) for k in range(3)]
    torch.testing.assert_close(torch.cat(one_by_one), together)


def test_modes_weights_and_gradients_stay(trained):
    images, labels = disc_images(2)
    network = nn.Sequential(trained, nn.BatchNorm2d(3)).train()
    trained[3].eval()  # a frozen part
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    marked = trained[0].weight
    marked.grad = torch.ones_like(marked)
    adversarial_images(network, images, labels, seeded(), radius=0.1)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(marked.grad, torch.ones_like(marked))
    assert all(parameter.grad is None for parameter in network.parameters() if parameter is not marked)
    marked.grad = None
    trained.eval()


def test_the_modes_come_back_after_an_error(trained):
    images, labels = disc_images(2)
    trained.train()
    with pytest.raises(ValueError, match=r"`labels` must be 0 to 2.*got 0 to 7"):
        adversarial_images(trained, images, labels + 5 * (labels == 2), seeded(), radius=0.1)
    assert all(module.training for module in trained.modules())
    trained.eval()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(trained, mode):
    images, labels = disc_images(2)
    expected = adversarial_images(trained, images, labels, seeded(), radius=0.1)
    with mode():
        found = adversarial_images(trained, images * 1, labels * 1, seeded(), radius=0.1)
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("norm", ATTACK_NORMS)
def test_empty_slices_and_vanished_gradients_are_no_nan(norm):
    images, labels = torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[1] = 1  # wrong everywhere from the start: the masked loss has nothing left to push
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Conv2d(1, 2, 3, padding=1)
    network.bias.data = torch.tensor([5.0, 0.0])
    for random_start in (True, False):
        settings = {"norm": norm, "radius": 1e-3, "random_start": random_start}
        found = adversarial_images(network, images, labels, seeded(), **settings)
        assert found.isfinite().all()
        assert (found >= 0).all()


def test_tiny_gradients_are_followed_all_the_same():
    images, labels = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    network = nn.Conv2d(1, 2, 1, bias=False)
    network.weight.data = torch.tensor([1e-25, -1e-25]).view(2, 1, 1, 1)
    found = adversarial_images(network, images, labels, seeded(), norm="l2", radius=0.8, random_start=False)
    torch.testing.assert_close(found, torch.full_like(images, 0.9))  # 64 pixels by 0.1 each: length 0.8


def test_masked_loss_counts_the_pixels_that_are_still_right():
    logits = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]).T.reshape(1, 2, 1, 3)
    labels = torch.tensor([[[0, 0, 0]]])  # right, wrong, undecided
    log_p = logits.log_softmax(dim=1)[0, 0, 0]
    torch.testing.assert_close(attack_loss(logits, labels), -log_p[:1])


def test_half_precision_logits_do_not_overflow_the_sum():
    logits, labels = torch.zeros(1, 2, 400, 400, dtype=torch.float16), torch.zeros(1, 400, 400, dtype=torch.uint8)
    logits[:, 0] = 1
    torch.testing.assert_close(attack_loss(logits, labels), torch.tensor([400 * 400 * math.log1p(math.exp(-1))]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l1"}, "`norm` must be one of"),
        ({"steps": 0}, "`steps` must be 1 or more, got 0"),
        ({"radius": -0.1}, "`radius` must be finite and 0 or larger, got -0.1"),
        ({"radius": float("nan")}, "`radius` must be finite"),
        ({"step_size": torch.tensor([0.1, torch.inf])}, "`step_size` must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(trained, change, message):
    images, labels = disc_images(2)
    with pytest.raises(ValueError, match=message):
        adversarial_images(trained, images, labels, seeded(), **{"radius": 0.1, **change})


def test_negative_pixels_are_no_magnitudes(trained):
    images, labels = disc_images(2)
    with pytest.raises(ValueError, match=r"`images` must be magnitudes, 0 or larger, got -"):
        adversarial_images(trained, images - 0.5, labels, seeded(), radius=0.1)
