"""Reads scans for `benchmark_real.py` and undersamples them: real raw k-space, real magnitude images, test scans."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from sgr_diffusers.data.skm_tea import SkmTeaScan, list_scans
from sgr_diffusers.data.synthetic.acquisition import loop_sensitivities
from sgr_diffusers.data.synthetic.knee import SyntheticKneeConfig, SyntheticScan
from sgr_diffusers.mri.masks import poisson_disc_mask
from sgr_diffusers.mri.operators import SenseOperator, fft2c, ifft2c

N_COILS, FIELD_OF_VIEW_MM = 8, 150.0
FSE_VOXEL_MM, LOW_RESOLUTION_MM = (0.5, 0.6), 1.5
N_PATIENTS = 16


@dataclass(frozen=True)
class Source:
    """Where scans come from and how magnitude images are measured.

    Attributes:
        real_dir: folder of knee_fse_axial14.npz, brain16_gre96.h5 and brain_t1c.h5; `None` where they are not read.
        data_dir: folder in the SKM-TEA layout; `None` where it is not read.
        snr: 0.99 quantile of a magnitude image over the standard deviation of the real part of the noise.
        seed: seed of the phase and of the noise.
    """

    real_dir: Path | None = None
    data_dir: Path | None = None
    snr: float = 40.0
    seed: int = 0


@dataclass(frozen=True)
class Scan:
    """One fully sampled slice.

    Attributes:
        kind: key of `READERS`.
        name: name of the scan, unique within its kind.
        kspace: fully sampled k-space `(coil, y, x)`, complex64, with its noise.
        coil_maps: coil sensitivities `(coil, y, x)`, complex64, with unit sum of squares in the body.
        noise_free: image `(y, x)` without the noise; `None` for measured data.
        sigma: standard deviation of the real part of the noise in k-space, in the unit of `kspace`.
        stored: scan whose stored masks are to be used; `None` to draw masks.
    """

    kind: str
    name: str
    kspace: torch.Tensor
    coil_maps: torch.Tensor
    noise_free: torch.Tensor | None
    sigma: float
    stored: SkmTeaScan | None = None


@dataclass(frozen=True)
class Case:
    """One undersampled slice with its references.

    Attributes:
        scan: the slice.
        acceleration: nominal acceleration.
        mask: sampling mask `(y, x)`, bool.
        kspace: undersampled k-space `(coil, y, x)`.
        references: images `(y, x)`: "fully sampled", which shares its noise with the measurement, and where it is
            known "noise free".
    """

    scan: Scan
    acceleration: float
    mask: torch.Tensor
    kspace: torch.Tensor
    references: dict[str, torch.Tensor]

    @property
    def name(self) -> str:
        """Name of the case, fit for a file name."""
        return f"{self.scan.kind}_{self.scan.name}_{self.acceleration:g}x"

    @property
    def operator(self) -> SenseOperator:
        """Forward model of the measurement."""
        return SenseOperator(self.scan.coil_maps, self.mask)


def undersample(scan: Scan, acceleration: float, seed: int) -> Case:
    """Undersample a scan by its stored mask, or by a Poisson disc mask with a calibration box of n/8, at most 24."""
    shape = tuple(scan.kspace.shape[-2:])
    if scan.stored is not None:
        mask = scan.stored.mask(acceleration)
    else:
        calibration = tuple(min(24, 2 * round(n / 16)) for n in shape)
        mask = poisson_disc_mask(shape, acceleration, calibration, seed=seed).mask
    mask = torch.from_numpy(mask)
    everything = SenseOperator(scan.coil_maps, torch.ones_like(mask))
    references = {"fully sampled": everything.adjoint(scan.kspace)}
    if scan.noise_free is not None:
        references["noise free"] = scan.noise_free
    return Case(scan, acceleration, mask, scan.kspace * mask, references)


@lru_cache(maxsize=4)
def simulated_maps(shape: tuple[int, int]) -> torch.Tensor:
    """Coil maps `(coil, y, x)` of loops around the field of view, with unit sum of squares."""
    positions = [(np.arange(n) / n - 0.5) * FIELD_OF_VIEW_MM for n in shape]
    fields = loop_sensitivities(0.0, *positions, N_COILS)
    return torch.from_numpy(fields / np.sqrt((np.abs(fields) ** 2).sum(0)))


def simulate(kind: str, name: str, image: torch.Tensor, seed: list[int], snr: float) -> Scan:
    """Measure a complex image `(y, x)` by simulated coils, with noise of `1 / snr` of its 0.99 quantile."""
    sigma = float(torch.quantile(image.abs(), 0.99)) / snr
    maps = simulated_maps(tuple(image.shape))
    kspace = fft2c(maps * image)
    noise = np.random.default_rng(seed).standard_normal((*kspace.shape, 2), np.float32)
    return Scan(kind, name, kspace + sigma * torch.view_as_complex(torch.from_numpy(noise)), maps, image, sigma)


def with_smooth_phase(magnitude: np.ndarray, seed: list[int]) -> torch.Tensor:
    """Give a magnitude image a random phase: smooth over a quarter of the image, plus a slope."""
    rng = np.random.default_rng(seed)
    waves = gaussian_filter(rng.standard_normal(magnitude.shape), [n / 8 for n in magnitude.shape], mode="wrap")
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in magnitude.shape), indexing="ij")
    slope = rng.normal(0, 1, 2)
    phase = waves / waves.std() + slope[0] * y + slope[1] * x + rng.uniform(0, 2 * np.pi)
    return torch.from_numpy(magnitude * np.exp(1j * phase)).to(torch.complex64)


def crop_kspace(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Resample an image `(y, x)` to a smaller matrix over the same field of view, keeping its intensities."""
    y, x = (slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(image.shape, shape, strict=True))
    cropped = ifft2c(fft2c(image)[y, x])
    return cropped * (cropped.numel() / image.numel()) ** 0.5


def read_fse(source: Source) -> Iterator[Scan]:
    """Real knees (magnitude) at native size, by simulated coils."""
    yield from _fse(source, "fse", None)


def read_fse_low(source: Source) -> Iterator[Scan]:
    """Real knees (magnitude) resampled to about 1.5 mm, by simulated coils, with the noise of the native scan."""
    yield from _fse(source, "fse-low", LOW_RESOLUTION_MM)


def _fse(source: Source, kind: str, voxel_mm: float | None) -> Iterator[Scan]:
    with np.load(source.real_dir / "knee_fse_axial14.npz") as file:
        images, names = file["images"].astype(np.float32), file["ids"]
    for number, (magnitude, name) in enumerate(zip(images, names, strict=True)):
        image, snr = with_smooth_phase(magnitude, [source.seed, 1, number]), source.snr
        if voxel_mm is not None:
            sizes = zip(magnitude.shape, FSE_VOXEL_MM, strict=True)
            image = crop_kspace(image, tuple(2 * round(n * voxel / voxel_mm / 2) for n, voxel in sizes))
            snr *= (magnitude.size / image.numel()) ** 0.5
        yield simulate(kind, str(name), image, [source.seed, 2, number], snr)


def read_brain16(source: Source) -> Iterator[Scan]:
    """Real raw k-space of a brain, fully sampled by 16 coils, with the stored maps of its reference."""
    with h5py.File(source.real_dir / "brain16_gre96.h5") as file:
        kspace, maps = (torch.from_numpy(file[key][()]) for key in ("kspace", "maps_bart"))
        sigma = float(file["noise_std_per_component"][()])
    yield Scan("brain16", "gre96", kspace, maps.reshape(kspace.shape), None, sigma)


def read_fold3(source: Source) -> Iterator[Scan]:
    """Real brains (magnitude), the middle slice of each of the first patients of fold 3, by simulated coils."""
    with h5py.File(source.real_dir / "brain_t1c.h5") as file:
        patients = np.where(file["fold"][()] == 3, file["patient"][()].astype(int), -1)
        for number, patient in enumerate(np.unique(patients[patients >= 0])[:N_PATIENTS]):
            slices = np.flatnonzero(patients == patient)
            magnitude = file["image"][int(slices[len(slices) // 2])].astype(np.float32) / 255
            image = with_smooth_phase(magnitude, [source.seed, 3, number])
            yield simulate("fold3", f"patient{patient}", image, [source.seed, 4, number], source.snr)


def read_folder(source: Source) -> Iterator[Scan]:
    """Test scans in the SKM-TEA layout: of each the middle one of the slices with tissue, by its stored masks."""
    for scan in list_scans(source.data_dir, "test"):
        slices = np.flatnonzero(scan.foreground)
        index = int(slices[len(slices) // 2])
        kspace, maps = (torch.from_numpy(array) for array in (scan.kspace(index), scan.coil_maps(index)))
        noise_free, sigma = _known_noise(scan, index) or (None, _outermost_deviation(kspace))
        yield Scan("folder", f"{scan.scan_id}_{index}", kspace, maps, noise_free, sigma, scan)


def _known_noise(scan: SkmTeaScan, index: int) -> tuple[torch.Tensor, float] | None:
    """The slice without noise, and the deviation of the noise; `None` for a scan that was not synthesised here."""
    with h5py.File(scan.kspace_file) as file:
        text = file.attrs.get("config")
    number = re.fullmatch(r"SYN_test_(\d+)", scan.scan_id)
    if text is None or number is None:
        return None
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()}
    config = SyntheticKneeConfig(**settings)
    clean = SyntheticScan(replace(config, snr=float("inf"), n_echoes=1), "test", int(number[1]))
    return torch.from_numpy(clean.slice(index)["target"][..., 0]), clean.unit / config.snr


def _outermost_deviation(kspace: torch.Tensor) -> float:
    """Standard deviation of the real part of the outermost 2 % of the k-space that was acquired."""
    is_acquired = kspace.abs().sum(0) > 0
    axes = (torch.linspace(-1, 1, n) for n in kspace.shape[1:])
    radius = torch.where(is_acquired, torch.cartesian_prod(*axes).norm(dim=1).reshape(is_acquired.shape), 0)
    return float(kspace[:, radius > torch.quantile(radius[is_acquired], 0.98)].real.std())


READERS = {
    "fse": read_fse,
    "fse-low": read_fse_low,
    "brain16": read_brain16,
    "fold3": read_fold3,
    "folder": read_folder,
}
