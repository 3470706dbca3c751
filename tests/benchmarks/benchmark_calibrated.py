"""Measures what the images of a calibrated call reach, how they fit the data, what another network sees, and the cost.

    python tests/benchmarks/benchmark_calibrated.py --data-dir runs/knee --n-scans 8 --n-slices-per-scan 2 \
        --output ends.csv

Each scan is reconstructed with `coverage`, at its plain bounds and unguided, all with the same noise. The images at
the ends of the interval are compared with those of gradient ascent, which needs no prior: it starts at the L1-wavelet
image and goes along the gradient of the guidance loss, within the unguided image's data residual, to the same ends.

Numbers to reach: ends attained within 5 % in 90 % of cases; residual at most 1.02 times that of the unguided image;
a calibrated call at most 2.5 times as expensive as one without. The second network never guides: of the change in
volume that the guiding network sees, `seen by second` is the share that the second one sees, too.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from baselines import l1_wavelet
from real_cases import Case, Scan
from torch import Tensor

from sgr_diffusers.bounds import tissue_masks, volume_mm3
from sgr_diffusers.evaluation.runner import load_segmentation
from sgr_diffusers.evaluation.slices import choose_data, parse_protocol
from sgr_diffusers.figures.tables import format_table
from sgr_diffusers.guidance.losses import guidance_loss
from sgr_diffusers.guidance.targets import resolve_classes
from sgr_diffusers.guidance.volume_goals import are_attained
from sgr_diffusers.io.raw_slices import RawSlices
from sgr_diffusers.io.skm_tea_file import read_skm_tea
from sgr_diffusers.mri.consistency import data_residual, nearest_consistent
from sgr_diffusers.mri.operators import SenseOperator
from sgr_diffusers.pipeline.networks import segment, size_multiple
from sgr_diffusers.pipeline.volume_search import scale_to_goals
from sgr_diffusers.pretrained import GENERAL
from sgr_diffusers.reconstruction.settings import SamplingSettings
from sgr_diffusers.reconstruction.volume import load_pipeline, with_calibrated_steps, with_fast_scheduler

LAMBDA = 0.01  # of the L1-wavelet image, in units of its 0.99 quantile
STEP, N_STEPS = 0.02, 40  # length of a step of gradient ascent relative to the image, and most steps
Volumes = Callable[[Tensor], Tensor]


def within_residual(operator: SenseOperator, images: Tensor, kspace: Tensor, most: Tensor) -> Tensor:
    """Move images `(slice, y, x)` towards the nearest consistent ones until their residual is at most `most`."""
    nearest = nearest_consistent(operator, images, kspace, max_iterations=10).solution
    norms = torch.linalg.vector_norm(kspace, dim=(-3, -2, -1))
    least = data_residual(operator, nearest, kspace)
    beyond = torch.linalg.vector_norm(operator.forward(images - nearest), dim=(-3, -2, -1)) / norms
    share = ((most**2 - least**2).clamp_min(0).sqrt() / beyond.clamp_min(1e-12)).clamp_max(1)[:, None, None]
    return nearest + share * (images - nearest)


def ascend(
    pipe: Any, scan: RawSlices, start: Tensor, most: Tensor, goals: Tensor, numbers: list[int], volumes_of: Volumes
) -> Tensor:
    """Bring the volume of each class to its goals by gradient ascent, without a prior, and the last bit by scaling.

    Args:
        pipe: pipeline, whose segmentation model is ascended.
        scan: measurement.
        start: image `(slice, y, x)` to start at, within the residual.
        most: largest data residual of each slice.
        goals: volumes `(class, target)`.
        numbers: label of each class.
        volumes_of: function from images `(slice, class, target, y, x)` to volumes `(class, target)`.
    """
    operator, scale = SenseOperator(scan.coil_maps, scan.mask), quantile(start)
    images = start[:, None, None].repeat(1, *goals.shape, 1, 1)
    rises = goals > volumes_of(images)
    classes = torch.tensor(numbers).repeat_interleave(2).repeat(len(start))
    for _ in range(N_STEPS):
        volumes = volumes_of(images)
        is_open = torch.where(rises, volumes < goals, volumes > goals)
        if not is_open.any():
            break
        leaf = images.detach().requires_grad_()
        loss = guidance_loss(
            pipe.segment((leaf / scale).flatten(0, 2)), classes, rises.flatten().repeat(len(start))
        ).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        length = torch.linalg.vector_norm(gradient, dim=(0, -2, -1), keepdim=True).clamp_min(1e-12)
        moved = images + STEP * torch.linalg.vector_norm(start) * gradient / length
        columns = [within_residual(operator, column, scan.kspace, most) for column in moved.flatten(1, 2).unbind(1)]
        images = torch.where(is_open[:, :, None, None], torch.stack(columns, 1).reshape(images.shape), images)
    return scale_to_goals(images, start, volumes_of, goals)


def quantile(images: Tensor) -> Tensor:
    """Compute the 0.99 quantile of the magnitude of each slice, `(slice, 1, 1, 1, 1)`, the scale of the networks."""
    return torch.quantile(images.abs().flatten(1), 0.99, dim=1)[:, None, None, None, None]


def wavelet_image(scan: RawSlices) -> Tensor:
    """L1-wavelet reconstruction `(slice, y, x)`."""
    images = []
    for kspace, maps in zip(scan.kspace, scan.coil_maps, strict=True):
        slice_of = Scan("slice", "", kspace, maps, None, 0.0)
        case = Case(slice_of, 0.0, scan.mask, kspace, {})
        scale = float(torch.quantile(case.operator.adjoint(kspace).abs(), 0.99))
        images.append(l1_wavelet(case, scale)(LAMBDA).to(kspace.dtype))
    return torch.stack(images)


def timed(pipe: Any, scan: RawSlices, seed: int, **call: Any) -> tuple[Any, float]:
    """Call the pipeline with noise of a seed; returns its output and the seconds of processor time."""
    start = time.process_time()
    arguments = {"coil_maps": scan.coil_maps, "voxel_size_mm": scan.voxel_size_mm, **call}
    out = pipe(scan.kspace, scan.mask, generator=torch.Generator().manual_seed(seed), **arguments)
    return out, time.process_time() - start


def rows_of(pipe: Any, second: Any, scan: RawSlices, coverage: float, seed: int) -> list[dict]:
    """Measure one scan at one acceleration: a row for each method, class and end of the interval.

    Args:
        pipe: pipeline that carries a calibration.
        second: segmentation model that does not guide.
        scan: measurement of the slices of the scan.
        coverage: coverage of the interval.
        seed: seed of the noise.
    """
    settings = with_calibrated_steps(pipe, SamplingSettings(coverage=coverage))
    uncalibrated = with_fast_scheduler(pipe) if settings.fast else pipe
    steps = {"num_inference_steps": settings.num_inference_steps, "timesteps": settings.visited_timesteps}
    out, seconds = timed(pipe, scan, seed, coverage=coverage)
    _, seconds_bounds = timed(uncalibrated, scan, seed, **steps)
    plain, _ = timed(uncalibrated, scan, seed, target="none", **steps)
    numbers, goals = resolve_classes(out.classes, pipe.class_names), out.target_volumes_mm3
    voxel_mm3 = float(np.prod(scan.voxel_size_mm))
    multiple = size_multiple(pipe.unet)

    def volumes(network: Any, images: Tensor, scale: Tensor) -> Tensor:
        with torch.no_grad():
            scaled = (images / scale).flatten(0, 2)
            labels = torch.cat([segment(network, part, multiple).argmax(1) for part in scaled.split(8)])
        masks = tissue_masks(labels.to(torch.uint8).reshape(images.shape), numbers)
        return volume_mm3(masks, scan.voxel_size_mm, axes=(0, -2, -1)).float()

    unguided, limit = plain.images[:, 0, 0], plain.data_residual[:, 0, 0]
    operator, scale = SenseOperator(scan.coil_maps, scan.mask), out.scale[:, None, None, None, None]
    wavelet = within_residual(operator, wavelet_image(scan), scan.kspace, limit)
    own, rows = pipe.segmentation_model, []
    ascended = ascend(
        pipe, scan, wavelet, limit, goals, numbers, lambda images: volumes(own, images, quantile(wavelet))
    )
    for method, start, images, scale_of in (
        ("calibrated", unguided, out.images, scale),
        ("ascent", wavelet, ascended, quantile(wavelet)),
    ):
        begin = start[:, None, None].expand_as(images)
        before, after = ([volumes(network, x, scale_of) for network in (own, second)] for x in (begin, images))
        columns = [data_residual(operator, x, scan.kspace) / limit for x in images.flatten(1, 2).unbind(1)]
        ratio = torch.stack(columns).amax(1).reshape(goals.shape)
        attained = are_attained(after[0], goals, voxel_mm3)
        for k, name in enumerate(out.classes):
            for end, target in enumerate(("lower", "upper")):
                row = {"method": method, "class": name, "end": target, "goal_mm3": float(goals[k, end])}
                row |= {"is_empty": bool(goals[k, 1] < voxel_mm3), "attained": bool(attained[k, end])}
                row |= {"volume_mm3": float(after[0][k, end]), "start_mm3": float(before[0][k, end])}
                row |= {"second_mm3": float(after[1][k, end]), "second_start_mm3": float(before[1][k, end])}
                row |= {"residual_ratio": float(ratio[k, end]), "cost_ratio": seconds / seconds_bounds}
                rows.append(row)
    return rows


def summary(table: pd.DataFrame) -> list[dict]:
    """One row for each method and acceleration, without classes that are in no image of the interval."""
    rows = []
    for (method, acceleration), group in table[~table["is_empty"]].groupby(["method", "acceleration"], sort=False):
        change = (group["volume_mm3"] - group["start_mm3"]).to_numpy()
        seen = np.sign(change) * (group["second_mm3"] - group["second_start_mm3"]).to_numpy()
        reached = group[group["attained"]]
        error = ((reached["volume_mm3"] - reached["goal_mm3"]).abs() / reached["goal_mm3"].clip(lower=1)).median()
        row = {"method": method, "acc.": f"{acceleration:g}x", "ends": len(group)}
        row |= {"attained": f"{group['attained'].mean():.1%}", "median error": f"{error:.1%}"}
        row |= {"residual <= 1.02": f"{(group['residual_ratio'] <= 1.02).mean():.1%}"}
        row |= {"largest residual": f"{group['residual_ratio'].max():.3f}"}
        row |= {"seen by second": f"{seen.sum() / max(np.abs(change).sum(), 1e-9):.2f}"}
        row |= {"cost of a call": f"{group['cost_ratio'].median():.2f}" if method == "calibrated" else "-"}
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write after every scan, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder in the SKM-TEA layout")
    parser.add_argument("--model", help="folder of a calibrated pipeline (default: the bundled one)")
    parser.add_argument(
        "--second-segmentation", default=str(GENERAL), help="segmentation model that does not guide, or its pipeline"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--slices", default="relevant", help="which slices, as in `sgr evaluate`")
    parser.add_argument("--n-slices-per-scan", type=int)
    parser.add_argument("--n-scans", type=int, default=8)
    parser.add_argument("--accelerations", type=float, nargs="+", default=[4.0, 8.0, 12.0, 16.0])
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.num_threads)
    chosen = parse_protocol(args.slices, 20), args.accelerations, args.n_slices_per_scan, args.n_scans
    data = choose_data(args.data_dir, args.split, *chosen, with_labels=False)
    pipe = load_pipeline(args.model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    second = load_segmentation("--second-segmentation", args.second_segmentation, pipe.device)
    rows: list[dict] = []
    for number, (scan_id, slices) in enumerate(data.slices.items()):
        for acceleration in args.accelerations:
            scan = read_skm_tea(data.scans[scan_id].kspace_file, slices, mask=acceleration)
            made = rows_of(pipe, second, scan, args.coverage, number)
            rows += [{"scan": scan_id, "acceleration": acceleration} | row for row in made]
            pd.DataFrame(rows).to_csv(args.output, index=False, lineterminator="\n")
    print(format_table(summary(pd.DataFrame(rows))))


if __name__ == "__main__":
    main()
