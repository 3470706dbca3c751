"""Train both networks on images of varied appearance, which are drawn where the network is: losses and validations.

The data loader yields numbers only. The loss draws a batch of images from the generator of the step, on the device of
the network, so that training resumes to the bit and a GPU does not wait for the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from ..data.synthetic.appearance import VariedImages
from ..data.synthetic.fields import uniform, view_per_image
from ..mri.operators import complex_to_channels
from .log import Validation
from .prior_loss import denoising_loss, draw_timesteps, timestep_density

__all__ = ["Draws", "VariedDice", "VariedPriorLoss", "VariedSegmentationLoss"]


class Draws(Dataset):
    """Numbers 0 to n - 1, one for each image of an epoch."""

    def __init__(self, n: int) -> None:
        """Keep the number of images of an epoch."""
        self.n = n

    def __len__(self) -> int:
        """Return the number of images of an epoch."""
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the number of an image."""
        return {"draw": index}


@dataclass
class _VariedBatches:
    """Draw batches of images that have about the same number of pixels, whatever the size of the images.

    Attributes:
        images: source of the images, on the device of the network.
        sizes: sizes (y, x) of images; each batch has one of them. The batch size counts for the first.
    """

    images: VariedImages
    sizes: Sequence[tuple[int, int]] = ((128, 128), (96, 80), (192, 160))

    def _draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor, Generator]:
        """Return images and labels, mirrored and scaled at random, and the generator on their device."""
        device = self.images.regions.device
        seed, choice = torch.randint(2**62, (2,), generator=generator).tolist()
        drawing = torch.Generator(device).manual_seed(seed)
        size = self.sizes[choice % len(self.sizes)]
        n = max(round(n * np.prod(self.sizes[0]) / np.prod(size)), 1)
        images, labels = self.images(drawing, n, size)
        for axis in (-1, -2):
            flips = view_per_image(uniform(drawing, (n,)) < 0.5)
            images = torch.where(flips, images.flip(axis), images)
            labels = torch.where(flips, labels.flip(axis), labels)
        # a zero-filled image has another 0.99 quantile than the fully sampled one
        gain = view_per_image(torch.exp(0.1 * torch.randn(n, generator=drawing, device=device)))
        return images * gain, labels, drawing


@dataclass(kw_only=True)
class VariedPriorLoss(_VariedBatches):
    """Compute the denoising loss of a prior on newly drawn images: the `compute_loss` of `fit`.

    Attributes:
        scheduler: scheduler that adds the noise and says what is predicted.
        snr_gamma: gamma of the min-SNR weights by which timesteps are drawn; `None` to draw them evenly.
    """

    scheduler: DDIMScheduler
    snr_gamma: float | int | None = 5

    def __post_init__(self) -> None:
        """Turn the weights into a density.

        Raises:
            ValueError: `snr_gamma` is not positive.
        """
        self._density = None if self.snr_gamma is None else timestep_density(self.scheduler, self.snr_gamma)

    def __call__(self, network: nn.Module, batch: dict[str, Any], generator: Generator) -> Float[Tensor, ""]:
        """Return the mean over the batch; everything random comes from the generator."""
        images, _, drawing = self._draw(len(batch["draw"]), generator)
        channels = complex_to_channels(images)
        method = "stratified" if self._density is None else "importance"
        n_timesteps = self.scheduler.config.num_train_timesteps
        timesteps = draw_timesteps(len(images), n_timesteps, generator, method, self._density)
        noise = torch.randn(channels.shape, generator=drawing, device=channels.device)
        return denoising_loss(network, self.scheduler, channels, noise, timesteps.to(channels.device))


@dataclass
class VariedSegmentationLoss(_VariedBatches):
    """Compute Dice and cross-entropy of a segmentation model on newly drawn knees: the `compute_loss` of `fit`.

    Small images have coarse pixels, in which cartilage is one or two pixels thick: the hardest to segment. So half of
    the batches are of small images.

    Attributes:
        max_noise: largest standard deviation of the noise that is added, relative to the 0.99 quantile.
    """

    sizes: Sequence[tuple[int, int]] = ((128, 128), (96, 80), (80, 64), (192, 160))
    max_noise: float | int = 0.08

    def __post_init__(self) -> None:
        """Create the criterion; Dice counts over the batch, as most slices lack some class."""
        from monai.losses import DiceCELoss

        self._criterion = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)

    def __call__(self, network: nn.Module, batch: dict[str, Any], generator: Generator) -> Float[Tensor, ""]:
        """Return the mean over the batch; everything random comes from the generator."""
        images, labels, drawing = self._draw(len(batch["draw"]), generator)
        deviation = view_per_image(self.max_noise * uniform(drawing, (len(images),)) ** 2)
        noise = torch.randn(images.shape, generator=drawing, device=images.device)
        magnitude = (images.abs() + deviation * noise).abs()
        return self._criterion(network(magnitude[:, None]).float(), labels[:, None])


@dataclass
class VariedDice:
    """Measure Dice per class on fixed images: the `validate` of `fit`.

    Attributes:
        magnitude: magnitude images, on the device of the network.
        labels: their labels.
        class_names: names of the classes, label 1 first.
    """

    magnitude: Float[Tensor, "n 1 y x"]
    labels: Int[Tensor, "n y x"]
    class_names: Sequence[str]

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> Validation:
        """Return `val_dice`, the mean over classes of `val_dice_per_class`, each over all pixels of all images."""
        was_training = network.training
        network.eval()
        segmentation = torch.cat([network(part).argmax(dim=1) for part in self.magnitude.split(16)])
        network.train(was_training)
        dice = {}
        for number, name in enumerate(self.class_names, 1):
            segmented, true = segmentation == number, self.labels == number
            dice[name] = float(2 * (segmented & true).sum() / (segmented.sum() + true.sum()).clamp_min(1))
        return Validation({"val_dice": float(np.mean(list(dice.values()))), "val_dice_per_class": dice})
