"""Save and load checkpoints of a training run, which are whole or not there, and find the newest whole one.

A folder named ``checkpoint-<step>`` holds the weights ``<name>/``, their average ``<name>_ema/`` (both as
`from_pretrained` reads them), optimizer and random states as accelerate writes them, ``training_state.json``, and a
manifest of all files that was written last.
"""

import dataclasses
import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import nn

from ..utils.differences import difference
from ..utils.disk import disk_errors
from ..utils.files import recover_all, remove_folder, rename_folder, replaced_folder, write_json
from .files import find_damage, seal_folder
from .options import TrainingOptions
from .record import TrainingState

__all__ = ["Checkpoints", "averaged_weights", "is_sharded", "latest_checkpoint", "prepare_output_dir"]

logger = logging.getLogger(__name__)
STATE_FILE = "training_state.json"


@contextmanager
def averaged_weights(model: nn.Module, ema: EMAModel | None) -> Iterator[nn.Module]:
    """Give the model its averaged weights within the block, and its own weights again after it."""
    if ema is None:
        yield model
        return
    parameters = list(model.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield model
    finally:
        ema.restore(parameters)


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether a process holds a part of the weights only: FSDP, and DeepSpeed's ZeRO stage 3."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.state.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def all_checkpoints(output_dir: Path) -> list[Path]:
    """List the folders named as checkpoints, whole or not, oldest first."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """Find the newest whole checkpoint of a run, and warn of newer ones that are not whole; `None` if there is none.

    Raises:
        ValueError: there are checkpoints, and none is whole.
    """
    damages = {}
    for path in reversed(all_checkpoints(Path(output_dir))):
        damage = find_damage(path)
        if damage is None:
            return path
        damages[path.name] = damage
        logger.warning("%s is not a whole checkpoint: %s. Looking for the one before.", path, damage)
    if damages:
        raise ValueError(
            f"`resume_from_checkpoint`: no checkpoint in {output_dir} is whole: {damages}. Start again in another "
            "folder, or with `overwrite_output_dir`; `init_from` can start from weights of a damaged checkpoint."
        )
    return None


def prepare_output_dir(accelerator: Accelerator, options: TrainingOptions, name: str) -> None:
    """Make the folder of a run ready: nothing of an earlier run may be taken for this one's.

    Args:
        accelerator: accelerator of the run.
        options: options of the run.
        name: name of the folder of the weights.

    Raises:
        FileExistsError: the folder holds checkpoints of a run that is not to be resumed.
        OSError: not every process sees the same folder.
    """
    folder = Path(options.output_dir)
    old = all_checkpoints(folder)
    if old and not options.resume_from_checkpoint and not options.overwrite_output_dir:
        raise FileExistsError(
            f"`output_dir` {folder} holds checkpoints of an earlier run, the last one {old[-1].name}. Continue that "
            "run by --resume-from-checkpoint latest, choose another folder, or delete them by --overwrite-output-dir."
        )
    token = broadcast_object_list([secrets.token_hex(8)])[0] if accelerator.num_processes > 1 else ""
    accelerator.wait_for_everyone()  # all have looked before anything changes
    mark = folder / f".{token}.seen"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        recover_all(folder)
        if options.overwrite_output_dir:
            failed = [*folder.glob("nonfinite-step-*"), *folder.glob("damaged-checkpoint-*")]
            for path in [*old, *failed, *(folder / entry for entry in (name, f"{name}_best", "pictures", "hub"))]:
                if path.exists():
                    remove_folder(path)
            (folder / "training_record.json").unlink(missing_ok=True)
        if token:
            mark.touch()
    accelerator.wait_for_everyone()
    if token:
        blind = gather_object([accelerator.process_index] if not mark.exists() else [])
        if accelerator.is_main_process:
            mark.unlink()
        if blind:
            raise OSError(
                f"`output_dir` {folder}: processes {blind} do not see what the first one writes there. It must be "
                "on a file system that all nodes share."
            )


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Args:
        accelerator: accelerator that has prepared model and optimizer.
        options: options of the run.
        state: state of the run; `load` fills it.
        model: model as it was before it was prepared.
        wrapped: prepared model.
        ema: average of the model's weights, if any.
        name: name of the folder of the weights.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: TrainingOptions,
        state: TrainingState,
        model: ModelMixin,
        wrapped: nn.Module,
        ema: EMAModel | None,
        name: str,
    ) -> None:
        """Nothing is written yet."""
        self.accelerator, self.options, self.state = accelerator, options, state
        self.model, self.wrapped, self.ema, self.name = model, wrapped, ema, name
        self.model_class, self.model_config = type(model), dict(model.config)
        self.output_dir = Path(options.output_dir)
        self.last_step: int | None = None
        accelerator.register_save_state_pre_hook(self._save_hook)
        accelerator.register_load_state_pre_hook(self._load_hook)

    # -- write ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of the current step; remove the oldest ones. All processes must call this.

        Raises:
            DiskError: it could not be written; the checkpoints before it are untouched.
        """
        if self.last_step == self.state.step:
            return
        started = time.monotonic()
        final = self.output_dir / f"checkpoint-{self.state.step}"
        with disk_errors(f"The checkpoint of step {self.state.step}", self._way_out()):
            partial = self._write_state(final)
            if self.accelerator.is_main_process:
                seal_folder(partial)
                rename_folder(partial, final)
        self.last_step = self.state.step
        keep = self.options.checkpoints_total_limit
        if self.accelerator.is_main_process:
            for old in all_checkpoints(self.output_dir)[:-keep] if keep else []:
                remove_folder(old)
        self.accelerator.wait_for_everyone()
        self.state.checkpoint_seconds += time.monotonic() - started

    def save_diagnosis(self, report: dict[str, Any], batches: list[dict[str, Any]]) -> Path:
        """Write what a step that failed started from: weights, optimizer, and each process's batches.

        `load` never takes this folder, ``nonfinite-step-<step>``, for a checkpoint. All processes must call this.
        """
        final = self.output_dir / f"nonfinite-step-{self.state.step}"
        with disk_errors("The state of the failed step", self._way_out()):
            partial = self._write_state(final)
            for number, batch in enumerate(batches):
                tensors = {key: value.contiguous() for key, value in batch.items() if isinstance(value, torch.Tensor)}
                save_file(tensors, partial / f"batch_{self.accelerator.process_index}_{number}.safetensors")
            if self.accelerator.is_main_process:
                write_json(partial / "report.json", report)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                rename_folder(partial, final)
        return final

    def save_weights(self, folder: Path) -> None:
        """Write the weights as `from_pretrained` reads them, replacing what is there. All processes must call this."""
        state = self.accelerator.get_state_dict(self.wrapped) if is_sharded(self.accelerator) else None
        if self.accelerator.is_main_process:
            with disk_errors(f"{folder}", self._way_out()), replaced_folder(folder) as partial:
                self._write_weights(partial, state)
            logger.info("Weights written to %s.", folder)

    def _write_weights(self, folder: Path, state: dict[str, torch.Tensor] | None) -> None:
        if state is None:
            self.model.save_pretrained(folder)
            return
        with torch.device("meta"):  # FSDP changes the class, whose name is in the configuration file
            self.model_class.from_config(self.model_config).save_config(folder)
        state = {key: value.contiguous() for key, value in state.items()}
        save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})

    def _write_state(self, final: Path) -> Path:
        """Write everything but the manifest, beside the final place."""
        partial = final.with_name(f".{final.name}.partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            state = self.accelerator.get_state_dict(self.wrapped) if is_sharded(self.accelerator) else None
            self.accelerator.save_state(str(partial))
            if self.accelerator.is_main_process:
                if state is not None:
                    self._write_weights(partial / self.name, state)
                write_json(partial / STATE_FILE, dataclasses.asdict(self.state))
            self.accelerator.wait_for_everyone()
        except Exception:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)  # a full disk should not stay full
            raise
        return partial

    def _save_hook(self, models: list[nn.Module], weights: list[Any], output_dir: str) -> None:
        if self.accelerator.is_main_process and not is_sharded(self.accelerator):
            self.model.save_pretrained(Path(output_dir) / self.name)
            if self.ema is not None:
                with averaged_weights(self.model, self.ema):
                    self.model.save_pretrained(Path(output_dir) / f"{self.name}_ema")
        weights.clear()  # so that accelerate does not write them a second time

    def _way_out(self) -> str:
        there = all_checkpoints(self.output_dir)
        if not there:
            return "Free some space and start again."
        return f"{there[-1]} is whole: free some space and continue by --resume-from-checkpoint latest."

    # -- read ----------------------------------------------------------------------------------------------------

    def load(self, which: str) -> None:
        """Restore weights, optimizer and state from `which`: a folder, or "latest", which may not exist yet.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a whole checkpoint, or belongs to a run of another configuration.
        """
        path = self._find(which)
        if path is None:
            logger.info("No checkpoint in %s yet: starting from the beginning.", self.output_dir)
            return
        restored = TrainingState.from_json(json.loads((path / STATE_FILE).read_text()))
        now = json.loads(json.dumps(dataclasses.asdict(self.state), default=str))  # as a file holds it
        different = difference(restored.identity, now["identity"])
        if different:
            raise ValueError(
                f"`resume_from_checkpoint`: {path} belongs to a run of another configuration. Different are\n"
                + "\n".join(f"  {line}" for line in different)
                + "\nUse the same options, or start a new run from the weights (--init-from)."
            )
        for line in difference(restored.schedule, now["schedule"]):
            logger.warning("resumed with another schedule or machine, and so not bit for bit: %s", line)
        self.accelerator.load_state(str(path))
        restored.identity, restored.schedule = self.state.identity, self.state.schedule
        vars(self.state).update(vars(restored))
        self.last_step = self.state.step
        logger.info("Resumed from %s.", path)

    def _find(self, which: str) -> Path | None:
        """Check on the main process, and send the result to the others."""
        answer: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                answer[0] = self._find_latest() if which == "latest" else self._check(Path(which))
            except (ValueError, OSError) as error:
                answer[1] = error
        if self.accelerator.num_processes > 1:
            broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def _find_latest(self) -> Path | None:
        path = latest_checkpoint(self.output_dir)
        for newer in all_checkpoints(self.output_dir):
            if path is not None and int(newer.name.split("-")[1]) > int(path.name.split("-")[1]):
                aside = newer.with_name(f"damaged-{newer.name}")
                shutil.rmtree(aside, ignore_errors=True)
                newer.rename(aside)
        return path

    def _check(self, path: Path) -> Path:
        if not path.is_dir():
            raise FileNotFoundError(f"`resume_from_checkpoint`: there is no folder {path}.")
        damage = find_damage(path)
        if damage is not None:
            raise ValueError(
                f"`resume_from_checkpoint`: {path} is not a complete checkpoint of this project: {damage}. Pass "
                "another one, or `latest` for the newest that is whole."
            )
        step = json.loads((path / STATE_FILE).read_text())["step"]
        later = [
            checkpoint.name
            for checkpoint in all_checkpoints(self.output_dir)
            if int(checkpoint.name.split("-")[1]) > step
        ]
        if later:
            raise ValueError(
                f"`resume_from_checkpoint`: {self.output_dir} holds {later}, which are later than {path}. Move them "
                "away, or pass another `output_dir`."
            )
        return path

    def _load_hook(self, models: list[nn.Module], input_dir: str) -> None:
        # FSDP and DeepSpeed have loaded their models themselves, and have left the list empty.
        if models:
            stored = type(self.model).from_pretrained(Path(input_dir) / self.name)
            self.model.load_state_dict(stored.state_dict())
            models.clear()
        if self.ema is not None:
            averaged = type(self.model).from_pretrained(Path(input_dir) / f"{self.name}_ema")
            for shadow, parameter in zip(self.ema.shadow_params, averaged.parameters(), strict=True):
                shadow.copy_(parameter.detach())
            self.ema.optimization_step = json.loads((Path(input_dir) / STATE_FILE).read_text())["step"]
