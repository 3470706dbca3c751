"""Guidance losses and weights of segmentation logits and gradients: paper Eqs. 7-14 as pure functions.

Nothing here knows a scheduler, a network or a data set. Notation, code to paper:

| code              | paper                    | meaning                                                  |
|-------------------|--------------------------|----------------------------------------------------------|
| `logits`          | softmax gives p_phi(x_0) | one map for the background (channel 0) and each class    |
| `classes`         | c                        | the class of each sample, or several that count as one   |
| `class_log_odds`  | log(p_c / (1 - p_c))     | both logarithms of the loss are softplus functions of it |
| `indicator`       | I_c, Eq. 8               | pixels in which class c is the most probable one         |
| `upper_loss`      | L_m up, Eqs. 10 and 12   | ascended, the class grows                                |
| `lower_loss`      | L_m low, Eqs. 11 and 12  | ascended, the class shrinks                              |
| `eps`             | eps_theta                | the noise the prior predicts                             |
| `gradient`        | nabla_{x_t} L_m          | of the loss, with respect to the noisy image             |
| `strength`        | b, Eq. 14                | the largest push of one step, relative to the noise      |
| `guidance_weight` | gamma, Eq. 14            | what the gradient is multiplied by in Eq. 13             |

Half-precision logits are taken to float32 before any logarithm.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "class_log_odds",
    "guidance_loss",
    "guidance_weight",
    "has_pixels_to_push",
    "indicator",
    "joint_weights",
    "lower_loss",
    "soft_volume",
    "upper_loss",
]

# Label of each sample, from 1, `(batch,)`; or true for each of the classes that make up its tissue.
Classes = Int[Tensor, " batch"] | Bool[Tensor, "batch out_class"]


def indicator(logits: Float[Tensor, "batch out_class y x"], classes: Classes) -> Bool[Tensor, "batch y x"]:
    """Return the pixels of each sample in which its class is more probable than every other (paper Eq. 8).

    Args:
        logits: logits `(batch, n_classes + 1, y, x)`, channel 0 the background.
        classes: `(batch,)`, the class of each sample, from 1; or `(batch, n_classes + 1)`, true for those that count
            as one tissue.
    """
    of_class, others = _own_and_others(logits, classes)
    return of_class.amax(dim=1) > others.amax(dim=1)  # on the CPU a hundred times faster than argmax


def class_log_odds(logits: Float[Tensor, "batch out_class y x"], classes: Classes) -> Float[Tensor, "batch y x"]:
    """Return the log-odds log(p_c / (1 - p_c)) of each sample's class: its logit less the logsumexp of all others.

    The way to log(p_c) and log(1 - p_c) that loses no digits: with d the log-odds, they are -softplus(-d) and
    -softplus(d), values and gradients finite for any finite logits.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    of_class, others = _own_and_others(logits, classes)
    return of_class.logsumexp(dim=1) - others.logsumexp(dim=1)


def _own_and_others(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each sample's logits of its classes and of all others, `(batch, out_class, y, x)`; elsewhere -inf."""
    if classes.ndim == 1:
        classes = classes[:, None] == torch.arange(logits.shape[1], device=logits.device)
    is_own = classes[:, :, None, None]
    return logits.masked_fill(~is_own, -torch.inf), logits.masked_fill(is_own, -torch.inf)


def upper_loss(logits: Float[Tensor, "batch out_class y x"], classes: Classes) -> Float[Tensor, " batch"]:
    """Compute -sum of log(1 - p_c) over the pixels that are not yet class c (paper Eqs. 10 and 12), per sample.

    Its gradient raises p_c: adding it to the noise makes the class grow. Zero, with zero gradient, if no such pixel is
    left.
    """
    return guidance_loss(logits, classes, torch.ones(len(logits), dtype=torch.bool, device=logits.device))


def lower_loss(logits: Float[Tensor, "batch out_class y x"], classes: Classes) -> Float[Tensor, " batch"]:
    """Compute -sum of log(p_c) over the pixels that still are class c (paper Eqs. 11 and 12), per sample.

    Its gradient lowers p_c: adding it to the noise makes the class shrink. Zero, with zero gradient, where the class
    is nowhere.
    """
    return guidance_loss(logits, classes, torch.zeros(len(logits), dtype=torch.bool, device=logits.device))


def guidance_loss(
    logits: Float[Tensor, "batch out_class y x"], classes: Classes, is_upper: Bool[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Compute `upper_loss` where `is_upper` is true and `lower_loss` elsewhere, per sample (paper Eq. 12)."""
    is_upper = is_upper[:, None, None]
    log_odds = class_log_odds(logits, classes)
    # -log(1 - p_c) and -log(p_c); Eq. 12 keeps the first outside of I_c and the second inside
    loss = F.softplus(torch.where(is_upper, log_odds, -log_odds))
    return torch.where(indicator(logits, classes) != is_upper, loss, 0.0).sum(dim=(-2, -1))


def has_pixels_to_push(
    logits: Float[Tensor, "batch out_class y x"], classes: Classes, is_upper: Bool[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Return whether the sum in `guidance_loss` has a term at all, per sample.

    False for a lower bound whose class is nowhere (it cannot shrink further) and for an upper bound whose class is
    everywhere: loss and gradient are exactly zero there, and need not be computed.
    """
    return (indicator(logits, classes) != is_upper[:, None, None]).flatten(1).any(dim=1)


def soft_volume(logits: Float[Tensor, "batch out_class y x"], classes: Classes) -> Float[Tensor, " batch"]:
    """Sum the class's probability over all pixels, per sample: a differentiable volume in pixels."""
    return F.sigmoid(class_log_odds(logits, classes)).sum(dim=(-2, -1))


def guidance_weight(
    eps: Float[Tensor, "batch channel y x"], gradient: Float[Tensor, "batch channel y x"], strength: float
) -> Float[Tensor, " batch"]:
    """Compute gamma, per sample (paper Eq. 14): gamma times the gradient is at most `strength` times as long as `eps`.

    Args:
        eps: noise `(batch, 2, y, x)` predicted by the prior.
        gradient: gradient `(batch, 2, y, x)` of the loss with respect to the noisy image; may be zero.
        strength: strength b, 0 or larger.
    """
    # Differs from the authors' code: they take the norm of fresh noise, and of the first sample for all.
    limit = strength * torch.linalg.vector_norm(eps, dim=(-3, -2, -1))
    norm = torch.linalg.vector_norm(gradient, dim=(-3, -2, -1))
    is_too_long = norm > limit
    return torch.where(is_too_long, limit / torch.where(is_too_long, norm, 1.0), 1.0)


def joint_weights(
    eps: Float[Tensor, "slice class target channel y x"],
    gradient: Float[Tensor, "slice class target channel y x"],
    strength: float,
) -> Float[Tensor, "class target"]:
    """Compute the weight of the gradient with which all slices together are pushed by `strength` times the noise.

    The counterpart of paper Eq. 14 for a score that all slices share: a slice is pushed the more, the more its part of
    the score can be raised. Zero where no slice has a gradient.
    """
    limit, norm = (tensor.square().sum(dim=(0, -3, -2, -1)).sqrt() for tensor in (eps, gradient))
    return torch.where(norm > 0, strength * limit / torch.where(norm > 0, norm, 1.0), 0.0)
