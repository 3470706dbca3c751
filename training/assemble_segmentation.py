"""Put one trained segmentation model, its record and a card together into a folder in Hub layout.

    python training/assemble_segmentation.py --data-dir runs/knee --run runs/robust \
        --comparison runs/robust.json --output-dir sgr_diffusers/pretrained/synthetic_knee_robust

The weights are those that did best on the validation scans (``segmentation_model_best``). With ``--comparison FILE``,
the json of ``tests/benchmarks/benchmark_robust.py``, the card shows it.
"""

import argparse
import json
from pathlib import Path

import torch

from sgr_diffusers import SegmentationUNet
from sgr_diffusers.data.skm_tea import known_data, list_scans
from sgr_diffusers.publishing.training_card import training_card
from sgr_diffusers.utils.files import check_replaceable, replaced_folder
from sgr_diffusers.utils.options import OptionParser

RECORD = "training_record.json"
WRITTEN = (RECORD, "segmentation_model", "comparison.json", "README.md")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="data that the model was trained on")
    parser.add_argument("--run", required=True, help="output folder of train_segmentation.py")
    parser.add_argument("--comparison", help="JSON file of the comparison with the standard model")
    parser.add_argument("--output-dir", required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Assemble and write the card."""
    args = parse_arguments(arguments)
    inputs = [args.data_dir, args.run, *([args.comparison] if args.comparison else [])]
    output_dir = Path(args.output_dir)
    check_replaceable(output_dir, True, name="output_dir", record=RECORD, written=WRITTEN, inputs=inputs)
    with replaced_folder(output_dir) as output:
        assemble(args, output)


def assemble(args: argparse.Namespace, output: Path) -> None:
    """Fill an empty folder, which is to become `args.output_dir`."""
    run = Path(args.run)
    # Half precision on disk keeps the package small; `from_pretrained` loads it as float32 unless told otherwise.
    model = SegmentationUNet.from_pretrained(run / "segmentation_model_best", dtype=torch.float16)
    model.register_to_config(_name_or_path=None)
    model.save_pretrained(output / "segmentation_model")
    record = json.loads((run / "training_record.json").read_text())
    record["data"]["name"] = known_data(list_scans(args.data_dir, "train"))
    (output / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    comparison = None
    if args.comparison:
        comparison = json.loads(Path(args.comparison).read_text())
        (output / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
    card = training_card(record, "segmentation_model", Path(args.output_dir).as_posix(), comparison=comparison)
    (output / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
