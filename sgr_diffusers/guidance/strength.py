"""Strength b of the guidance (paper Eq. 14) for other samplers, numbers of steps and image sizes than the paper's."""

import math
from collections.abc import Sequence

__all__ = ["PAPER_STRENGTH", "default_strength", "deterministic_factor", "strength_for_size"]

PAPER_STRENGTH = 0.005
PAPER_STEPS = 100
PAPER_SIZE = (512, 160)
# A push to the noise is carried to the end in full by a deterministic sampler, and partly forgotten with every draw of
# fresh noise. For a Gaussian image of variance P, a push of fixed size in every timestep t moves the result by the sum
# of sigma_t sqrt(P / V_t) with eta = 0, and of sigma_t alpha_t P / V_t with eta = 1, where V_t = alpha_t^2 P +
# sigma_t^2. With linear betas the second is 0.11 to 0.17 of the first for P of 0.02 to 0.1 (image scale 1), of pushes
# below t = 0.2 alone 0.41 to 0.63. 0.12 and 0.30 are what made widths about equal on validation slices.
DETERMINISTIC_FACTOR, WINDOW_EXPONENT = 0.12, 0.35


def deterministic_factor(guidance_from: float = 1.0) -> float:
    """Return the factor on pushes without fresh noise: 0.12, or more where only late steps are pushed.

    Args:
        guidance_from: share of the training time below which images are pushed, in (0, 1]. Measured at 1 and at 0.2.
    """
    return DETERMINISTIC_FACTOR**guidance_from**WINDOW_EXPONENT


def default_strength(
    share: float,
    fresh_noise: float = 1.0,
    exponent: float = 0.7,
    strength: float = PAPER_STRENGTH,
    guidance_from: float = 1.0,
) -> float:
    """Compute the b of one evaluation for bounds as wide as by `strength` in each of 100 steps of DDIM with eta = 1.

    Args:
        share: part of the training time that it covers; 1/100 in the paper.
        fresh_noise: eta of the sampler, 1 in the paper, 0 for deterministic ones.
        exponent: power of `share` that the push has to follow, measured (`schedulers.support.PUSH_EXPONENT`). 1 would
            keep the total push; fewer steps need less in total, since data consistency takes back less of it. Less so
            the shorter the time that is guided: the exponent goes to 1.
        strength: strength of the checkpoint (`SGRMRIPipeline`), or that of the paper.
        guidance_from: share of the training time below which images are pushed, in (0, 1].
    """
    exponent = 1 + (exponent - 1) * guidance_from
    factor = deterministic_factor(guidance_from) ** (1 - fresh_noise**2)
    return strength * (PAPER_STEPS * share) ** exponent * factor


def strength_for_size(size: Sequence[int]) -> float:
    """Compute b for images of size (y, x), so that the push relative to the noise is that of the paper's size.

    Eq. 14 measures the push by the norm of the noise of the whole image, which grows with the root of the number of
    pixels. What the push has to stand out from is the noise along its own direction, of norm 1 in images of any size.
    So b falls with the root of the number of pixels: 0.005 for 512 x 160, 0.016 for 96 x 80.
    """
    return PAPER_STRENGTH * math.sqrt(math.prod(PAPER_SIZE) / math.prod(size))
