"""Compute the loss of the prior on complex slices, its errors on held-out slices, and pictures of what it can do."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..data.skm_tea import SkmTeaScan
from ..data.transforms import draw_flips, draw_shifts, draw_uniform, mirror, rotate_phase, shift
from ..evaluation.metrics import psnr
from ..pipeline.networks import predict, size_multiple
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from .log import Validation
from .prior_loss import denoising_errors, denoising_loss, draw_timesteps, timestep_density
from .seeds import step_generator

__all__ = ["PriorLoss", "PriorPictures", "PriorValidation", "check_prior", "sample_images"]

logger = logging.getLogger(__name__)


def check_prior(unet: UNet2DModel, size: tuple[int, int]) -> None:
    """Refuse a network that does not fit the data.

    Args:
        unet: prior to check.
        size: size (y, x) of the slices.

    Raises:
        ValueError: wrong channels, or a size that the network cannot halve often enough.
    """
    channels = unet.config.in_channels, unet.config.out_channels
    if channels not in {(2, 2), (2, 4)}:
        raise ValueError(
            "The prior must have 2 input channels (real, imaginary) and 2 output channels, or 4 with a learned sigma, "
            f"got {channels[0]} in and {channels[1]} out. Start from a prior that `create_prior` made."
        )
    multiple = size_multiple(unet)
    if any(length % multiple for length in size):
        fitting = " ".join(str(-(-length // multiple) * multiple) for length in size)
        raise ValueError(
            f"Slices are {size[0]} x {size[1]} pixels, and this network of {len(unet.config.block_out_channels)} "
            f"levels needs multiples of {multiple}. Pass --size {fitting}."
        )


@dataclass
class PriorLoss:
    """Loss of a batch of slices, augmented: the `compute_loss` of `fit`.

    Attributes:
        scheduler: scheduler that adds the noise, and says what is predicted.
        snr_gamma: gamma of the min-SNR weights; `None` for none.
        timestep_sampling: way of drawing timesteps, one of `TIMESTEP_SAMPLING`; "importance" draws by the weights
            instead of multiplying.
        mirrored: whether left and right are exchanged in half of the slices.
        rotated: whether the global phase is random.
        max_shift: largest displacement (y, x) in pixels.
    """

    scheduler: DDIMScheduler
    snr_gamma: float | int | None = None
    timestep_sampling: str = "stratified"
    mirrored: bool = True
    rotated: bool = True
    max_shift: Sequence[int] = (0, 0)

    def __post_init__(self) -> None:
        """Turn weights into a density where timesteps are drawn by them.

        Raises:
            ValueError: `snr_gamma` is not positive.
        """
        density = timestep_density(self.scheduler, 5 if self.snr_gamma is None else self.snr_gamma)
        self._density = density if self.timestep_sampling == "importance" else None

    def __call__(self, network: nn.Module, batch: dict[str, Any], generator: Generator) -> Float[Tensor, ""]:
        """Mean over the batch; everything random comes from the generator."""
        images = batch["image"]
        n = len(images)
        if self.mirrored:
            images = mirror(images, draw_flips(n, 0.5, generator))
        if any(self.max_shift):
            images = shift(images, draw_shifts(n, tuple(self.max_shift), generator))
        if self.rotated:
            images = rotate_phase(images, draw_uniform(n, 0, 2 * torch.pi, generator))
        n_timesteps = self.scheduler.config.num_train_timesteps
        timesteps = draw_timesteps(n, n_timesteps, generator, self.timestep_sampling, self._density)
        noise = torch.randn(images.shape, generator=generator).to(images)
        gamma = None if self._density is not None else self.snr_gamma
        return denoising_loss(network, self.scheduler, images, noise, timesteps.to(images.device), gamma)


@dataclass
class PriorPictures:
    """What pictures to make of a prior in training.

    Attributes:
        scans: held-out scans, of which slices are undersampled, by the stored mask nearest to 8x, and reconstructed.
        n_samples: number of unconditional samples.
        n_slices: number of reconstructed slices, in the middle of so many scans.
        n_steps: number of steps of sampling.
        size: size (y, x) of the samples.
        echo: echo of the scans.
        seed: seed of all noise; the same in every validation, so that pictures can be compared.
    """

    scans: Sequence[SkmTeaScan]
    n_samples: int
    n_slices: int
    n_steps: int
    size: tuple[int, int]
    echo: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Read the slices, so that a missing mask is found before the first step.

        Raises:
            ValueError: a scan stores no masks, or a number is out of range.
        """
        for name in ("n_samples", "n_slices"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        self._slices = []
        for number in range(self.n_slices):
            scan = self.scans[number % len(self.scans)]
            row = scan.n_slices * (number // len(self.scans) + 1) // (self.n_slices // len(self.scans) + 2)
            accelerations = [float(name.removeprefix("poisson_").rstrip("x")) for name in scan.mask_names]
            if not accelerations:
                raise ValueError(f"{scan.kspace_file} stores no masks: pass --validation-pictures 0.")
            mask = scan.mask(min(accelerations, key=lambda acceleration: abs(acceleration - 8)))
            parts = scan.kspace(row, self.echo), mask, scan.coil_maps(row), scan.target(row, self.echo)
            self._slices.append([torch.from_numpy(np.ascontiguousarray(part)) for part in parts])

    def __call__(self, unet: UNet2DModel, scheduler: DDIMScheduler) -> Validation:
        """Samples; of each slice the fully sampled image, its reconstruction and five times the error (magnitudes)."""
        generator = torch.Generator().manual_seed(self.seed)
        pictures, results = {}, {}
        if self.n_samples:
            samples = sample_images(unet, scheduler, self.n_samples, self.size, generator, self.n_steps)
            pictures["samples"] = np.stack([_grey(sample, 1.1) for sample in samples.norm(dim=1).cpu().numpy()])
        pipe = SGRMRIPipeline(unet, DDIMScheduler.from_config(scheduler.config), None)
        pipe.set_progress_bar_config(disable=True)
        rows, scores = [], []
        for kspace, mask, maps, target in self._slices:
            generator = torch.Generator().manual_seed(self.seed)
            with warnings.catch_warnings():  # of a prior that has not learned enough yet; the score says so
                warnings.filterwarnings("ignore", message="the reconstruction misses the measured")
                out: Any = pipe(
                    kspace * mask,
                    mask,
                    target="none",
                    coil_maps=maps,
                    num_inference_steps=self.n_steps,
                    generator=generator,
                )
            images = out.images[0, 0, 0].cpu()
            scores.append(psnr(images[None], target[None]))
            full, reconstructed = target.abs().numpy(), images.abs().numpy()
            white = 1.1 * float(np.quantile(full, 0.99))
            rows += [_grey(full, white), _grey(reconstructed, white), _grey(5 * np.abs(reconstructed - full), white)]
        if rows and len({row.shape for row in rows}) == 1:
            pictures["reconstructions"] = np.stack(rows)
        if scores:
            results["val_psnr"] = float(np.mean(scores))
        return Validation(results, pictures)


@dataclass
class PriorValidation:
    """Errors by noise level on fixed slices, and pictures: the `validate` of `fit`.

    Attributes:
        scheduler: scheduler of the loss.
        images: clean slices ``(batch, 2, y, x)``, on the device.
        timesteps: noise levels to test.
        seed: seed of the noise.
        pictures: pictures to make; `None` for none.
    """

    scheduler: DDIMScheduler
    images: Float[Tensor, "batch 2 y x"]
    timesteps: Sequence[int]
    seed: int = 0
    pictures: PriorPictures | None = None

    def __post_init__(self) -> None:
        """Find out before the first step what would fail at the first validation.

        Raises:
            ValueError: there is no slice or timestep, or the scheduler does not have that many.
        """
        n_timesteps = self.scheduler.config.num_train_timesteps
        if not len(self.images):
            raise ValueError("`images` is empty: at least one validation slice is needed.")
        if not self.timesteps or not all(0 <= timestep < n_timesteps for timestep in self.timesteps):
            raise ValueError(f"`timesteps` of the validation must be in 0..{n_timesteps - 1}, got {self.timesteps}.")
        if self.pictures is not None and not 1 <= self.pictures.n_steps <= n_timesteps:
            raise ValueError(
                f"`n_steps` of the validation's pictures must be in 1..{n_timesteps}, got {self.pictures.n_steps}."
            )

    def __call__(self, network: UNet2DModel) -> Validation:
        """`val_eps_mse`, the mean over noise levels; `val_errors` for each; `val_psnr` of the reconstructions."""
        was_training = network.training
        network.eval()
        table = denoising_errors(network, self.scheduler, self.images, self.timesteps, step_generator(self.seed, 0))
        outcome = self.pictures(network, self.scheduler) if self.pictures is not None else Validation()
        network.train(was_training)
        logger.info("validation  t        %s", " ".join(f"{timestep:8d}" for timestep in table))
        for key in ("eps_mse", "x0_mse"):
            logger.info("validation  %-8s %s", key, " ".join(f"{row[key]:8.5f}" for row in table.values()))
        mean = float(np.mean([row["eps_mse"] for row in table.values()]))
        text = "".join(f"  {key} {value:.2f}" for key, value in outcome.results.items())
        logger.info("validation  mean eps_mse %.5f%s", mean, text)
        return Validation({"val_eps_mse": mean, **outcome.results, "val_errors": table}, outcome.pictures)


@torch.no_grad()
def sample_images(
    unet: UNet2DModel, scheduler: DDIMScheduler, n: int, size: tuple[int, int], generator: Generator, n_steps: int = 50
) -> Float[Tensor, "n 2 y x"]:
    """Draw unconditional samples of the prior by DDIM, without fresh noise.

    Args:
        unet: prior, in evaluation mode.
        scheduler: scheduler of its training.
        n: number of samples.
        size: size (y, x) of the samples.
        generator: generator of the first noise, on the CPU.
        n_steps: number of steps of sampling.
    """
    sampler = DDIMScheduler.from_config(scheduler.config)
    sampler.set_timesteps(n_steps)
    images = torch.randn((n, 2, *size), generator=generator).to(unet.device)
    for timestep in sampler.timesteps:
        images = sampler.step(predict(unet, images, timestep.to(unet.device)), timestep, images).prev_sample
    return images


def _grey(image: np.ndarray, white: float) -> np.ndarray:
    return (255 * np.clip(image / white, 0, 1)).astype(np.uint8)
