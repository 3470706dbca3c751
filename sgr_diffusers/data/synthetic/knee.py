"""Writes a data set of synthetic multi-coil knee scans in the SKM-TEA layout, drawn from a seed at a given size.

Everything written for these files runs on the real ones: HDF5 hybrid k-space, coil maps, target, stored Poisson masks,
NIfTI labels 1-6, annotation json with splits, voxel spacing and (here only) the rare findings of each scan. Anatomy
and painting are in ``anatomy.py`` and ``rendering.py``; this module adds what a scanner adds: coils, phase,
limited resolution, noise.

The object is painted at twice the resolution per axis and its k-space is cropped, so that partial volume and
truncation are those of a measurement, not of a resampled picture.
"""

import math
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...mri.masks import poisson_disc_mask
from ...utils.disk import only_run
from ...utils.processes import end_with_parent
from ..scan_writer import check_data_folder, remove_leftovers, write_annotations, write_scan_files
from .acquisition import centred, coil_maps, fft2c, ifft2c
from .anatomy import Knee, SmoothField
from .rendering import KneeRenderer

SPLITS = ("train", "val", "test", "calibration")
APPEARANCES = ("standard", "varied")
_OVERSAMPLING = 2
_FILE_LABELS = np.array([0, 1, 2, 3, 5], np.uint8)  # of class 0 to 4; varied knees do not tell medial from lateral
_CENTRE_U_MM = 14.0  # the joint line lies this far below the middle of the field of view, as in SKM-TEA

_MOST_SCANS = 1_000_000


@dataclass(frozen=True)
class SyntheticKneeConfig:
    """What a synthetic data set looks like; the same values and seed write the same data.

    Attributes:
        matrix_shape: number of voxels along (x, ky, kz) = (SI, AP, LR).
        voxel_size_mm: spacing along (x, ky, kz). Slices are sampled as thin planes: with 2.5 mm the stack has the
            spacing of the paper's evaluation, every 8th SKM-TEA slice.
        n_coils: number of receive coils; above 8 they are arranged in two rings.
        n_echoes: number of echoes, 1 or 2 (qDESS).
        snr: signal of intensity 1 (about the 0.99 quantile of a slice) over the standard deviation of the real part of
            the noise in the coil-combined, fully sampled image. The default is high because voxels are large: one of
            1.6 x 1.6 mm has ten times the area of SKM-TEA's.
        accelerations: one stored Poisson disc mask each, counted on the acquired grid.
        acquired_fraction: share of each in-plane k-space axis that is acquired; the rest is zero, as in SKM-TEA's
            zero-padded files.
        calibration_shape: fully sampled box of the masks, centred. The default is about the share of the matrix that
            SKM-TEA's box has, 24 x 24 of 512 x 160: 0.8 % against 0.7 %. Scans of the bundled case and of the bundled
            checkpoint's evaluation were written before, with a box of 12 x 12, one column off the centre.
        finding_probability: probability of each rare finding per scan.
        rl_fraction: share of scans stored right-to-left rather than left-to-right.
        appearance: ``"standard"`` for the contrast of a qDESS scan with water excitation and the usual pose;
            ``"varied"`` for a contrast, texture, shading, phase, resolution and pose drawn anew for every scan, as
            `VariedImages` draws training images, with one echo.
        seed: seed of the whole data set.
    """

    matrix_shape: tuple[int, int, int] = (64, 96, 80)
    voxel_size_mm: tuple[float, float, float] = (2.5, 1.6, 1.6)
    n_coils: int = 8
    n_echoes: int = 2
    snr: float = 100.0
    accelerations: tuple[float, ...] = (4.0, 8.0, 12.0, 16.0)
    acquired_fraction: float = 0.94
    calibration_shape: tuple[int, int] = (8, 8)
    finding_probability: float = 0.12
    rl_fraction: float = 0.12
    appearance: str = "standard"
    seed: int = 0

    def __post_init__(self):
        """Refuse impossible sizes."""
        if len(self.matrix_shape) != 3 or min(self.matrix_shape) < 1 or min(self.matrix_shape[1:]) < 16:
            raise ValueError(
                f"matrix_shape: expected (x, ky, kz) with at least 16 voxels in plane, got {self.matrix_shape}."
            )
        if len(self.voxel_size_mm) != 3 or not all(0 < edge < math.inf for edge in self.voxel_size_mm):
            raise ValueError(
                f"voxel_size_mm: expected three positive, finite numbers (x, ky, kz), got {self.voxel_size_mm}."
            )
        if self.n_echoes not in (1, 2):
            raise ValueError(f"n_echoes: expected 1 or 2 (qDESS has two echoes), got {self.n_echoes}.")
        if self.appearance not in APPEARANCES:
            raise ValueError(f"appearance: expected one of {APPEARANCES}, got {self.appearance!r}.")
        if self.appearance == "varied" and self.n_echoes != 1:
            raise ValueError(f"n_echoes: scans of varied appearance have 1 echo, got {self.n_echoes}.")
        if self.n_coils < 1 or not self.snr > 0:
            raise ValueError(f"n_coils and snr: expected positive numbers, got {self.n_coils} and {self.snr}.")
        if not 0 <= self.finding_probability <= 1:
            raise ValueError(f"finding_probability: expected a number from 0 to 1, got {self.finding_probability}.")
        if not 0 < self.acquired_fraction <= 1:
            raise ValueError(f"acquired_fraction: expected a number in (0, 1], got {self.acquired_fraction}.")

    @property
    def acquired_shape(self) -> tuple[int, int]:
        """Shape (ky, kz) of the acquired part of k-space, which is also that of the stored masks.

        As much is left out on both sides, so that zero-padding keeps the centre of the masks at that of k-space.
        """
        n_ky, n_kz = (max(n - 2 * round((1 - self.acquired_fraction) * n / 2), 1) for n in self.matrix_shape[1:])
        return n_ky, n_kz


class SyntheticScan:
    """One scan, computed slice by slice.

    Args:
        config: settings of the data set, see :class:`SyntheticKneeConfig`.
        split: name of the split, ``"train"``, ``"val"`` or ``"test"``.
        number: number of the scan within its split. Adding scans does not change the others.
    """

    def __init__(self, config: SyntheticKneeConfig, split: str, number: int):
        """Draw the knee and the scanner's settings."""
        self.config = config
        key = [config.seed, SPLITS.index(split), number]
        anatomy, texture, scanner, self._noise_seed = np.random.SeedSequence(key).spawn(4)
        self.knee = Knee(np.random.default_rng(anatomy), config.finding_probability)
        self.renderer = KneeRenderer(self.knee, np.random.default_rng(texture))
        rng = np.random.default_rng(scanner)
        self.phase_waves = SmoothField(rng, (90.0, 300.0))
        self.phase_slope = rng.normal(0.0, 0.012, 3).astype(np.float32)  # rad per mm
        self.phase_offset = float(rng.uniform(0, 2 * np.pi))
        self.unit = float(np.exp(rng.normal(4.0, 0.5)))  # arbitrary scanner unit
        self.shading_power = float(rng.uniform(0.2, 0.5))  # what the scanner's intensity correction leaves
        self.orientation = "SI", "AP", "RL" if rng.random() < config.rl_fraction else "LR"
        self.mask_seed = int(rng.integers(2**31))

    def positions(self, oversampling: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions in mm: u of slices (superior first), a of rows, m (towards the left) of columns."""
        n, d = self.config.matrix_shape, self.config.voxel_size_mm
        u = _CENTRE_U_MM - (np.arange(n[0]) - n[0] / 2) * d[0]
        a, m = ((np.arange(k * oversampling) / oversampling - k / 2) * s for k, s in zip(n[1:], d[1:], strict=True))
        if self.orientation[2] == "LR":
            m = -m
        return u.astype(np.float32), a.astype(np.float32), m.astype(np.float32)

    def slice(self, index: int) -> dict[str, np.ndarray]:
        """Compute one slice.

        Args:
            index: position along x.

        Returns:
            ``kspace`` (ky, kz, echo, coil) complex64, ``maps`` (ky, kz, coil) complex64, ``target`` and
            ``noise_free``, the same image without noise, (ky, kz, echo) complex64, ``labels`` (ky, kz) uint8.
        """
        if self.config.appearance == "varied":
            image, labels = self._varied(index)
            u, a, m = self.positions()
            maps, _ = coil_maps(float(u[index]), a, m, self.config.n_coils)
            return self._measured(index, [fft2c(maps * (self.unit * image))], maps, labels)
        config = self.config
        (ny, nx), n_coils = config.matrix_shape[1:], config.n_coils
        u, a, m = self.positions(_OVERSAMPLING)
        maps_fine, shading = coil_maps(float(u[index]), a, m, n_coils)
        grid_a, grid_m = np.meshgrid(a, m, indexing="ij")
        *echoes, fractions = self.renderer.render(float(u[index]), grid_a, grid_m)
        slope = self.phase_slope
        phase = (
            0.7 * self.phase_waves(u[index], grid_a, grid_m)
            + slope[1] * grid_a
            + slope[2] * grid_m
            + slope[0] * u[index]
        )
        modulation = (
            self.unit * shading**self.shading_power * np.exp(1j * (phase + self.phase_offset)).astype(np.complex64)
        )
        crop = (slice(None), centred(ny * _OVERSAMPLING, ny), centred(nx * _OVERSAMPLING, nx))
        spectra = [fft2c(maps_fine * (modulation * echo))[crop] / _OVERSAMPLING for echo in echoes[: config.n_echoes]]
        maps = maps_fine[:, ::_OVERSAMPLING, ::_OVERSAMPLING]
        return self._measured(index, spectra, maps, _hard_labels(fractions, (ny, nx)))

    def _measured(
        self, index: int, spectra: list[np.ndarray], maps: np.ndarray, labels: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Add noise to the coils' k-space of every echo, keep what is acquired, and combine the coils."""
        config = self.config
        ny, nx = config.matrix_shape[1:]
        rng = np.random.default_rng(
            np.random.SeedSequence(self._noise_seed.entropy, spawn_key=(*self._noise_seed.spawn_key, index))
        )
        kspace = np.zeros((ny, nx, config.n_echoes, config.n_coils), np.complex64)
        target, noise_free = np.empty((2, ny, nx, config.n_echoes), np.complex64)
        acquired = tuple(centred(n, m) for n, m in zip((ny, nx), config.acquired_shape, strict=True))
        is_acquired = np.zeros((ny, nx), np.float32)
        is_acquired[acquired] = 1
        for echo, y in enumerate(spectra):
            noise = rng.standard_normal((2, *y.shape), np.float32) * (self.unit / config.snr)
            k = is_acquired * (y + noise[0] + 1j * noise[1])
            kspace[:, :, echo] = k.transpose(1, 2, 0)
            target[:, :, echo] = (maps.conj() * ifft2c(k)).sum(0)
            noise_free[:, :, echo] = (maps.conj() * ifft2c(is_acquired * y)).sum(0)
        return {
            "kspace": kspace,
            "maps": maps.transpose(1, 2, 0),
            "target": target,
            "noise_free": noise_free,
            "labels": labels,
        }

    def _varied(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw image and file labels of a slice; the generator of the scan gives all its slices one appearance."""
        import torch

        from .anatomy_bank import bank_slice
        from .appearance import VariedImages

        u, _, _ = self.positions()
        regions, picture = (torch.from_numpy(part.copy())[None] for part in bank_slice(self.renderer, float(u[index])))
        draw = VariedImages(regions, picture, None, (1, 0, 0, 0), 0, self.config.voxel_size_mm[1:])
        image, labels = draw(torch.Generator().manual_seed(self.mask_seed), 1, self.config.matrix_shape[1:])
        return image[0].numpy(), _FILE_LABELS[labels[0].numpy()]

    def labels(self, index: int) -> np.ndarray:
        """Return the file labels (ky, kz) of one slice, uint8, without computing its measurement."""
        if self.config.appearance == "varied":
            return self._varied(index)[1]
        u, a, m = self.positions(_OVERSAMPLING)
        *_, fractions = self.renderer.render(float(u[index]), *np.meshgrid(a, m, indexing="ij"))
        return _hard_labels(fractions, self.config.matrix_shape[1:])


def _hard_labels(fractions, shape):
    """The label that covers most of a pixel, where labels together cover at least half of it."""
    best, total, labels = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for label, fraction in sorted(fractions.items()):
        padded = np.pad(fraction, ((1, 0), (1, 0)), mode="edge")
        # pixel centres lie on every second fine point: area average with weights 1/4, 1/2, 1/4
        rows = 0.25 * padded[:-2:2] + 0.5 * padded[1:-1:2] + 0.25 * padded[2::2]
        area = 0.25 * rows[:, :-2:2] + 0.5 * rows[:, 1:-1:2] + 0.25 * rows[:, 2::2]
        labels = np.where(area > best, np.uint8(label), labels)
        best, total = np.maximum(best, area), total + area
    return np.where(total >= 0.5, labels, np.uint8(0))


def write_scan(root: str | os.PathLike, config: SyntheticKneeConfig, split: str, number: int) -> dict:
    """Write one scan and return its annotation.

    Args:
        root: folder of the data set.
        config: settings of the data set, see :class:`SyntheticKneeConfig`.
        split: name of the split, ``"train"``, ``"val"`` or ``"test"``.
        number: number within the split.

    Returns:
        The scan's entry of the annotation json. A scan that is already there, with the same configuration, is left as
        it is; files appear under their names only when complete.

    Raises:
        ValueError: if a scan of that name with another configuration is there.
    """
    scan = SyntheticScan(config, split, number)
    name = f"SYN_{split}_{number:03d}"

    def masks() -> dict[float, np.ndarray]:
        """Return the stored masks of the acquired grid."""
        shapes = config.acquired_shape, config.calibration_shape
        return {a: poisson_disc_mask(shapes[0], a, shapes[1], seed=scan.mask_seed).mask for a in config.accelerations}

    write_scan_files(
        root,
        name,
        asdict(config),
        config.matrix_shape,
        (config.n_echoes, config.n_coils),
        map(scan.slice, range(config.matrix_shape[0])),
        masks,
        config.voxel_size_mm,
        scan.orientation,
    )
    return {
        "id": SPLITS.index(split) * 100_000 + number,
        "file_name": f"{name}.h5",
        "scan_id": name,
        "subject_id": f"{split}_{number:03d}",
        "timepoint": 0,
        "voxel_spacing": list(config.voxel_size_mm),
        "matrix_shape": list(config.matrix_shape),
        "orientation": list(scan.orientation),
        "findings": scan.knee.findings,
    }


def write_synthetic_dataset(
    root: str | os.PathLike,
    n_scans: tuple[int, int, int] | tuple[int, int, int, int] = (120, 8, 20),
    config: SyntheticKneeConfig | None = None,
    *,
    n_workers: int = 1,
    progress: bool = True,
) -> Path:
    """Write a data set in the SKM-TEA layout.

    Args:
        root: folder to write to; scans already there (same configuration) are kept, so an interrupted run goes on.
        n_scans: number of (train, val, test) scans, and of scans to calibrate bounds with if a fourth one is given.
        config: settings, see :class:`SyntheticKneeConfig`; ``None`` is the size of the bundled checkpoint.
        n_workers: number of processes; memory is one slice and one label volume each.
        progress: flag to show a progress bar.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: for impossible sizes, or if ``root`` holds scans of another configuration.
        FileExistsError: another run is writing to ``root``, or it holds something else than a data set.
        DiskError: a scan cannot be written.
    """
    config = config or SyntheticKneeConfig()
    if len(n_scans) not in (3, 4) or min(n_scans) < 0 or not 0 < sum(n_scans) <= _MOST_SCANS:
        raise ValueError(
            "n_scans: expected (train, val, test) or (train, val, test, calibration) counts with at least one scan "
            f"and at most {_MOST_SCANS}, got {n_scans}."
        )
    root = Path(root)
    splits = SPLITS[: len(n_scans)]
    jobs = [(root, config, split, number) for split, n in zip(splits, n_scans, strict=True) for number in range(n)]
    categories = [
        "Patellar Cartilage",
        "Femoral Cartilage",
        "Tibial Cartilage (Medial)",
        "Tibial Cartilage (Lateral)",
        "Meniscus (Medial)",
        "Meniscus (Lateral)",
    ]
    info = {"description": "Synthetic knees in the SKM-TEA layout (sgr_diffusers)", "config": asdict(config)}
    named = [{"id": number, "name": name} for number, name in enumerate(categories, start=1)]
    check_data_folder(root)
    with only_run(root):
        annotations = _write_scans(jobs, n_workers, progress)
        for split in splits:
            write_annotations(root, split, info, annotations[split], categories=named)
        remove_leftovers(root)
    return root


def _write_scans(
    jobs: list[tuple[Path, SyntheticKneeConfig, str, int]], n_workers: int, progress: bool
) -> dict[str, list[dict]]:
    """Write the scans in worker processes; returns the annotations of each split."""
    from tqdm import tqdm

    annotations: dict[str, list[dict]] = {split: [] for split in SPLITS}
    bar = tqdm(total=len(jobs), desc="scans", disable=not progress)
    try:
        with bar, ProcessPoolExecutor(n_workers, initializer=end_with_parent) as pool:
            for (_, _, split, _), annotation in zip(jobs, pool.map(write_scan, *zip(*jobs, strict=True)), strict=True):
                annotations[split].append(annotation)
                bar.update()
    except BrokenProcessPool as error:
        raise MemoryError(
            f"One of {n_workers} worker processes was ended from outside, perhaps for want of memory. Start again "
            "with fewer of them: what is written is kept."
        ) from error
    return annotations
