"""Search for adversarial images: magnitude images that a model segments wrongly though they changed little.

Projected gradient descent (PGD; Madry et al., ICLR 2018) with the masked loss that Croce, Singh and Hein ("Towards
reliable evaluation and fast training of robust semantic segmentation models", ECCV 2024; reference 7 of the paper) use
for segmentation. A segmentation model trained on such images is a robust one, of which the paper's outlook speaks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor, nn
from torch.nn import functional as F

__all__ = ["ATTACK_NORMS", "adversarial_images", "attack_loss"]

ATTACK_NORMS = ("linf", "l2")

PerSample = float | int | Float[Tensor, " batch"]


def adversarial_images(
    model: nn.Module,
    images: Float[Tensor, "batch 1 y x"],
    labels: Integer[Tensor, "batch y x"],
    generator: Generator,
    *,
    radius: PerSample,
    norm: str = "linf",
    steps: int = 5,
    step_size: PerSample | None = None,
    random_start: bool = True,
) -> Float[Tensor, "batch 1 y x"]:
    """Search, within a radius of every image, for an image that the model segments wrongly.

    The model is called `steps` + 1 times, in evaluation mode: dropout would make the search noisy and draw from the
    global generator, batch normalisation would count the images found as data. Every module has its own mode again
    afterwards, and no weight has a gradient that it did not have before. Give the bare network, not one wrapped in
    `DistributedDataParallel`: a forward pass without a backward pass to the weights is an error there. (A
    `SegmentationUNet` with `flip_average` is attacked as it is used, over four flips at four times the cost.)

    Args:
        model: network from magnitude ``(batch, 1, y, x)`` to logits ``(batch, n_classes + 1, y, x)``, each sample by
            itself.
        images: magnitude images ``(batch, 1, y, x)``, 0 or larger, scaled like the training images (the 0.99 quantile
            is 1).
        labels: labels ``(batch, y, x)``, 0 to n_classes, of the images as they are.
        generator: generator of the random start; not read without it. On the CPU or on the device of the images.
        radius: largest change, one for all or one for each sample, 0 or larger. With ``"linf"`` of a pixel, in the
            unit of the images; with ``"l2"`` of the root of the summed squares over the pixels of a slice.
        norm: norm of the change, one of `ATTACK_NORMS`.
        steps: number of steps, 1 or more.
        step_size: length of a step in that norm, one for all or one for each sample. By default ``2.5 * radius /
            steps``, with which a step can reach the far side of the ball and still be refined.
        random_start: whether to start from a random point of the ball (its direction uniform; with ``"l2"`` its
            distance, too) instead of from the image itself.

    Returns:
        Of each sample the image of the search with the fewest pixels segmented as labelled (the last one need not be:
        a masked loss lets pixels go once they are wrong), detached, 0 or larger, in the type of `images`.

    Raises:
        ValueError: for an unknown `norm`, a `radius`, `step_size` or `steps` out of range, negative pixels,
            or labels that the model has no logits for.
    """
    _check_settings(images, norm, steps)
    shape = (-1, 1, 1, 1)
    radius = _per_sample("radius", radius, images).view(shape)
    step_size = 2.5 * radius / steps if step_size is None else _per_sample("step_size", step_size, images).view(shape)
    # The caller may be inside of inference mode, whose tensors no gradient passes.
    with torch.inference_mode(False), torch.enable_grad(), _evaluation_mode(model):
        clean, labels = images.detach().clone(), labels.detach().clone().long()
        change = torch.zeros_like(clean)
        if random_start:
            change = _project(clean, radius * _random_direction(clean, norm, generator), radius, norm)
        best_change, fewest_right = change, torch.full_like(radius, torch.inf)
        for step in range(steps + 1):
            perturbed = (clean + change).requires_grad_()
            with torch.set_grad_enabled(step < steps):
                logits = model(perturbed)
                total = attack_loss(logits, labels).sum()
            n_right = _is_right(logits, labels).sum(dim=(-2, -1)).view(shape).to(radius)
            is_better = n_right <= fewest_right
            best_change, fewest_right = (
                torch.where(is_better, change, best_change),
                torch.where(is_better, n_right, fewest_right),
            )
            if step < steps:
                (gradient,) = torch.autograd.grad(total, perturbed)
                ascent = gradient.sign() if norm == "linf" else _unit_length(gradient)
                change = _project(clean, change + step_size * ascent, radius, norm)
        return clean + best_change


def attack_loss(
    logits: Float[Tensor, "batch out_class y x"], labels: Integer[Tensor, "batch y x"]
) -> Float[Tensor, " batch"]:
    """Compute the loss that an attack ascends, per sample: the cross-entropy over pixels that are still right.

    The cross-entropy of all pixels grows without end where a pixel is wrong already, and the attack spends its radius
    there.

    Args:
        logits: logits of the model.
        labels: labels of the images, 0 to n_classes.

    Raises:
        ValueError: for labels without logits.
    """
    labels, n_labels = labels.long(), logits.shape[1]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < n_labels:
        raise ValueError(
            f"`labels` must be 0 to {n_labels - 1}, as the model has {n_labels} output channels, got "
            f"{int(labels.min())} to {int(labels.max())}. Use the labels the model is trained on."
        )
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="none")
    return torch.where(_is_right(logits, labels), loss, 0.0).sum(dim=(-2, -1))


def _is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the pixels whose label has the largest logit, `(batch, y, x)`."""
    logits, at_label = logits.detach(), labels[:, None]
    # on the CPU a hundred times faster than argmax
    others = logits.scatter(1, at_label, -torch.inf).amax(dim=1)
    return logits.gather(1, at_label)[:, 0] > others


def _check_settings(images: Tensor, norm: str, steps: int) -> None:
    if norm not in ATTACK_NORMS:
        raise ValueError(f"`norm` must be one of {ATTACK_NORMS}, got {norm!r}.")
    if steps < 1:
        raise ValueError(f"`steps` must be 1 or more, got {steps}.")
    if (images < 0).any():
        raise ValueError(
            f"`images` must be magnitudes, 0 or larger, got {images.min().item():.3g}. Pass `image.abs()[:, None]`."
        )


def _per_sample(name: str, value: PerSample, images: Tensor) -> Tensor:
    values = torch.as_tensor(value).to(images).expand(len(images))
    if not ((values >= 0) & values.isfinite()).all():
        raise ValueError(f"`{name}` must be finite and 0 or larger, got {value}.")
    return values


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside of the block, and each module back into its own mode after it."""
    were_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


def _random_direction(images: Tensor, norm: str, generator: Generator) -> Tensor:
    """Draw a random point of the unit ball for each sample."""
    if norm == "linf":
        drawn = torch.rand(images.shape, generator=generator, device=generator.device)
        return 2 * drawn.to(images) - 1
    drawn = torch.randn(images.shape, generator=generator, device=generator.device)
    # Uniform in the ball would mean: on its surface, in so many dimensions, with the whole radius spent on noise.
    distance = torch.rand(len(images), 1, 1, 1, generator=generator, device=generator.device)
    return _unit_length(drawn.to(images)) * distance.to(images)


def _unit_length(values: Tensor) -> Tensor:
    """Divide each sample by its l2 norm; zero stays zero."""
    # By the largest value first: the square of a small gradient would underflow.
    largest = values.abs().amax(dim=(1, 2, 3), keepdim=True)
    values = values / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True)
    return values / torch.where(norm > 0, norm, 1.0)


def _project(images: Tensor, change: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Bring `change` into the ball so that it leaves no pixel negative."""
    if norm == "linf":
        change = change.clamp(-radius, radius)
    else:
        length = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
        change = change * torch.where(length > radius, radius / torch.where(length > 0, length, 1.0), 1.0)
    return torch.maximum(change, -images)  # makes changes smaller only, as images are not negative
