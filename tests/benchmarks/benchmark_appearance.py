"""Compares synthetic training images with real ones: brightness, spectrum, texture, and anatomy level by level.

    python tests/benchmarks/benchmark_appearance.py --real-dir DIR --output appearance.json

Every image is divided by the 0.99 quantile of its magnitude. Shares are of pixels by magnitude. Spectrum is the log10
of the power of the magnitude in a band of spatial frequency (cycles a pixel), relative to that of the lowest band.
Texture is the standard deviation in windows of 5 x 5 pixels over their mean, the median over pixels that are brighter
than 0.2. Quantiles are over images: varied images are meant to reach far beyond any one scanner. The row of a qDESS
knee was measured on eight slices of one scan that is not part of the data here.

Anatomy is the area of each cartilage in axial slices, by the distance from the lowest slice with femoral cartilage:
medians over manually labelled knees of the OAI, and over synthetic knees. Without --real-dir, only what is synthetic
is measured.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.ndimage import uniform_filter

from sgr_diffusers.data.skm_tea import CLASS_NAMES
from sgr_diffusers.data.synthetic.anatomy import Knee
from sgr_diffusers.data.synthetic.anatomy_bank import BANK_PIXEL_MM, LABEL_OF_REGION, bank_slice, render_bank
from sgr_diffusers.data.synthetic.appearance import VariedImages
from sgr_diffusers.data.synthetic.rendering import KneeRenderer
from sgr_diffusers.figures.tables import format_table
from sgr_diffusers.utils.files import write_json
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

MAGNITUDES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
BANDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45)
QDESS = {
    "share": [0.03, 0.41, 0.14, 0.08, 0.07, 0.06, 0.06, 0.06, 0.04, 0.02, 0.01, 0.01],
    "spectrum": [0, -0.94, -1.60, -2.21, -2.62],
}
CARTILAGES = {2: "femoral_cartilage", 4: "tibial_cartilage", 6: "patellar_cartilage"}  # labels of the OAI file
LEVELS_MM = tuple(range(-6, 49, 6))  # positive above the lowest slice with femoral cartilage
_SEED = 20_000_000  # no training run and no test has knees of these seeds


def spectrum(image: np.ndarray) -> np.ndarray:
    """Log10 of the mean power of an image `(y, x)` in each of `BANDS`, relative to the first."""
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, image.shape), indexing="ij"))
    means = [power[(radius >= low) & (radius < high)].mean() for low, high in itertools.pairwise(BANDS)]
    return np.log10(np.asarray(means) / means[0])


def texture(image: np.ndarray) -> float:
    """Median over pixels above 0.2 of the standard deviation over the mean in windows of 5 x 5 pixels."""
    mean, square = uniform_filter(image, 5), uniform_filter(image**2, 5)
    deviation = np.sqrt(np.maximum(square - mean**2, 0)) / np.maximum(mean, 1e-6)
    return float(np.median(deviation[image > 0.2])) if (image > 0.2).any() else float("nan")


def statistics(images: np.ndarray) -> dict[str, Any]:
    """Measure magnitude images `(n, y, x)`: shares, spectrum, texture, and quantiles over the images."""
    images = images / np.quantile(images, 0.99, axis=(1, 2), keepdims=True)
    spectra = np.stack([spectrum(image) for image in images])
    textures = np.array([texture(image) for image in images])
    return {
        "n": len(images),
        "share": (np.histogram(images, [*MAGNITUDES, np.inf])[0] / images.size).round(4).tolist(),
        "spectrum": spectra.mean(axis=0).round(3).tolist(),
        "spectrum 10 % and 90 %": np.quantile(spectra, [0.1, 0.9], axis=0).round(3).tolist(),
        "texture 10 %, 50 %, 90 %": np.nanquantile(textures, [0.1, 0.5, 0.9]).round(3).tolist(),
    }


def synthetic_images(n: int) -> dict[str, np.ndarray]:
    """Magnitude images of 128 x 128 pixels of each kind."""
    bank = render_bank(n, _SEED)
    kinds = {"varied knees": (1, 0, 0, 0), "standard knees": (0, 1, 0, 0), "dead leaves": (0, 0, 0, 1)}
    return {
        name: VariedImages(*bank, None, shares)(torch.Generator().manual_seed(0), n, (128, 128))[0].abs().numpy()
        for name, shares in kinds.items()
    }


def real_images(folder: Path, n: int) -> dict[str, np.ndarray]:
    """Magnitude images of real knees, and of the brains that may be trained on."""
    knees = np.load(folder / "knee_fse_axial14.npz")["images"].astype(np.float32)
    with h5py.File(folder / "brain_t1c.h5") as file:
        chosen = np.flatnonzero(np.isin(file["fold"][:], [1, 2]))
        some = chosen[np.linspace(0, len(chosen) - 1, n).round().astype(int)]
        brains = file["image"][some].astype(np.float32)
    # the knees were interpolated to twice their resolution
    return {"real knees, 3-D FSE": knees[:, ::2, ::2], "real brains, T1": brains}


def by_level(areas: np.ndarray, heights_mm: np.ndarray, lowest: int) -> np.ndarray:
    """Areas `(slice, class)` at `LEVELS_MM` above the slice `lowest`; NaN beyond the slices."""
    place = heights_mm - heights_mm[lowest]
    order = np.argsort(place)
    columns = [np.interp(LEVELS_MM, place[order], column[order], np.nan, np.nan) for column in areas.T]
    return np.stack(columns, axis=1)


def oai_areas(path: Path) -> np.ndarray:
    """Areas `(knee, level, class)` in mm^2 of manually labelled knees, slices 1.5 mm apart from top to bottom."""
    result = []
    with h5py.File(path) as file:
        for knee in file.values():
            counts = np.stack([(knee[:] == label).sum(axis=(1, 2)) for label in CARTILAGES], axis=1)
            areas = counts * 0.3646 * 0.7
            heights = -1.5 * np.arange(len(areas))
            result.append(by_level(areas, heights, int(np.flatnonzero(areas[:, 0] > 10)[-1])))
    return np.stack(result)


def synthetic_areas(n_knees: int) -> np.ndarray:
    """Areas `(knee, level, class)` in mm^2 of synthetic knees, slices 3 mm apart."""
    labels = [CLASS_NAMES.index(name) + 1 for name in CARTILAGES.values()]
    positions, result = np.arange(-40.0, 70.0, 3.0), []
    for seed in range(_SEED, _SEED + n_knees):
        renderer = KneeRenderer(Knee(np.random.default_rng(seed)), np.random.default_rng(seed + 1))
        slices = [np.take(LABEL_OF_REGION, bank_slice(renderer, float(u))[0]) for u in positions]
        counts = np.array([[(part == label).sum() for label in labels] for part in slices])
        areas = counts * BANK_PIXEL_MM**2
        femoral, tibial = (np.average(positions, weights=areas[:, k] + 1e-9) for k in (0, 1))
        heights = positions if femoral > tibial else -positions
        with_femur = np.flatnonzero(areas[:, 0] > 10)
        result.append(by_level(areas, heights, int(with_femur[np.argmin(heights[with_femur])])))
    return np.stack(result)


def level_rows(areas: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """One row for each level: median and range of each cartilage in each kind of knee."""
    rows = []
    for number, level in enumerate(LEVELS_MM):
        row = {"mm above": str(level)}
        for kind, values in areas.items():
            for k, name in enumerate(CARTILAGES.values()):
                column = values[:, number, k]
                column = column[np.isfinite(column)]
                text = f"{np.median(column):.0f} ({column.min():.0f}-{column.max():.0f})" if len(column) else "-"
                row[f"{name.split('_')[0]}, {kind}"] = text
        rows.append(row)
    return rows


def image_rows(measured: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """One row for each kind of images."""
    edges = [*(f"{low:g}-{high:g}" for low, high in itertools.pairwise(MAGNITUDES)), ">1"]
    bands = [f"power {low:g}-{high:g}" for low, high in itertools.pairwise(BANDS)][1:]
    rows = []
    for name, values in measured.items():
        row = {"images": name}
        row |= {edge: f"{share:.2f}" for edge, share in zip(edges, values["share"], strict=True)}
        row |= {band: f"{power:.2f}" for band, power in zip(bands, values["spectrum"][1:], strict=True)}
        row["texture"] = " ".join(f"{value:.2f}" for value in values.get("texture 10 %, 50 %, 90 %", [])) or "-"
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument(
        "--real-dir", type=Path, help="folder of knee_fse_axial14.npz, brain_t1c.h5, oai_manual_labels.h5"
    )
    parser.add_argument("--n-images", type=int, default=96, help="images of each synthetic kind")
    parser.add_argument("--n-knees", type=int, default=12, help="synthetic knees whose anatomy is measured")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    images = synthetic_images(args.n_images)
    areas = {"synthetic": synthetic_areas(args.n_knees)}
    if args.real_dir is not None:
        images = real_images(args.real_dir, args.n_images) | images
        areas = {"OAI": oai_areas(args.real_dir / "oai_manual_labels.h5")} | areas
    measured = {"a real knee, qDESS": {"n": 8, **QDESS}} | {name: statistics(part) for name, part in images.items()}
    rows, levels = image_rows(measured), level_rows(areas)
    print(format_table(rows))
    print("\nAreas in mm^2: median (range) over knees\n")
    print(format_table(levels))
    command = " ".join(["python", "tests/benchmarks/benchmark_appearance.py", *(arguments or sys.argv[1:])])
    knees = {kind: len(values) for kind, values in areas.items()}
    write_json(args.output, {"command": command, "images": measured, "knees": knees, "rows": rows, "levels": levels})


if __name__ == "__main__":
    main()
