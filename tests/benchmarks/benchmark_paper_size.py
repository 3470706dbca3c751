"""Measures guided steps with the paper's prior beside the authors' loop and bare network calls, all in one run.

    python tests/benchmarks/benchmark_paper_size.py --size 256 64 --coils 8
    python tests/benchmarks/benchmark_paper_size.py --device cuda --variants float32 bfloat16 channels_last compile

A step has all classes and both bounds. The authors' loop takes a class at a time, both bounds in one batch, with a
graph through prior, consistency and segmentation. Bare calls are prior and segmentation model, forward and backward.
Ours is the second step of a call: in the first, the images to be pushed are not known yet. Weights are random: times
do not depend on them. A CPU is measured by the CPU time of this process (with one thread, other work on the machine
counts little), a GPU by the clock. Prints seconds an image for each bound on the images in a network call (a CPU
gets fewer where that is faster), ratios to the other two, and what a whole case costs: the paper's 100 steps for
every bound against ours, by the images that each sends through the prior with and without a graph.
"""

import time
from collections import Counter

import torch

from sgr_diffusers import SegmentationUNet, SGRMRIPipeline, create_prior, create_scheduler
from sgr_diffusers.guidance.losses import guidance_loss
from sgr_diffusers.models.prior import PRIOR_PRESETS
from sgr_diffusers.mri.operators import SenseOperator, channels_to_complex
from sgr_diffusers.mri.solvers import conjugate_gradient
from sgr_diffusers.pipeline.networks import fastest_batch_size
from sgr_diffusers.reconstruction.volume import with_fast_scheduler
from sgr_diffusers.schedulers.timesteps import fast_timesteps
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

VARIANTS = ("float32", "bfloat16", "channels_last", "checkpointing", "compile")
CG_ITERATIONS = 5


def build(preset, size, n_classes, **settings):
    """A pipeline with random weights whose segmentation model finds every class in noise."""
    torch.manual_seed(0)
    segmentation_model = SegmentationUNet(class_names=tuple("abcdefgh"[:n_classes])).eval()
    unet = create_prior(preset, sample_size=size).eval()
    pipe = SGRMRIPipeline(unet, create_scheduler(), segmentation_model, cg_iterations=CG_ITERATIONS, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def problem(size, n_coils, device):
    """Random k-space of one slice, mask and coil maps."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(n_coils, *size, dtype=torch.complex64, generator=generator)
    mask = torch.rand(size, generator=generator) < 0.125
    kspace = torch.randn(1, n_coils, *size, dtype=torch.complex64, generator=generator) * mask
    return kspace.to(device), mask.to(device), (maps / maps.abs().square().sum(0).sqrt()).to(device)


def apply_variant(pipe, name):
    """Change the networks of a pipeline as the variant says."""
    if name == "bfloat16":
        pipe.unet.to(torch.bfloat16)
    if name == "channels_last":
        pipe.unet.to(memory_format=torch.channels_last)
    if name == "checkpointing":
        pipe.unet.enable_gradient_checkpointing()
    if name == "compile":
        pipe.unet = torch.compile(pipe.unet)


def clock_of(device):
    """The clock for a GPU, and the CPU time of this process for a CPU."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def seconds_of(function, device, repetitions):
    """Smallest time of some repetitions, after one that is not counted on a GPU."""
    is_cuda, clock = device.type == "cuda", clock_of(device)
    if is_cuda:
        function()
        torch.cuda.synchronize()
    times = []
    for _ in range(repetitions):
        start = clock()
        function()
        if is_cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)


def call(pipe, data, steps, batch_size, **settings):
    """One call of the pipeline for both bounds of all classes."""
    kspace, mask, maps = data
    generator = torch.Generator().manual_seed(0)
    arguments = {"coil_maps": maps, "num_inference_steps": steps, "batch_size": batch_size, "generator": generator}
    return pipe(kspace, mask, **{**arguments, **settings})


def step_seconds(pipe, data, batch_size, device, repetitions):
    """Smallest time of the second step of some calls, each of which is ended after it."""
    clock = clock_of(device)
    times = []
    for _ in range(repetitions):
        ends = []

        def note_end(pipe, step, timestep, tensors, ends=ends):
            if device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(clock())
            pipe._interrupt = step == 1

        call(pipe, data, 3, batch_size, callback_on_step_end=note_end)
        times.append(ends[1] - ends[0])
    return min(times)


def bare_calls(pipe, size, n_images, device):
    """Prior and segmentation model, forward and backward with respect to the image."""
    start = torch.randn(n_images, 2, *size, device=device, requires_grad=True)
    output = pipe.unet(start.to(pipe.unet.dtype), 500).sample[:, :2].float()
    logits = pipe.segmentation_model(channels_to_complex(output).abs()[:, None])
    torch.autograd.grad(logits.square().sum(), start)


def authors_step(pipe, data, size, n_classes, device):
    """A step of the authors' loop: a class at a time, the lower and the upper bound in one batch."""
    kspace, mask, maps = data
    operator, alpha, sigma = SenseOperator(maps, mask), 0.8, 0.6
    for number in range(1, n_classes + 1):
        noisy = torch.randn(2, 2, *size, device=device, requires_grad=True)
        eps = pipe.unet(noisy.to(pipe.unet.dtype), 500).sample[:, :2].float()
        x0 = channels_to_complex((noisy - sigma * eps) / alpha)
        x0 = conjugate_gradient(operator.normal, operator.adjoint(kspace), x0, CG_ITERATIONS).solution
        logits = pipe.segmentation_model(x0.abs()[:, None])
        label, is_upper = torch.full((2,), number, device=device), torch.tensor([False, True], device=device)
        torch.autograd.grad(guidance_loss(logits, label, is_upper).sum(), noisy)


def consistency(pipe, data, size, n_images, device):
    """Conjugate gradients on some images, forward and backward."""
    kspace, mask, maps = data
    operator = SenseOperator(maps, mask)
    x0 = torch.randn(n_images, *size, dtype=torch.complex64, device=device, requires_grad=True)
    image = conjugate_gradient(operator.normal, operator.adjoint(kspace), x0, CG_ITERATIONS).solution
    torch.autograd.grad(image.abs().square().sum(), x0)


def images_of_a_case(n_classes, guidance_from, **settings):
    """Images that a whole call sends through the prior: without a graph, and with one."""
    size = (32, 16)
    pipe = build("small", size, n_classes, guidance_from=guidance_from)
    if "timesteps" in settings:
        pipe = with_fast_scheduler(pipe)
    counts = Counter()
    pipe.unet.register_forward_hook(
        lambda module, inputs, output: counts.update({output[0].requires_grad: len(inputs[0])})
    )
    call(pipe, problem(size, 2, torch.device("cpu")), settings.pop("num_inference_steps", 100), None, **settings)
    return counts[False], counts[True]


def measure(pipe, args, size, device, variant):
    """Print the times of a variant; returns seconds an image: authors' loop, ours without and with graph."""
    data = problem(size, args.coils, device)
    n_images = 2 * args.classes
    on = torch.autocast(device.type, torch.bfloat16, enabled=variant == "bfloat16" and device.type == "cuda")
    times = {}
    with on:
        authors = seconds_of(lambda: authors_step(pipe, data, size, args.classes, device), device, args.repetitions)
        share = seconds_of(lambda: consistency(pipe, data, size, n_images, device), device, args.repetitions)
        plain = seconds_of(lambda: forward(pipe, size, 2, device), device, args.repetitions) / 2
        print(f"{variant}: authors' loop {authors / n_images:.3f} s an image; forward alone {plain:.3f}", flush=True)
        for batch_size in args.batch_sizes:
            n_at_once = min(batch_size, fastest_batch_size(pipe.unet, size, device) or batch_size)
            bare = seconds_of(lambda n=n_at_once: bare_calls(pipe, size, n, device), device, args.repetitions) * (
                n_images / n_at_once
            )
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times[batch_size] = step = step_seconds(pipe, data, batch_size, device, args.repetitions)
            memory = ""
            if device.type == "cuda":
                memory = f"; {torch.cuda.max_memory_allocated() / 2**20 / n_at_once:.0f} MiB an image"
            print(
                f"{variant}: {n_at_once} images a call: {step / n_images:.3f} s an image, {step / bare:.2f} of "
                f"its bare network calls, {step / authors:.2f} of the authors' loop, CG {share / step:.1%}{memory}",
                flush=True,
            )
    return authors / n_images, plain, min(times.values()) / n_images


def forward(pipe, size, n_images, device):
    """Prior without a graph."""
    with torch.no_grad():
        pipe.unet(torch.randn(n_images, 2, *size, device=device, dtype=pipe.unet.dtype), 500)


def main():
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--preset", default="paper", choices=PRIOR_PRESETS, help="prior")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 160], help="rows and columns")
    parser.add_argument("--coils", type=int, default=16, help="number of coils")
    parser.add_argument("--classes", type=int, default=4, help="number of classes, each with two bounds")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="most images in a network call"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["float32"], help="what to change")
    parser.add_argument("--device", default="cpu", help="device")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--num-threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    device, size = torch.device(args.device), tuple(args.size)
    cost = {}
    for variant in args.variants:
        pipe = build(args.preset, size, args.classes, guidance_from=1.0)
        apply_variant(pipe.to(device), variant)
        cost[variant] = measure(pipe, args, size, device, variant)
    authors, plain, pushed = cost[args.variants[0]]
    whole = 100 * 2 * args.classes * authors
    for name, settings in (
        ("100 steps, pushed below t = 0.2", {}),
        ("--fast, 25 steps", {"timesteps": fast_timesteps(25)}),
        ("--fast, 12 steps", {"timesteps": fast_timesteps(12)}),
    ):
        without, with_graph = images_of_a_case(args.classes, 0.2, **settings)
        ours = without * plain + with_graph * pushed
        print(f"a case, {name}: {without} images without, {with_graph} with a graph; {whole / ours:.1f} times cheaper")


if __name__ == "__main__":
    main()
