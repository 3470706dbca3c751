"""Compares samplers of deepinv, with the bundled prior, with ours, at the same number of evaluations of the prior.

    sgr synthesize runs/samplers --scans 0 4 8 --matrix 6 96 80 --voxel-size 12 1.6 1.6 --echoes 1 --seed 2
    python tests/benchmarks/benchmark_deepinv.py --data-dir runs/samplers --steps 25 --output samplers.csv

DPS and DiffPIR get k-space of images in [0, 1], to which they clip, and the noise that the pipeline estimates. Their
weight of the data is the best of `--weights` and `--lambdas` by the PSNR on scans of the split `val`. All images are
unguided, one slice of each scan. DPS also differentiates the prior at each evaluation, which triples its cost.
"""

import pandas as pd
import torch
from benchmark_quality import evaluated_slices, load

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.data.skm_tea import list_scans
from sgr_diffusers.evaluation.metrics import psnr, ssim
from sgr_diffusers.mri.noise import estimate_noise_std
from sgr_diffusers.mri.operators import SenseOperator, channels_to_complex
from sgr_diffusers.pretrained import PRETRAINED
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

LIMIT = 2.0  # of real and imaginary part, in the scale of the prior
WEIGHT = {"DPS": 1.0, "DiffPIR": 7.0}  # deepinv's defaults


def sample(name, pipe, operator, kspace, noise_std, n_steps, seed, weight=None):
    """Images (slice, y, x) by a sampler of deepinv; k-space and `noise_std` in the scale of the prior."""
    import deepinv

    from sgr_diffusers.interop.deepinv import PriorDenoiser, from_kspace, to_physics, to_unit_interval

    physics = to_physics(operator)
    physics.noise_model = deepinv.physics.GaussianNoise(noise_std / (2 * LIMIT))
    y = to_unit_interval(from_kspace(kspace), physics, LIMIT)
    denoiser, weight = PriorDenoiser(pipe, LIMIT), WEIGHT[name] if weight is None else weight
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "DPS":
            rng = torch.Generator().manual_seed(seed)
            model = deepinv.sampling.DPS(denoiser, num_steps=n_steps, weight=weight, rng=rng)
            images = model(y, physics, x_init=(len(y), 2, *operator.shape)).detach().float()
        else:
            fidelity = deepinv.optim.data_fidelity.L2()
            model = deepinv.sampling.DiffPIR(denoiser, fidelity, noise_std / (2 * LIMIT), n_steps, lambda_=weight)
            images = model(y, physics)
    return channels_to_complex((images - 0.5) * 2 * LIMIT)


def reconstruct(name, pipe, slices, n_steps, seed, weight=None):
    """Magnitudes (slice, y, x) by a sampler of deepinv or by the pipeline, in the scale of the prior."""
    operator, kspace, noise_std, _known = slices
    if name != "pipeline":
        return sample(name, pipe, operator, kspace, noise_std, n_steps, seed, weight).abs()
    generator = torch.Generator().manual_seed(seed)
    call = {"target": "none", "num_inference_steps": n_steps, "generator": generator}
    return pipe(kspace, operator.mask, coil_maps=operator.coil_maps, **call).images[:, 0, 0].abs()


def scores(magnitudes, known):
    """Means over slices of PSNR and SSIM."""
    pairs = list(zip(magnitudes.split(1), known.split(1), strict=True))
    return {name: sum(score(*pair) for pair in pairs) / len(pairs) for name, score in (("psnr", psnr), ("ssim", ssim))}


def prepare(pipe, scans, acceleration):
    """Operator, k-space, noise and known magnitude of one slice of each scan, in the scale of the prior."""
    loaded = [load(scan, acceleration, evaluated_slices(scan, 1)) for scan in scans]
    kspace, maps, fully_sampled = (torch.cat([parts[k] for parts in loaded]) for k in (0, 1, 3))
    operator = SenseOperator(maps, torch.stack([parts[2] for parts in loaded]))
    scale = torch.quantile(operator.adjoint(kspace).abs().flatten(1), pipe.config.scale_quantile, dim=1)
    kspace = kspace / scale[:, None, None, None]
    noise_std = float(estimate_noise_std(kspace, operator.mask).mean())
    return operator, kspace, noise_std, fully_sampled.abs() / scale[:, None, None]


def main():
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--data-dir", required=True, help="folder in the SKM-TEA layout with the splits val and test")
    parser.add_argument("--model", default=str(PRETRAINED), help="folder of the pipeline")
    parser.add_argument("--n-scans", type=int, default=8, help="of the split test")
    parser.add_argument("--n-tuning-scans", type=int, default=4, help="of the split val")
    parser.add_argument("--accelerations", type=float, nargs="+", default=[4.0, 8.0])
    parser.add_argument("--steps", type=int, default=100, help="evaluations of the prior for each image")
    parser.add_argument("--weights", type=float, nargs="+", default=[30.0, 100.0, 300.0, 1000.0], help="of DPS")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[2.0, 7.0, 25.0], help="of DiffPIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--output", help="also write the table to this csv file")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    pipe = SGRMRIPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    tuning, test = (
        list_scans(args.data_dir, split)[:n] for split, n in (("val", args.n_tuning_scans), ("test", args.n_scans))
    )
    rows = []
    for acceleration in args.accelerations:
        known, to_tune = prepare(pipe, test, acceleration), prepare(pipe, tuning, acceleration)
        for name, weights in (("pipeline", []), ("DPS", args.weights), ("DiffPIR", args.lambdas)):
            tuned = {
                weight: scores(reconstruct(name, pipe, to_tune, args.steps, args.seed, weight), to_tune[3])["psnr"]
                for weight in weights
            }
            best = max(tuned, key=tuned.__getitem__, default=None)
            found = scores(reconstruct(name, pipe, known, args.steps, args.seed, best), known[3])
            row = {"acceleration": acceleration, "sampler": name, "evaluations": args.steps, **found}
            rows.append(row | {"n_slices": len(test), "weight": best, "n_weights": len(weights)})
            cells = ", ".join(f"{weight:g}: {score:.2f}" for weight, score in tuned.items())
            print(
                f"{acceleration:g}x {name:10s} PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f}  ({cells})",
                flush=True,
            )
    if args.output:
        pd.DataFrame(rows).to_csv(args.output, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
