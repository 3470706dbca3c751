"""Compares plain reconstruction with zero-filled, CG-SENSE and L1-wavelet on real scans, and prints ratios of errors.

    python tests/benchmarks/benchmark_real.py --real-dir DIR --output runs/real
    python tests/benchmarks/benchmark_real.py --cases folder --data-dir runs/knee --output runs/real \
        --model MODEL_A MODEL_B --setting cg_iterations=3 --setting cg_iterations=8

NRMSE is that of complex images, ||x - r|| / ||r||, without any fit of scale or phase: all methods have the same
measurement and coil maps. `nrmse_magnitude` is the same of magnitudes; PSNR and SSIM are of magnitudes. The
baselines are tuned on the reference of every case by NRMSE (an oracle; ours is not tuned) and kept in the cache. The
reference "fully sampled" shares its noise with the measurement; simulated cases are compared with "noise free" too.
The mean is that of pairs of samples with opposite noise (`combine="mean"`), the sample an independent one. Dispersion
is the square of `standard_deviation` over the squared error of the mean, pixel sums; 1 if both agree.
Knees and brains of magnitude images have simulated phase, coils and noise. Writes results.csv, results.json and a
picture of every case.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from baselines import cached, nrmse
from diffusers import UNet2DModel
from real_cases import READERS, Case, Source, undersample

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.evaluation.metrics import psnr, ssim
from sgr_diffusers.pipeline.output import SGRMRIPipelineOutput
from sgr_diffusers.reconstruction.settings import DTYPES, SamplingSettings
from sgr_diffusers.reconstruction.volume import with_fast_scheduler
from sgr_diffusers.utils.weights import weights_hash

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sgr_diffusers.utils.options import OptionParser, ScriptHelp
from sgr_diffusers.utils.versions import library_versions

BUNDLED = Path(__file__).parents[2] / "sgr_diffusers" / "pretrained" / "synthetic_knee"
RATIOS = [
    ("ratio", "nrmse", "l1_wavelet"),
    ("ratio_magnitude", "nrmse_magnitude", "l1_wavelet"),
    ("ratio_bart", "nrmse", "l1_wavelet_bart"),
]
GROUP = ["against", "kind", "acceleration", "model", "setting"]


def load(folder: Path, dtype: torch.dtype) -> SGRMRIPipeline:
    """The pipeline of a folder in the fast setting; a prior alone takes the place of the bundled one."""
    if (folder / "model_index.json").exists():
        pipe = SGRMRIPipeline.from_pretrained(folder)
    else:
        pipe = SGRMRIPipeline.from_pretrained(BUNDLED)
        pipe.register_modules(unet=UNet2DModel.from_pretrained(folder).eval())
    pipe.unet.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return with_fast_scheduler(pipe)


def parse_setting(text: str) -> dict[str, Any]:
    """Arguments of the pipeline from "name=value,name=value"; values are JSON, or else words."""
    settings = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def reconstruct(
    pipe: SGRMRIPipeline, case: Case, setting: dict[str, Any], args: argparse.Namespace, **sampling: Any
) -> SGRMRIPipelineOutput:
    """Plain reconstruction of a case. The value "sigma" of a setting stands for the noise of the case."""
    arguments = {name: case.scan.sigma if value == "sigma" else value for name, value in setting.items()}
    n_samples = sampling.get("num_samples", 1)
    settings = SamplingSettings(num_inference_steps=args.steps, fast=True, target="none", num_samples=n_samples)
    return pipe(
        case.kspace[None],
        case.mask,
        target="none",
        coil_maps=case.scan.coil_maps[None],
        timesteps=settings.visited_timesteps,
        generator=torch.Generator().manual_seed(args.seed),
        **arguments,
        **sampling,
    )


def scores(image: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Scores of a complex image `(y, x)`."""
    return {
        "nrmse": nrmse(image, reference),
        "nrmse_magnitude": nrmse(image.abs(), reference.abs()),
        "psnr": psnr(image[None], reference[None]),
        "ssim": ssim(image[None], reference[None]),
    }


def baseline_rows(case: Case, baselines: dict) -> Iterator[dict[str, Any]]:
    """Scores of the baselines of a case, one row for each reference and method."""
    for against, methods in baselines.items():
        for method, (image, parameter) in methods.items():
            row = {"against": against, "method": method, "parameter": parameter}
            yield row | scores(image, case.references[against])


def our_rows(case: Case, sample: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> Iterator[dict]:
    """Scores of a single sample and of the mean of several, one row of each for each reference."""
    for against, reference in case.references.items():
        yield {"against": against, "method": "sample"} | scores(sample, reference)
        dispersion = float(deviation.square().sum() / (mean - reference).abs().square().sum())
        yield {"against": against, "method": "mean", "dispersion": dispersion} | scores(mean, reference)


def draw(path: Path, case: Case, images: dict[str, torch.Tensor], deviation: torch.Tensor) -> None:
    """Save a picture: images above, errors of the magnitude (5 times) below, and the spread of the samples."""
    reference = case.references["fully sampled"]
    peak = float(torch.quantile(reference.abs(), 0.995))
    figure, axes = plt.subplots(2, len(images) + 2, figsize=(2.6 * (len(images) + 2), 6), layout="constrained")
    panels = [("fully sampled", reference.abs(), 1), ("mask", case.mask.float() * peak, 1)]
    for name, image in images.items():
        error = 5 * (image.abs() - reference.abs()).abs()
        panels += [(f"{name}\nNRMSE {nrmse(image, reference):.3f}", image.abs(), 1), ("error x 5", error, 1)]
    panels += [("deviation of samples x 5", 5 * deviation, 1), ("phase", reference.angle() / np.pi * peak, 0)]
    for axis, (title, image, is_magnitude) in zip(axes.T.flat, panels, strict=True):
        low, colours = (0, "gray") if is_magnitude else (-peak, "twilight")
        axis.imshow(image.numpy(), cmap=colours, vmin=low, vmax=peak)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def with_ratios(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """All rows, with the errors relative to those of L1-wavelet in the same case."""
    table = pd.DataFrame(rows)
    place = ["kind", "case", "acceleration", "against"]
    for column, score, method in RATIOS:
        if method in set(table["method"]):
            base = table[table["method"] == method].set_index(place)[score]
            table[column] = table[score] / base.reindex(pd.MultiIndex.from_frame(table[place])).to_numpy()
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the cases of each reference, kind, acceleration, model and setting."""
    is_ours = table["method"].isin(["sample", "mean"])
    scores = ["nrmse", "psnr", "ssim"]
    ratios = [column for column, *_ in RATIOS if column in table]
    ours = table[is_ours].pivot_table(
        index=GROUP, columns="method", values=[*scores, *ratios, "dispersion"], sort=False
    )
    baselines = table[~is_ours].pivot_table(index=GROUP[:3], columns="method", values=scores)
    result = pd.DataFrame({"n": table[table["method"] == "mean"].groupby(GROUP).size().reindex(ours.index)})
    for score, method in baselines:
        if score == "nrmse" or method == "l1_wavelet":
            values = baselines[score, method].reindex(ours.index.droplevel(["model", "setting"]))
            result[f"{score} {method}"] = values.to_numpy()
    for score, method in ours:
        if method == "mean" or score in ("nrmse", "ratio"):
            result[f"{score} {method}"] = ours[score, method]
    return result.reset_index()


def markdown(table: pd.DataFrame) -> str:
    """A table for the screen."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append(
            "| " + " | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row) + " |"
        )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> pd.DataFrame:
    """Reconstruct and score all cases; results are written after each of them."""
    torch.set_num_threads(args.num_threads)
    args.output.mkdir(parents=True, exist_ok=True)
    pipes = {"/".join(folder.resolve().parts[-2:]): load(folder, getattr(torch, args.dtype)) for folder in args.model}
    record = {
        "command": " ".join(["python", *sys.argv]),
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "weights": {model: weights_hash(pipe.unet) for model, pipe in pipes.items()},
        "versions": library_versions(),
    }
    source = Source(args.real_dir, args.data_dir, args.snr, args.seed)
    rows = []
    for kind in args.cases:
        for scan in islice(READERS[kind](source), args.limit):
            for acceleration in args.accelerations:
                case = undersample(scan, acceleration, args.seed)
                common = {"kind": kind, "case": scan.name, "acceleration": acceleration}
                common |= {"ny": case.mask.shape[0], "nx": case.mask.shape[1]}
                common |= {"reached": float(case.mask.numel() / case.mask.sum()), "sigma": scan.sigma}
                baselines = cached(case, args.cache or args.output / "cache")
                empty = {"model": "", "setting": ""}
                rows += [common | empty | row for row in baseline_rows(case, baselines)]
                images = {name: image for name, (image, _) in baselines["fully sampled"].items()}
                for model, pipe in pipes.items():
                    for setting in args.setting:
                        start = time.perf_counter()
                        values = parse_setting(setting)
                        sample = reconstruct(pipe, case, values, args).images[0, 0, 0]
                        out = reconstruct(pipe, case, values, args, num_samples=args.samples, combine="mean")
                        mean, deviation = out.images[0, 0, 0], out.standard_deviation[0, 0]
                        own = {"model": model, "setting": setting, "seconds": time.perf_counter() - start}
                        rows += [common | own | row for row in our_rows(case, sample, mean, deviation)]
                        label = f"{model}\n{setting}"
                        images |= {f"sample {label}": sample, f"mean {label}": mean}
                draw(args.output / f"{case.name}.png", case, images, deviation)
                table = with_ratios(rows)
                table.to_csv(args.output / "results.csv", index=False)
                content = record | {"rows": json.loads(table.to_json(orient="records"))}
                (args.output / "results.json").write_text(json.dumps(content, indent=1) + "\n")
                print(case.name, "done", file=sys.stderr)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cases", nargs="+", choices=READERS, default=["fse", "fse-low", "brain16", "fold3"])
    parser.add_argument(
        "--real-dir", type=Path, help="folder of knee_fse_axial14.npz, brain16_gre96.h5 and brain_t1c.h5"
    )
    parser.add_argument("--data-dir", type=Path, help="test scans in the SKM-TEA layout, for the cases `folder`")
    parser.add_argument(
        "--model", type=Path, nargs="+", default=[BUNDLED], help="folders of pipelines, or of a prior alone"
    )
    parser.add_argument(
        "--setting",
        action="append",
        help="arguments of the pipeline, name=value,name=value; may be given several times, for a comparison",
    )
    parser.add_argument("--accelerations", type=float, nargs="+", default=[4, 8, 12, 16])
    parser.add_argument("--samples", type=int, default=4, help="samples of each case")
    parser.add_argument("--steps", type=int, default=25, help="reverse steps of the fast setting")
    parser.add_argument("--limit", type=int, help="largest number of scans of each kind")
    parser.add_argument(
        "--snr", type=float, default=40.0, help="0.99 quantile of a magnitude image over the simulated noise"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the phase, the noise, the masks and the samples")
    parser.add_argument("--cache", type=Path, help="folder of the baselines; the default is cache/ in the output")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the prior's weights")
    parser.add_argument("--num-threads", type=int, default=2)
    args = parser.parse_args(arguments)
    args.setting = args.setting or [""]
    if "folder" in args.cases and args.data_dir is None:
        parser.error("the cases `folder` need --data-dir")
    if set(args.cases) - {"folder"} and args.real_dir is None:
        parser.error("the cases other than `folder` need --real-dir")
    for against, part in summary(run(args)).groupby("against"):
        print(
            f"\nReference: {against}. Means over n cases; without a suffix, of the mean of {args.samples} samples.\n"
        )
        print(markdown(part.drop(columns="against")))


if __name__ == "__main__":
    main()
