"""Put trained networks, one test case and a card together into a pipeline folder in Hub layout.

    python training/assemble_pipeline.py --data_dir runs/knee --prior runs/prior --segmentation runs/segmentation \
        --output_dir sgr_diffusers/pretrained/synthetic_knee

A prior trained in several runs, each started from the one before (``--init_from``), is given as ``--prior RUN RUN
...``; the last holds the weights, all are recorded. With ``--quality FILE``, the json written by
``tests/benchmarks/benchmark_quality.py``, the card shows what was measured. Every number in the card is read from a
record.
"""

import argparse
import json
import shutil
from pathlib import Path

import h5py
import jinja2
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel

from sgr_diffusers import SegmentationUNet, SGRMRIPipeline
from sgr_diffusers.data.skm_tea import SkmTeaScan, list_scans

TEMPLATE = Path(__file__).parents[1] / "hub_cards" / "model_card.md.jinja"


def choose_slices(labels: np.ndarray) -> list[int]:
    """The slice with most patellar and femoral cartilage, and the one with most of all other tissues."""
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


def read_run(folder: str) -> dict:
    """The record of a training run."""
    return json.loads((Path(folder) / "training_record.json").read_text())


def quality_tables(path: str | None) -> dict | None:
    """Measured numbers as the card's template wants them."""
    if path is None:
        return None
    measured = json.loads(Path(path).read_text())
    for kind in ("psnr", "bounds"):
        rows = {key.removeprefix(f"{kind}_"): row for key, row in measured.items() if key.startswith(f"{kind}_")}
        measured[kind] = [{"acceleration": name.rstrip("x"), **row} for name, row in rows.items()]
    return measured


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--data_command", default="sgr synthesize runs/knee", help="wrote the data; for the card")
    parser.add_argument("--prior", required=True, nargs="+")
    parser.add_argument("--segmentation", required=True)
    parser.add_argument("--quality")
    parser.add_argument(
        "--cg_iterations", type=int, default=5, help="default of the pipeline, found on validation scans"
    )
    parser.add_argument("--note", help="what the records do not say of the training, for the card")
    parser.add_argument("--case_scan", type=int, default=0, help="number of the test scan that gives the case")
    parser.add_argument("--output_dir", required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Assemble and write the card."""
    args = parse_arguments(arguments)
    output = Path(args.output_dir)
    shutil.rmtree(output, ignore_errors=True)

    prior = Path(args.prior[-1])
    pipe = SGRMRIPipeline(
        UNet2DModel.from_pretrained(prior / "unet"),
        DDIMScheduler.from_pretrained(prior / "scheduler"),
        SegmentationUNet.from_pretrained(Path(args.segmentation) / "segmentation_model"),
        cg_iterations=args.cg_iterations,
    )
    pipe.save_pretrained(output)
    # Half precision on disk keeps the package small; `from_pretrained` loads it as float32 unless told otherwise.
    UNet2DModel.from_pretrained(prior / "unet", dtype=torch.float16).save_pretrained(output / "unet")
    scan = list_scans(args.data_dir, "test")[args.case_scan]
    slices = choose_slices(scan.labels())
    write_case(output / "case.h5", scan, slices)

    (output / "training").mkdir()
    runs = []
    for name, folder in [*(("Prior", run) for run in args.prior), ("Segmentation model", args.segmentation)]:
        record = read_run(folder)
        file_name = f"{len(runs) + 1}_{name.split()[0].lower()}.json"
        (output / "training" / file_name).write_text(json.dumps(record, indent=1))
        last = next(row for row in reversed(record["history"]) if any(key.startswith("val_") for key in row))
        result = {key: value for key, value in last.items() if key.startswith("val_") and key != "val_errors"}
        runs.append({**record, "name": name, "result": f"Validation: {json.dumps(result)}."})
    record = runs[len(args.prior) - 1]
    with h5py.File(scan.kspace_file) as file:
        config = json.loads(file.attrs["config"])
    card = (
        jinja2.Environment(undefined=jinja2.StrictUndefined)
        .from_string(TEMPLATE.read_text())
        .render(
            folder=output.as_posix(),
            size=pipe.unet.config.sample_size,
            prior=record,
            segmentation=runs[-1],
            classes=pipe.class_names,
            case={"slices": slices, "scan_id": scan.scan_id, "voxel_size_mm": scan.voxel_size_mm},
            data={"command": args.data_command, "config": config, **record["data"]},
            machine="{cores} cores, {platform}, {device}".format(**record["machine"]),
            versions=", ".join(f"{key} {value}" for key, value in record["versions"].items()),
            runs=runs,
            quality=quality_tables(args.quality),
            cg_iterations=args.cg_iterations,
            note=args.note,
        )
    )
    (output / "README.md").write_text(card.rstrip() + "\n")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
