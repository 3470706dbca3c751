"""Compares samplers of deepinv, with the bundled prior, with ours on the bundled case, at the same evaluations.

    python tests/benchmarks/benchmark_deepinv.py --steps 25 100

DPS and DiffPIR get k-space of images in [0, 1], to which they clip, and the noise that the pipeline estimates. Their
weight of the data is the best of `--weights` and `--lambdas` on the slice `--tuning-slice`, which is left out of the
table. All images are unguided; the PSNR is that of magnitudes of the slices together.
"""

import torch

from sgr_diffusers import SGRMRIPipeline, read_raw
from sgr_diffusers.evaluation.metrics import psnr
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


def main():
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--model", default=str(PRETRAINED), help="folder of the pipeline")
    parser.add_argument("--acceleration", type=float, default=8.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[100], help="evaluations of the prior for each image")
    parser.add_argument("--weights", type=float, nargs="+", default=[30.0, 100.0, 300.0, 1000.0], help="of DPS")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[2.0, 7.0, 25.0], help="of DiffPIR")
    parser.add_argument("--tuning-slice", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    pipe = SGRMRIPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    scan = read_raw(PRETRAINED / "case.h5", mask=args.acceleration)
    rest = [k for k in range(len(scan.kspace)) if k != args.tuning_slice]
    sets = {name: _prepare(pipe, scan, chosen) for name, chosen in (("tune", [args.tuning_slice]), ("test", rest))}
    print(f"PSNR in dB of {len(rest)} slices at {args.acceleration:g}x, unguided, by evaluations of the prior")
    for n_steps in args.steps:
        operator, kspace, noise_std, known, scale = sets["test"]
        generator = torch.Generator().manual_seed(args.seed)
        out = pipe(
            kspace * scale[:, None, None, None],
            operator.mask,
            target="none",
            coil_maps=operator.coil_maps,
            num_inference_steps=n_steps,
            generator=generator,
        )
        ours = float(psnr((out.images[:, 0, 0] / scale[:, None, None]).abs(), known))
        print(f"  {n_steps:4d}  {'pipeline':10s} {ours:6.2f}", flush=True)
        for name, weights in (("DPS", args.weights), ("DiffPIR", args.lambdas)):
            tune_operator, tune_kspace, tune_noise, tune_known, _ = sets["tune"]
            tune = {}
            for weight in weights:
                image = sample(name, pipe, tune_operator, tune_kspace, tune_noise, n_steps, args.seed, weight)
                tune[weight] = float(psnr(image.abs(), tune_known))
            best = max(tune, key=tune.get)
            image = sample(name, pipe, operator, kspace, noise_std, n_steps, args.seed, best)
            cells = ", ".join(f"{weight:g}: {score:.2f}" for weight, score in tune.items())
            score = float(psnr(image.abs(), known))
            print(f"  {n_steps:4d}  {name:10s} {score:6.2f}  weight {best:g} (tuning slice, {cells})", flush=True)


def _prepare(pipe, scan, chosen):
    """Operator, k-space, noise and known magnitude of slices, in the scale of the prior, and this scale."""
    operator = SenseOperator(scan.coil_maps[chosen], scan.mask)
    zero_filled = operator.adjoint(scan.kspace[chosen])
    scale = torch.quantile(zero_filled.abs().flatten(1), pipe.config.scale_quantile, dim=1)
    kspace = scan.kspace[chosen] / scale[:, None, None, None]
    noise_std = float(estimate_noise_std(kspace, scan.mask.expand(len(kspace), *operator.shape)).mean())
    return operator, kspace, noise_std, scan.fully_sampled[chosen].abs() / scale[:, None, None], scale


if __name__ == "__main__":
    main()
