"""Simulates a multi-coil acquisition of magnitude images: phase, receive coils, noise and undersampling masks.

Object and measurement share one pixel grid, and the maps are those that the measurement was made with. Both are kinder
than a scanner.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Complex64, Float

from ...mri.masks import poisson_disc_mask
from ..synthetic.acquisition import coil_maps, fft2c, ifft2c
from ..synthetic.anatomy import SmoothField

N_MASKS = 16  # for each acceleration; a scan draws one of them. To draw a mask takes seconds

__all__ = ["AcquisitionConfig", "SimulatedScanner", "patient_generator"]


@dataclass(frozen=True)
class AcquisitionConfig:
    """Settings of the simulation; the same values and seed give the same data.

    Attributes:
        size: number of rows and columns of the matrix. Images are averaged to it.
        field_of_view_mm: length of both sides of the image.
        slice_thickness_mm: thickness of a slice.
        n_coils: number of receive coils, in a ring around the head; above 8 in two rings.
        snr: 0.99 quantile of the image over the standard deviation of the real part of the noise, in the fully
            sampled image.
        accelerations: one stored Poisson-disc mask for each.
        calibration_shape: fully sampled box (y, x) of the masks.
        seed: seed of everything that is drawn.
    """

    size: int = 192
    field_of_view_mm: float = 250.9
    slice_thickness_mm: float = 6.0
    n_coils: int = 8
    snr: float = 50.0
    accelerations: tuple[float, ...] = (4.0, 8.0, 12.0, 16.0)
    calibration_shape: tuple[int, int] = (24, 24)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a number is out of range.
        """
        if self.size < 8 or self.n_coils < 1:
            raise ValueError(
                f"`size` must be at least 8 and `n_coils` at least 1, got {self.size} and {self.n_coils}."
            )
        if not (0 < self.snr < float("inf")):
            raise ValueError(f"`snr` must be a positive number, got {self.snr}.")

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        """Size of a voxel (slice, y, x)."""
        edge = self.field_of_view_mm / self.size
        return self.slice_thickness_mm, edge, edge


def patient_generator(seed: int, patient_id: str, purpose: str) -> np.random.Generator:
    """Return the random numbers of one patient and purpose; other patients in the data do not change them."""
    digest = hashlib.sha256(f"{patient_id} {purpose}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


class SimulatedScanner:
    """A scan of one patient.

    Args:
        config: settings of the simulation.
        patient_id: the patient, whose phase, scanner unit, masks and noise are drawn from it and the seed.
    """

    def __init__(self, config: AcquisitionConfig, patient_id: str) -> None:
        """Draw what all slices share."""
        self.config, self.patient_id = config, patient_id
        rng = patient_generator(config.seed, patient_id, "scanner")
        edge = np.float32(config.voxel_size_mm[1])
        position = (np.arange(config.size, dtype=np.float32) - config.size / 2) * edge
        self.rows, self.columns = np.meshgrid(position, position, indexing="ij")
        self.phase_waves = SmoothField(rng, (90.0, 300.0))
        self.phase_slope = rng.normal(0.0, 0.012, 2).astype(np.float32)  # rad per mm
        self.phase_offset = float(rng.uniform(0, 2 * np.pi))
        self.unit = float(np.exp(rng.normal(4.0, 0.5)))  # arbitrary scanner unit
        self.mask_seed = int(rng.integers(N_MASKS))
        radius = 0.58 * config.field_of_view_mm  # the loops lie just outside of the image
        self.maps = coil_maps(0.0, position, position, config.n_coils, radius_mm=radius)[0]

    def measure(
        self, image: Float[np.ndarray, "y x"], tumour: Bool[np.ndarray, "y x"], index: int
    ) -> dict[str, np.ndarray]:
        """Simulate one slice.

        Args:
            image: magnitude image, at any square matrix.
            tumour: outline of the tumour.
            index: number of the slice among all slices of the patient.

        Returns:
            "kspace" (y, x, 1, coil), "maps" (y, x, coil) and "target" (y, x, 1), complex64, and "labels" (y, x),
            uint8.

        Raises:
            ValueError: the image is not square, not finite or empty.
        """
        config = self.config
        if image.shape[0] != image.shape[1] or not np.isfinite(image).all():
            raise ValueError(f"`image` must be square and finite, got shape {image.shape}.")
        magnitude = np.maximum(_average(image, config.size), 0)
        scale = np.quantile(magnitude, 0.99)
        if scale == 0:
            raise ValueError("`image` must show something, got an empty one.")
        position_mm = np.float32(index * config.slice_thickness_mm)
        slope_y, slope_x = self.phase_slope
        phase = 0.7 * self.phase_waves(position_mm, self.rows, self.columns) + self.phase_offset
        phase = phase + slope_y * self.rows + slope_x * self.columns
        signal = self.maps * (magnitude * (self.unit / scale) * np.exp(1j * phase))
        noise = self._noise(index, signal.shape)
        kspace = (fft2c(signal) + noise).astype(np.complex64)
        target = (self.maps.conj() * ifft2c(kspace)).sum(axis=0)
        return {
            "kspace": kspace.transpose(1, 2, 0)[:, :, None],
            "maps": self.maps.transpose(1, 2, 0),
            "target": target.astype(np.complex64)[..., None],
            "labels": (_average(tumour.astype(np.float32), config.size) >= 0.5).astype(np.uint8),
        }

    def _noise(self, index: int, shape: tuple[int, ...]) -> Complex64[np.ndarray, "coil y x"]:
        rng = patient_generator(self.config.seed, self.patient_id, f"noise of slice {index}")
        real, imaginary = rng.standard_normal((2, *shape), np.float32) * np.float32(self.unit / self.config.snr)
        return real + 1j * imaginary

    def masks(self) -> dict[float, Bool[np.ndarray, "y x"]]:
        """Draw a Poisson-disc mask for each acceleration, the same for all slices."""
        config = self.config
        arguments = config.size, config.calibration_shape, (config.seed, self.mask_seed)
        return {acceleration: _mask(acceleration, *arguments) for acceleration in config.accelerations}


@cache
def _mask(
    acceleration: float, size: int, calibration_shape: tuple[int, int], seed: tuple[int, int]
) -> Bool[np.ndarray, "y x"]:
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return poisson_disc_mask((size, size), acceleration, calibration_shape, number).mask


def _average(image: Float[np.ndarray, "y x"], size: int) -> Float[np.ndarray, "size size"]:
    """Mean over the area of each new pixel."""
    n = len(image)
    edges = np.arange(size + 1) * (n / size)
    starts, ends = edges[:-1, None], edges[1:, None]
    old = np.arange(n)
    overlap = np.clip(np.minimum(ends, old + 1) - np.maximum(starts, old), 0, None) * (size / n)
    return (overlap @ image @ overlap.T).astype(np.float32)
