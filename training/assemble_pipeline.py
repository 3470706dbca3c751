"""Put trained networks, one test case and a card together into a pipeline folder in Hub layout.

    python training/assemble_pipeline.py --data-dir runs/knee --prior runs/prior --segmentation runs/segmentation \
        --output-dir sgr_diffusers/pretrained/synthetic_knee --without-code

A prior trained in several runs, each started from the one before (``--init-from``), is given as ``--prior RUN RUN
...``; the last holds the weights, all are recorded. With ``--quality FILE``, the json written by
``tests/benchmarks/benchmark_quality.py`` on this very pipeline, the card shows what was measured. An output of an
earlier run is replaced once the new one is whole. All records are kept in the folder, and
every number of the card is read from them: ``sgr publish model`` makes the same card again.
"""

import argparse
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel

from sgr_diffusers import SegmentationUNet, SGRMRIPipeline
from sgr_diffusers.data.skm_tea import SkmTeaScan, known_data, list_scans
from sgr_diffusers.guidance.strength import strength_for_size
from sgr_diffusers.hub.loading import drop_code
from sgr_diffusers.hub.repository import make_portable
from sgr_diffusers.publishing.measured import check_measured
from sgr_diffusers.publishing.model_card import model_card
from sgr_diffusers.utils.files import check_replaceable, replaced_folder
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

RECORD = "training/assembly.json"
# What lies in an output of this script; a folder with anything else in it is not replaced.
NETWORKS = ("model_index.json", "unet", "scheduler", "segmentation_model", "*.py")
WRITTEN = (*NETWORKS, "case.h5", "training", "evaluation", "README.md")


def choose_slices(labels: np.ndarray) -> list[int]:
    """Return the slice with most patellar and femoral cartilage, and the one with most of all other tissues."""
    area = np.stack([(labels == c).sum((1, 2)) for c in range(1, 5)])
    return sorted({int(np.minimum(area[0], area[1]).argmax()), int(area[1:].min(0).argmax())})


def write_case(path: Path, scan: SkmTeaScan, slices: list[int]) -> None:
    """Write slices of a scan as a small file of the same layout, first echo only."""
    with h5py.File(scan.kspace_file) as source, h5py.File(path, "w") as case:
        for key in ("kspace", "target"):
            case.create_dataset(key, data=source[key][slices][:, :, :, :1], compression="gzip", shuffle=True)
        case.create_dataset("maps", data=source["maps"][slices], compression="gzip", shuffle=True)
        for name, mask in source["masks"].items():
            case[f"masks/{name}"] = mask[()]
        case.attrs.update(scan_id=scan.scan_id, slices=slices, voxel_size_mm=scan.voxel_size_mm)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--data-command", help="command that wrote the data (default: the card names none)")
    parser.add_argument("--prior", required=True, nargs="+")
    parser.add_argument("--segmentation", required=True)
    parser.add_argument("--quality")
    parser.add_argument(
        "--cg-iterations",
        type=int,
        default=5,
        help="default number of iterations of the pipeline, chosen on validation scans",
    )
    parser.add_argument(
        "--license", help="license of the weights; only for data that is neither synthetic nor SKM-TEA"
    )
    parser.add_argument(
        "--guidance-strength",
        type=float,
        help="strength that the pipeline has as default (default: the paper's, for this image size)",
    )
    parser.add_argument(
        "--guidance-from",
        type=float,
        default=1.0,
        help="share of the training time below which images are pushed; 1 for all steps",
    )
    parser.add_argument("--note", help="text for the card on what the records of the training do not say")
    parser.add_argument(
        "--without-code", action="store_true", help="leave out the code, for a checkpoint inside of the package"
    )
    parser.add_argument("--output-dir", required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Assemble and write the card."""
    args = parse_arguments(arguments)
    inputs = [args.data_dir, *args.prior, args.segmentation, *([args.quality] if args.quality else [])]
    output_dir = Path(args.output_dir)
    check_replaceable(output_dir, True, name="output_dir", record=RECORD, written=WRITTEN, inputs=inputs)
    with replaced_folder(output_dir) as output:
        assemble(args, output)
    size = sum(path.stat().st_size for path in Path(args.output_dir).rglob("*") if path.is_file())
    print(f"{args.output_dir}: {size / 2**20:.1f} MiB")


def assemble(args: argparse.Namespace, output: Path) -> None:
    """Fill an empty folder, which is to become `args.output_dir`."""
    prior = Path(args.prior[-1])
    unet = UNet2DModel.from_pretrained(prior / "unet")
    size = unet.config.sample_size
    size = (size, size) if isinstance(size, int) else size
    pipe = SGRMRIPipeline(
        unet,
        DDIMScheduler.from_pretrained(prior / "scheduler"),
        SegmentationUNet.from_pretrained(Path(args.segmentation) / "segmentation_model"),
        cg_iterations=args.cg_iterations,
        guidance_strength=args.guidance_strength or round(strength_for_size(size), 4),
        guidance_from=args.guidance_from,
    )
    pipe.save_pretrained(output)
    # Half precision on disk keeps the package small; `from_pretrained` loads it as float32 unless told otherwise.
    UNet2DModel.from_pretrained(prior / "unet", dtype=torch.float16).save_pretrained(output / "unet")
    make_portable(output)  # drops from the new configuration where the prior was
    if args.without_code:
        drop_code(output)
    scans = list_scans(args.data_dir, "test")
    scan = scans[0]
    with h5py.File(scan.kspace_file) as file:
        config = json.loads(file.attrs["config"]) if "config" in file.attrs else None
        accelerations = sorted(float(name.split("_")[-1].rstrip("x")) for name in file["masks"])
    case = None
    if config is not None:  # of a person's scan nothing comes along
        slices = choose_slices(scan.labels())
        write_case(output / "case.h5", scan, slices)
        case = {"slices": slices, "scan_id": scan.scan_id, "voxel_size_mm": scan.voxel_size_mm}
        case["acceleration"] = min(accelerations, key=lambda acceleration: abs(acceleration - 8))

    (output / "training").mkdir()
    runs = [*(("prior", run) for run in args.prior), ("segmentation", args.segmentation)]
    for number, (name, folder) in enumerate(runs, start=1):
        record = json.loads((Path(folder) / "training_record.json").read_text())
        (output / "training" / f"{number}_{name}.json").write_text(json.dumps(record, indent=1))
    data = {"command": args.data_command, "config": config, "name": known_data(scans)}
    assembly = {"data": data, "case": case, "note": args.note}
    (output / RECORD).write_text(json.dumps(assembly, indent=1))
    if args.quality:
        (output / "evaluation").mkdir()
        shutil.copyfile(args.quality, output / "evaluation" / "quality.json")
        check_measured(output)
    (output / "README.md").write_text(model_card(output, Path(args.output_dir), licence=args.license))


if __name__ == "__main__":
    main()
