"""A tiny prior in training, in this process or in forked ones that can be killed."""

import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from sgr_diffusers.models.prior import create_prior
from sgr_diffusers.training.loop import fit
from sgr_diffusers.training.options import TrainingOptions

TINY_PRIOR = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 8, "sample_size": 8}
DEFAULTS = {
    "max_train_steps": 7,
    "train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler": "trapezoidal",
    "lr_warmup_steps": 2,
    "logging_steps": 2,
    "foreground_fraction": 0.4,
}


class Slices(torch.utils.data.Dataset):
    images = torch.randn(10, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "scan_id": f"scan{index}", "slice": index}


def noise_loss(network, batch, generator):
    noise = torch.randn(batch["image"].shape, generator=generator)
    timesteps = torch.randint(0, 1000, (len(noise),), generator=generator)
    return (network(batch["image"] + noise, timesteps).sample - noise).square().mean()


def tiny_model(**overrides):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_prior("small", **{**TINY_PRIOR, "dropout": 0.2, **overrides})


def train(
    output_dir,
    compute_loss=noise_loss,
    validate=None,
    dataset=None,
    model=None,
    identity=None,
    accelerator=None,
    **options,
):
    """A few steps of a tiny prior with dropout."""
    options = TrainingOptions(output_dir=str(output_dir), **{**DEFAULTS, **options})
    model = model or tiny_model()
    state = fit(
        model,
        dataset or Slices(),
        compute_loss,
        options,
        accelerator or Accelerator(cpu=True, mixed_precision=options.mixed_precision),
        name="unet",
        foreground=np.arange(10) > 6,
        validate=validate,
        identity=identity,
    )
    return model, state


def contents(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights, their average and the optimizer's state, by name."""
    found = {
        f"{folder}/{key}": value
        for folder in ("unet", "unet_ema")
        for key, value in load_file(checkpoint / folder / "diffusion_pytorch_model.safetensors").items()
    }
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return found | {f"{i}/{key}": value for i, state in optimizer.items() for key, value in state.items()}


def assert_same_bits(checkpoint: Path, other: Path) -> None:
    expected, actual = contents(checkpoint), contents(other)
    assert expected.keys() == actual.keys()
    assert [key for key in expected if not torch.equal(expected[key], actual[key])] == []


def forget_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


# -- processes of their own --------------------------------------------------------------------------------------


def _run_forked(rank, n_processes, port, function, arguments, options):
    torch.set_num_threads(1)
    if n_processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(n_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    forget_accelerator()
    try:
        function(*arguments, **options)
    finally:
        if n_processes > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_processes(n_processes, function, *arguments, **options):
    """Run a function of this module, or of a test, in forks of a server that has everything imported already."""
    context = multiprocessing.get_context("forkserver")
    # The server does not know the test's own path, so it imports what this module imports.
    context.set_forkserver_preload(["sgr_diffusers.training.loop", "sgr_diffusers.models.prior"])
    port = free_port()
    processes = [
        context.Process(target=_run_forked, args=(rank, n_processes, port, function, arguments, options))
        for rank in range(n_processes)
    ]
    for process in processes:
        process.start()
    return processes


def kill(processes):
    """SIGKILL, all at once."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def finish(processes, timeout=300):
    """Wait, and require that all went well."""
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    if any(codes):
        kill(processes)
    assert codes == [0] * len(processes)
