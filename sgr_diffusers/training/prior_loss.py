"""Compute the training loss of a prior on clean images, and a table of its errors by noise level."""

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

__all__ = [
    "TIMESTEP_SAMPLING",
    "denoising_errors",
    "denoising_loss",
    "draw_timesteps",
    "min_snr_weights",
    "timestep_density",
]

TIMESTEP_SAMPLING = ("uniform", "stratified", "importance")


def draw_timesteps(
    n: int,
    n_train_timesteps: int,
    generator: Generator,
    method: str = "uniform",
    density: Float[Tensor, " timestep"] | None = None,
) -> Int[Tensor, " n"]:
    """Return the timesteps of a training batch in 0..n_train_timesteps - 1.

    Args:
        n: batch size.
        n_train_timesteps: number of training timesteps of the scheduler.
        generator: generator to draw from.
        method: way of drawing. ``"uniform"``: independent draws; ``"stratified"``: one draw from each of `n` equal
            parts of the range, in random order (each is uniform by itself, but the loss of a batch varies less);
            ``"importance"``: stratified draws from `density` instead of the uniform one.
        density: probability of each timestep for ``"importance"``, such as `timestep_density`.

    Raises:
        ValueError: for an unknown `method`, or ``"importance"`` without `density`.
    """
    if method not in TIMESTEP_SAMPLING:
        raise ValueError(f"`method` must be one of {TIMESTEP_SAMPLING}, got {method!r}.")
    if (method == "importance") != (density is not None):
        raise ValueError(f"`density` goes with method 'importance' and with no other, got {method!r}.")
    position = torch.rand(n, generator=generator, dtype=torch.float64)
    if method != "uniform":
        position = (torch.randperm(n, generator=generator) + position) / n
    if density is not None:
        cumulative = density.double().cumsum(0)
        return torch.searchsorted(cumulative, position * cumulative[-1], right=True).clamp_max(n_train_timesteps - 1)
    return (position * n_train_timesteps).long().clamp_max(n_train_timesteps - 1)


def timestep_density(
    scheduler: DDIMScheduler, gamma: float | int, uniform_share: float = 0.25
) -> Float[Tensor, " timestep"]:
    """Return the probability of each timestep in proportion to its min-SNR weight, mixed with a uniform share.

    Drawing where the weight is large, instead of drawing anywhere and multiplying by the weight, spends no network
    calls on timesteps that hardly count. Without the uniform share the expected loss would be the weighted one, up to
    a factor.

    Args:
        scheduler: scheduler that gives the noise levels and the prediction type.
        gamma: gamma of the min-SNR weights. The larger, the more often timesteps of little noise are drawn.
        uniform_share: share that is drawn uniformly, so that no timestep is forgotten.

    Raises:
        ValueError: `gamma` is not positive.
    """
    timesteps = torch.arange(scheduler.config.num_train_timesteps)
    weights = min_snr_weights(scheduler, timesteps, gamma)
    return (1 - uniform_share) * weights / weights.sum() + uniform_share / len(timesteps)


def min_snr_weights(
    scheduler: DDIMScheduler, timesteps: Int[Tensor, " batch"], gamma: float | int | None
) -> Float[Tensor, " batch"]:
    """Compute the loss weights of min-SNR-gamma (Hang et al., ICCV 2023) for the prediction type of the scheduler.

    Args:
        scheduler: scheduler that gives the noise levels and the prediction type.
        timesteps: timesteps of the batch.
        gamma: gamma of the weights, 5 in their paper; ``None`` weights every timestep with 1.

    Raises:
        ValueError: `gamma` is not positive.
    """
    if gamma is None:
        return torch.ones(timesteps.shape, device=timesteps.device)
    if not gamma > 0:
        raise ValueError(
            f"The gamma of the min-SNR weights must be positive, got {gamma}. Leave it out for the default."
        )
    alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].double()
    snr = alphas_cumprod / (1 - alphas_cumprod)
    clipped = snr.clamp_max(gamma)
    weights = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}
    return weights[scheduler.config.prediction_type].float()


def _training_target(scheduler: DDIMScheduler, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return images
    return scheduler.get_velocity(images, noise, timesteps)


def denoising_loss(
    model: nn.Module,
    scheduler: DDIMScheduler,
    images: Float[Tensor, "batch 2 y x"],
    noise: Float[Tensor, "batch 2 y x"],
    timesteps: Int[Tensor, " batch"],
    snr_gamma: float | int | None = None,
) -> Float[Tensor, ""]:
    """Return the weighted mean squared error of the network's prediction ("epsilon matching", paper section 3.1).

    Args:
        model: prior, a `UNet2DModel`, perhaps wrapped. Of four output channels (learned sigma) the first two count.
        scheduler: scheduler that adds the noise and says what is predicted.
        images: real and imaginary parts of clean images.
        noise: standard normal noise.
        timesteps: timesteps, one an image.
        snr_gamma: gamma of the weights; see `min_snr_weights`.
    """
    noisy = scheduler.add_noise(images, noise, timesteps)
    prediction = model(noisy, timesteps).sample[:, :2].float()
    target = _training_target(scheduler, images, noise, timesteps)
    error = (prediction - target).square().mean(dim=(1, 2, 3))
    return (error * min_snr_weights(scheduler, timesteps, snr_gamma)).mean()


@torch.no_grad()
def denoising_errors(
    model: nn.Module,
    scheduler: DDIMScheduler,
    images: Float[Tensor, "batch 2 y x"],
    timesteps: Sequence[int],
    generator: Generator,
    batch_size: int = 16,
) -> dict[int, dict[str, float]]:
    """Measure errors on fixed images at fixed noise levels: comparable between runs of any prediction type.

    Args:
        model: prior, a `UNet2DModel`, perhaps wrapped.
        scheduler: scheduler that adds the noise and says what is predicted.
        images: real and imaginary parts of clean images.
        timesteps: noise levels to test.
        generator: generator of the noise; one seed, one noise, whatever the batch size.
        batch_size: batch size of the network calls.

    Returns:
        For each timestep ``"eps_mse"``, the mean squared error of the noise, and ``"x0_mse"``, that of the clean image
        (image unit squared: the 0.99 quantile is 1), both per real channel.
    """
    was_training = model.training
    model.eval()
    table = {}
    for timestep in timesteps:
        alpha_cumprod = float(scheduler.alphas_cumprod[timestep])
        x0_error, n_done = 0.0, 0
        for batch in images.split(batch_size):
            noise = torch.stack([torch.randn(batch.shape[1:], generator=generator) for _ in batch]).to(batch)
            steps = torch.full((len(batch),), timestep, device=batch.device)
            noisy = scheduler.add_noise(batch, noise, steps)
            output = model(noisy, steps).sample[:, :2].float()
            if scheduler.config.prediction_type == "epsilon":
                clean = (noisy - (1 - alpha_cumprod) ** 0.5 * output) / alpha_cumprod**0.5
            elif scheduler.config.prediction_type == "sample":
                clean = output
            else:
                clean = alpha_cumprod**0.5 * noisy - (1 - alpha_cumprod) ** 0.5 * output
            x0_error += (clean - batch).double().square().mean(dim=(1, 2, 3)).sum().item()
            n_done += len(batch)
        x0_mse = x0_error / n_done
        table[timestep] = {"eps_mse": x0_mse * alpha_cumprod / (1 - alpha_cumprod), "x0_mse": x0_mse}
    model.train(was_training)
    return table
