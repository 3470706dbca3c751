"""Measures what training costs beyond forward, backward and optimizer, and prints ratios taken in one run.

    python tests/benchmarks/benchmark_training.py

Goals: training with the slices read from disk at least 0.95 times as fast as the bare loop (forward, backward,
optimizer on ready tensors, same network, batch and threads), writing checkpoints every 1000 steps below 1 % of the
time. Both loops take turns in one process, block by block of steps, so that what else the machine does falls on both
sides. Two processes with one thread each are compared with one process with one thread, and with one with two.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from benchmark_data import write_data

from sgr_diffusers.models.prior import create_prior, create_scheduler
from sgr_diffusers.models.segmentation import SegmentationUNet
from sgr_diffusers.training.data import slices_of
from sgr_diffusers.training.loop import fit
from sgr_diffusers.training.options import TrainingOptions
from sgr_diffusers.training.prior_loss import denoising_loss
from sgr_diffusers.training.prior_task import PriorLoss
from sgr_diffusers.training.segmentation_task import SegmentationLoss
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

ROOT = Path(__file__).parents[2]


def batch_size(kind, args):
    """The scripts' defaults have this ratio, too."""
    return args.train_batch_size * (1 if kind == "prior" else 2)


class Bare:
    """Forward, backward and optimizer on tensors that are there already."""

    def __init__(self, kind, args):
        generator = torch.Generator().manual_seed(0)
        self.kind = kind
        self.model = build(kind, args).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)
        n = batch_size(kind, args)
        shape = (n, 2, *args.size)
        self.images, self.noise = (torch.randn(shape, generator=generator) for _ in range(2))
        self.timesteps = torch.randint(0, 1000, (n,), generator=generator)
        self.magnitude = self.images.norm(dim=1, keepdim=True)
        self.labels = torch.randint(0, 5, (n, 1, *args.size), generator=generator)
        self.scheduler = create_scheduler()
        self.criterion = SegmentationLoss().criterion

    def step(self):
        """One of them."""
        if self.kind == "prior":
            loss = denoising_loss(self.model, self.scheduler, self.images, self.noise, self.timesteps)
        else:
            loss = self.criterion(self.model(self.magnitude), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Turns:
    """The loss of a training, which after a block of calls lets the bare loop have its turn, and takes the time."""

    def __init__(self, compute_loss, bare, block):
        self.compute_loss, self.bare, self.block = compute_loss, bare, block
        self.calls, self.since = 0, None
        self.training, self.bare_loop = [], []

    def __call__(self, *arguments):
        if self.calls % self.block == 0:
            now = time.perf_counter()
            if self.since is not None:
                self.training.append((now - self.since) / self.block)
            for _ in range(self.block):
                self.bare.step()
            self.since = time.perf_counter()
            self.bare_loop.append((self.since - now) / self.block)
        self.calls += 1
        return self.compute_loss(*arguments)

    def ratio(self):
        """Median of bare over training, both neighbours of a block of training counted; first block left out."""
        pairs = zip(self.training[1:], self.bare_loop[1:], self.bare_loop[2:], strict=False)
        ratios = [(before + after) / 2 / own for own, before, after in pairs]
        return statistics.median(ratios), statistics.median(self.training[1:])


def build(kind, args):
    """An untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "prior":
            return create_prior(args.preset, **({"out_channels": 2}))
        return SegmentationUNet()


def throughput(kind, data, folder, args, **how):
    """Prints the speed of training over that of the bare loop; returns seconds a step, and of a checkpoint."""
    preload = how.get("dataloader_num_workers") is None
    dataset = slices_of(data, "train", with_labels=kind != "prior", preload=preload)
    loss = PriorLoss(create_scheduler()) if kind == "prior" else SegmentationLoss()
    turns = Turns(loss, Bare(kind, args), args.block)
    options = TrainingOptions(
        str(folder),
        max_train_steps=args.block * (args.n_blocks + 2) + 1,
        train_batch_size=batch_size(kind, args),
        foreground_fraction=0.4 if kind != "prior" else 0.0,
        checkpointing_steps=0,
        logging_steps=10**6,
        overwrite_output_dir=True,
        **how,
    )
    foreground = dataset.foreground if options.foreground_fraction else None
    state = fit(build(kind, args), dataset, turns, options, Accelerator(cpu=True), "network", foreground)
    ratio, seconds = turns.ratio()
    where = "held in memory" if preload else f"from disk, {how['dataloader_num_workers']} workers"
    print(
        f"  {kind:12} {where:22} {ratio:.3f} x the bare loop ({1e3 * seconds:.0f} ms a step)  goal >= 0.95", flush=True
    )
    return seconds, state.checkpoint_seconds


def loops(data, folder, args):
    """Prints the speed of the loop that trains, with the slices read in every way, and what a checkpoint costs."""
    print(f"training, slices of {args.size}, {args.num_threads} threads:")
    for kind in ("prior", "segmentation"):
        for n_workers in args.num_workers:
            costs = throughput(kind, data, folder, args, dataloader_num_workers=n_workers)
        throughput(kind, data, folder, args)
        print("  a checkpoint:", end="")
        checkpoints(*costs, folder)


def checkpoints(seconds_per_step, seconds, folder):
    """Prints what one checkpoint costs."""
    size = sum(path.stat().st_size for path in folder.glob("checkpoint-*/**/*") if path.is_file()) / 2**20
    share = seconds / (1000 * seconds_per_step + seconds)
    print(
        f"  {seconds:.2f} s for {size:.0f} MiB, {100 * share:.2f} % of the time with one every 1000 steps  goal < 1 %"
    )


def free_port():
    """Option of torchrun that names a port which nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return ["--master_port", str(free.getsockname()[1])]


def processes(data, folder, args):
    """Prints images per second of two processes over one, as the training script logs them."""
    print("processes:")
    speeds = {}
    for _ in range(args.repetitions):
        for name, n_processes, n_threads in (("1 x 1", 1, 1), ("2 x 1", 2, 1), ("1 x 2", 1, 2)):
            batch = 2 * args.train_batch_size // n_processes
            options = f"--train-batch-size {batch} --max-train-steps {2 * args.block} --logging-steps {args.block} "
            options += f"--num-threads {n_threads} --preset {args.preset} --validation-steps 0 --validation-samples 0 "
            options += "--validation-pictures 0 --validation-slices 1 --overwrite-output-dir --cpu"
            launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(n_processes), *free_port()]
            command = [*(launch if n_processes > 1 else []), str(ROOT / "training/train_prior.py"), *options.split()]
            command += ["--data-dir", str(data), "--output-dir", str(folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
            environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
            log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            speeds.setdefault(name, []).append([row["images_per_second"] for row in log if "loss" in row][-1])
    one = speeds["1 x 1"]
    for name, what in (("2 x 1", "two processes of one thread"), ("1 x 2", "one process of two threads")):
        share = statistics.median(a / b for a, b in zip(speeds[name], one, strict=True))
        print(f"  {what}: {share:.2f} x one process of one thread, same batch in all", flush=True)
    cores = len(os.sched_getaffinity(0))
    print(f"  on {cores} cores; {statistics.median(one):.1f} images/s with one process")


def peak_memory(kind, args, checkpointing, n):
    """Peak resident memory in MiB of a fresh process that trains for two steps on n slices; n = 0 only builds."""
    code = (
        "import re, sys, torch; sys.path.insert(0, sys.argv[1]); import benchmark_training as b, argparse\n"
        "args = argparse.Namespace(train_batch_size=max(int(sys.argv[4]), 1), preset=sys.argv[6])\n"
        "args.size = tuple(int(n) for n in sys.argv[5].split('x'))\n"
        "torch.set_num_threads(1); bare = b.Bare(sys.argv[2], args)\n"
        "if int(sys.argv[3]): bare.model.enable_gradient_checkpointing()\n"
        "if int(sys.argv[4]): bare.step(); bare.step()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    arguments = [
        str(Path(__file__).parent),
        kind,
        str(int(checkpointing)),
        str(n),
        "{}x{}".format(*args.size),
        args.preset,
    ]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def memory(args):
    """Prints what a training step holds, with and without gradient checkpointing."""
    print("memory of a training step:")
    for kind in ("prior", "segmentation"):
        base = peak_memory(kind, args, False, 0)
        plain, less = (peak_memory(kind, args, how, args.memory_batch) - base for how in (False, True))
        print(
            f"  {kind:12} {args.memory_batch} slices: {plain:.0f} MiB above the network; with gradient checkpointing "
            f"{less:.0f}, {less / plain:.2f} x",
            flush=True,
        )


def main():
    """Measure and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--preset", default="small", help="of the prior")
    parser.add_argument("--size", type=int, nargs=2, default=[96, 80], help="of a slice")
    parser.add_argument("--train-batch-size", type=int, default=8, help="of the prior; twice as many for segmentation")
    parser.add_argument("--num-threads", type=int, default=1, help="of the two loops")
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 1], help="processes that read")
    parser.add_argument("--block", type=int, default=10, help="steps before the other loop has its turn")
    parser.add_argument("--n-blocks", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3, help="of the runs with several processes")
    parser.add_argument("--memory-batch", type=int, default=16)
    parser.add_argument("--only", choices=("loops", "memory", "processes"), help="one of the three parts")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    with tempfile.TemporaryDirectory() as temporary:
        data, folder = Path(temporary, "data"), Path(temporary, "run")
        write_data(data, 8, (64, *args.size), 2, chunked=True)
        shutil.copy(data / "annotations/v1.0.0/train.json", data / "annotations/v1.0.0/val.json")
        if args.only in (None, "loops"):
            loops(data, folder, args)
        if args.only in (None, "memory"):
            memory(args)
        if args.only in (None, "processes"):
            processes(data, folder, args)


if __name__ == "__main__":
    main()
