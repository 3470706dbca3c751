"""Measures Dice of a segmentation network on fully sampled test scans, and how far it agrees with its own flips.

    python tests/benchmarks/benchmark_segmentation.py --model DIR --data-dir varied=runs/varied standard=runs/knee \
        --output evaluation/segmentation.json

Dice is over all pixels of the slices with tissue of all test scans together; and its median over scans. Agreement is
the Dice of the labels with those of the mirrored images (left and right), mirrored back.

With --drawn, images of knees that no training has seen are drawn, so many of each contrast and each size of pixels, by
the generator of the training images. The images of a size differ in their contrast only: same knees, same poses.
"""

import json
import sys
from pathlib import Path

import torch

from sgr_diffusers import SegmentationUNet
from sgr_diffusers.data.skm_tea import list_scans
from sgr_diffusers.data.synthetic.anatomy_bank import balanced_order, render_bank
from sgr_diffusers.data.synthetic.appearance import CONTRASTS, VariedImages
from sgr_diffusers.data.transforms import scale_to_quantile
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

PIXELS = {1.6: (96, 80), 0.8: (192, 160)}  # size in mm -> matrix (y, x)
_HELD_OUT_SEED = 50_000_000  # no training run has knees of these seeds


def dice(labels: torch.Tensor, others: torch.Tensor, n_classes: int) -> list[float]:
    """Dice of each class over all pixels."""
    return [
        float(2 * ((labels == k) & (others == k)).sum() / ((labels == k).sum() + (others == k).sum()).clamp_min(1))
        for k in range(1, n_classes + 1)
    ]


@torch.no_grad()
def measure(model: SegmentationUNet, data_dir: Path, max_scans: int | None) -> dict[str, list[float]]:
    """Dice with the labels of the scans, and agreement with flips."""
    found, mirrored, true = [], [], []
    for scan in list_scans(data_dir, "test")[:max_scans]:
        rows = scan.foreground.nonzero()[0]
        images = torch.stack([torch.from_numpy(scan.target(int(row))) for row in rows])
        magnitude = scale_to_quantile(images)[0].abs()[:, None]
        true.append(torch.stack([torch.from_numpy(scan.labels(int(row))) for row in rows]))
        found.append(model(magnitude).argmax(dim=1))
        mirrored.append(model(magnitude.flip(-1)).argmax(dim=1).flip(-1))
    per_scan = torch.tensor([dice(*labels, model.n_classes) for labels in zip(found, true, strict=True)])
    found, mirrored, true = (torch.cat(parts) for parts in (found, mirrored, true))
    return {
        "dice": dice(found, true, model.n_classes),
        "median": per_scan.quantile(0.5, dim=0).tolist(),
        "agreement": dice(found, mirrored, model.n_classes),
    }


@torch.no_grad()
def measure_drawn(model: SegmentationUNet, n_images: int) -> dict[str, list[float]]:
    """Dice of newly drawn images without noise, by contrast and pixel size."""
    bank = render_bank(min(n_images, 96), _HELD_OUT_SEED)
    order = balanced_order(bank[0], torch.Generator().manual_seed(0))
    rows = {}
    for pixel_mm, size in PIXELS.items():
        for number, contrast in enumerate(CONTRASTS):
            shares = [number == other for other in range(len(CONTRASTS))]
            draw = VariedImages(*(part[order] for part in bank), None, (1, 0, 0, 0), 0, (pixel_mm,) * 2, shares)
            generator = torch.Generator().manual_seed(0)
            parts = [draw(generator, min(16, n_images), size) for _ in range(max(n_images // 16, 1))]
            found = torch.cat([model(images.abs()[:, None]).argmax(dim=1) for images, _ in parts])
            true = torch.cat([labels for _, labels in parts])
            rows[f"drawn, {pixel_mm} mm, contrast {contrast}"] = dice(found, true, model.n_classes)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, write and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--model", required=True, help="folder of a segmentation network")
    parser.add_argument("--data-dir", nargs="+", required=True, metavar="NAME=DIR", help="named folders of scans")
    parser.add_argument("--max-scans", type=int, help="largest number of scans of each folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--drawn", type=int, default=0, help="images of each contrast and pixel size to draw")
    parser.add_argument("--num-threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.num_threads)
    model = SegmentationUNet.from_pretrained(args.model).eval()
    rows, n_scans = {}, {}
    for name, folder in (entry.split("=", 1) for entry in args.data_dir):
        result = measure(model, Path(folder), args.max_scans)
        rows |= {
            name: result["dice"],
            f"{name}, median over scans": result["median"],
            f"{name}, agreement with its mirror image": result["agreement"],
        }
        n_scans[name] = len(list_scans(folder, "test")[: args.max_scans])
    if args.drawn:
        rows |= measure_drawn(model, args.drawn)
    content = {
        "command": " ".join(["python", *sys.argv]),
        "classes": list(model.config.class_names),
        "scans": n_scans,
        "rows": {name: [round(value, 4) for value in values] for name, values in rows.items()},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    for name, values in rows.items():
        print(f"{name}: " + "  ".join(f"{value:.3f}" for value in values))


if __name__ == "__main__":
    main()
