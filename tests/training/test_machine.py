"""Kinds of distribution, trackers and optimizers: what can be used, and what is refused with the way out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, DistributedType
from diffusers import UNet2DModel
from safetensors.torch import load_file

from sgr_diffusers.training.checkpoints import is_sharded
from sgr_diffusers.training.machine import check_accelerator, create_accelerator, create_optimizer
from sgr_diffusers.training.options import TrainingOptions
from tests.helpers.tiny_training import finish, forget_accelerator, start_processes, train

CONFIGS = Path(__file__).parents[2] / "training/accelerate_configs"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", DistributedType.NO),
        ("multi_gpu", DistributedType.MULTI_GPU),
        ("multi_node", DistributedType.MULTI_GPU),
        ("fsdp", DistributedType.FSDP),
        ("deepspeed_zero2", DistributedType.DEEPSPEED),
    ],
)
def test_the_shipped_configurations_are_understood(name, kind):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert DistributedType(config.distributed_type) == kind
    assert config.num_processes % config.num_machines == 0
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2


def test_there_is_no_configuration_without_a_test():
    tested = {"cpu", "multi_gpu", "multi_node", "fsdp", "deepspeed_zero2"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tested


class Pretended(Accelerator):
    """What an accelerator says of itself on machines with GPUs."""

    distributed_type = state = None

    def __init__(self, kind, zero_stage=None):
        plugin = SimpleNamespace(zero_stage=zero_stage, deepspeed_config={"train_micro_batch_size_per_gpu": "auto"})
        self.distributed_type, self.state = kind, SimpleNamespace(deepspeed_plugin=plugin)


@pytest.mark.parametrize(("kind", "stage"), [(DistributedType.FSDP, None), (DistributedType.DEEPSPEED, 3)])
def test_sharded_weights_cannot_be_averaged(kind, stage):
    accelerator = Pretended(kind, stage)
    assert is_sharded(accelerator)
    with pytest.raises(ValueError, match="--ema-decay 0"):
        check_accelerator(accelerator, TrainingOptions(max_train_steps=1))
    check_accelerator(accelerator, TrainingOptions(max_train_steps=1, ema_decay=0.0))


def test_deepspeed_is_told_the_batch():
    accelerator = Pretended(DistributedType.DEEPSPEED, 2)
    assert not is_sharded(accelerator)
    options = TrainingOptions(
        max_train_steps=1, train_batch_size=3, gradient_accumulation_steps=4, max_grad_norm=0.5, mixed_precision="no"
    )
    check_accelerator(accelerator, options)
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    assert config == {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 4, "gradient_clipping": 0.5}
    with pytest.raises(ValueError, match="keeps the weights rounded"):
        check_accelerator(accelerator, TrainingOptions(max_train_steps=1, mixed_precision="bf16"))


def test_accelerates_plugin_has_the_names_that_are_used():
    plugin = DeepSpeedPlugin.__dataclass_fields__
    assert {"zero_stage", "hf_ds_config"} <= set(plugin)


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        create_accelerator(TrainingOptions(str(tmp_path), max_train_steps=1, report_to=("wandb",)))


@pytest.mark.parametrize(
    ("option", "message"),
    [("use_8bit_adam", r"pip install bitsandbytes|needs a GPU"), ("compile", "zero gradient.*Leave it out")],
)
def test_what_needs_a_gpu_says_so(option, message):
    with pytest.raises((ImportError, ValueError), match=message):
        check_accelerator(Accelerator(cpu=True), TrainingOptions(max_train_steps=1, **{option: True}))


def test_precision_that_was_told_to_the_launcher_is_not_ignored_in_silence(tmp_path, monkeypatch, caplog):
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = create_accelerator(TrainingOptions(str(tmp_path), max_train_steps=1, cpu=True))
    assert accelerator.mixed_precision == "no" and "pass --mixed-precision bf16" in caplog.text
    caplog.clear()
    forget_accelerator()
    create_accelerator(TrainingOptions(str(tmp_path), max_train_steps=1, cpu=True, mixed_precision="bf16"))
    assert not caplog.text


def test_the_optimizer_is_as_the_options_say():
    options = TrainingOptions(max_train_steps=1, adam_beta1=0.8, adam_epsilon=1e-6, weight_decay=0.1)
    optimizer = create_optimizer([torch.nn.Parameter(torch.zeros(2))], options, torch.device("cpu"))
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["fused"]) == ((0.8, 0.999), 1e-6, 0.1, True)


def test_options_of_the_machine_are_set(tmp_path):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        options = TrainingOptions(
            str(tmp_path), max_train_steps=1, allow_tf32=True, num_threads=1, cpu=True, gradient_accumulation_steps=3
        )
        accelerator = create_accelerator(options)
        assert torch.backends.cuda.matmul.allow_tf32 and torch.get_num_threads() == 1
        assert accelerator.device.type == "cpu" and accelerator.gradient_accumulation_steps == 3
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_wandb_offline_gets_losses_and_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = TrainingOptions(str(tmp_path), max_train_steps=1, report_to=("wandb",), cpu=True)
    accelerator = create_accelerator(options)
    assert isinstance(accelerator, Accelerator)
    train(tmp_path, accelerator=accelerator, validate=picture, max_train_steps=2, report_to=("wandb",))
    accelerator.end_training()
    wandb.teardown()  # its own process closes the file; `finish` does not wait for that
    runs = list(tmp_path.glob("wandb/offline-run-*"))
    assert len(runs) == 1
    assert next(runs[0].glob("*.wandb")).stat().st_size > 500
    assert len(list(runs[0].rglob("*.png"))) == 2


def picture(network):
    import numpy as np

    from sgr_diffusers.training.log import Validation

    return Validation({"score": 1.0}, {"grey": np.arange(32, dtype=np.uint8).reshape(2, 4, 4)})


def sharded(output_dir, **options):
    """Accelerate shards on GPUs only; told that it has some, it does on a CPU, too."""
    import os

    from accelerate import PartialState

    # What `accelerate launch --config_file fsdp.yaml` sets.
    for key, value in load_config_from_file(str(CONFIGS / "fsdp.yaml")).fsdp_config.items():
        os.environ[key.upper()] = str(value).lower() if isinstance(value, bool) else str(value)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    accelerator = Accelerator(cpu=True)
    assert is_sharded(accelerator)
    train(
        output_dir, accelerator=accelerator, validate=picture, ema_decay=0.0, gradient_accumulation_steps=1, **options
    )


@pytest.mark.slow
def test_sharded_weights_are_trained_and_resumed_as_whole_ones_are(tmp_path):
    end = {"max_train_steps": 4, "lr_scheduler": "constant"}
    alone = {**end, "ema_decay": 0.0, "gradient_accumulation_steps": 1}
    finish(start_processes(2, train, tmp_path / "plain", **alone))
    finish(start_processes(2, sharded, tmp_path / "whole", **end))
    finish(start_processes(2, sharded, tmp_path / "parts", **{**end, "max_train_steps": 2}))
    finish(start_processes(2, sharded, tmp_path / "parts", resume_from_checkpoint="latest", **end))
    plain, whole, parts = (
        load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors") for name in ("plain", "whole", "parts")
    )
    for key in plain:
        assert torch.equal(whole[key], parts[key])
        torch.testing.assert_close(whole[key], plain[key], rtol=1e-3, atol=1e-3)
    assert UNet2DModel.from_pretrained(tmp_path / "whole/checkpoint-4/unet").config.block_out_channels == [8, 8]
