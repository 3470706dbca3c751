"""No step of the loop waits for the device, which would be idle until the host has asked for more."""

import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sgr_diffusers import SegmentationGuidance
from sgr_diffusers.mri.solvers import conjugate_gradient
from sgr_diffusers.pipeline.networks import FiniteWatch
from sgr_diffusers.utils import late_flags
from tests.helpers.pipeline_parts import build, build_unet, call, draw_problem
from tests.pipeline.test_device import DEVICE

WAITING_OPERATIONS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"}
WAITING_METHODS = {"tolist", "cpu", "numpy"}
# They read numbers that lie on the host already, or flags that were sent there while the device has other work. What
# networks and schedulers of diffusers do is not for this package to change.
MAY_READ = ("/schedulers/sampler.py", "/utils/late_flags.py", "/site-packages/diffusers/")


def reader():
    """File and line, of this package or of diffusers, that the code which runs now was called from."""
    frame = sys._getframe(1)
    while frame:
        place = Path(frame.f_code.co_filename).as_posix()
        if "/sgr_diffusers/" in place or "/diffusers/" in place:
            return f"{place}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class Waits(list):
    def note(self, name):
        place = reader()
        if not any(part in place for part in MAY_READ):
            self.append(f"{name} at {place}")


class Operations(TorchDispatchMode):
    """Notes operations whose result the host reads, also those inside of others."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITING_OPERATIONS:
            self.waits.note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Notes what is a wait on an accelerator, but no operation on a CPU."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        is_sent = name == "to" and any(isinstance(given, torch.device | str) for given in (*args, *kwargs.values()))
        is_list_index = name in ("__getitem__", "__setitem__") and isinstance(args[1], list)
        is_made = name == "tensor" and kwargs.get("device") is not None
        if name in WAITING_METHODS or (is_sent and not kwargs.get("non_blocking")) or is_list_index or is_made:
            self.waits.note(name)
        return func(*args, **kwargs)


CALLS = {
    "bounds": {},
    "late bounds by volume": {"guidance": SegmentationGuidance(start=0.5, target_volume_mm3=60.0)},
    "tissue of two classes": {"guidance": SegmentationGuidance(classes=["bright", "never"])},
    "noise-aware": {"consistency": "noise_aware", "noise_std": 0.1},
    "plain": {"target": "none", "combine": "mean", "num_samples": 2},
}


@pytest.mark.parametrize("settings", CALLS.values(), ids=CALLS)
def test_no_step_waits_for_the_device(settings):
    waits, per_step = Waits(), []
    pipe = build(unet=build_unet(), is_equivariant=True).to(DEVICE)

    def callback(pipe, step, timestep, tensors):
        per_step.append(len(waits))
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("error" if step < 6 else "default")

    settings = {"num_inference_steps": 8, "generator": torch.Generator(DEVICE).manual_seed(0), **settings}
    with Operations(waits), Methods(waits):
        call(pipe, draw_problem(), callback_on_step_end=callback, **settings)
    assert per_step[0] > 0, "the checks before the first step are seen"
    assert waits[per_step[0] : per_step[-1]] == []


# --- what arrives late ----------------------------------------------------------------------------------------------


class Arrival:
    """Event of a device that has always done its work."""

    def __init__(self, device):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass


@pytest.fixture
def late_arrival(monkeypatch):
    monkeypatch.setattr(late_flags, "_COPIES_LATE", ("cpu",))
    monkeypatch.setattr(torch, "Event", Arrival)


def test_networks_that_are_not_finite_are_refused_one_step_late(late_arrival):
    watch, network, bad = FiniteWatch(), torch.nn.Identity(), torch.tensor([1.0, torch.nan])
    watch.begin_step()
    watch("unet", network, bad)
    watch.begin_step()
    with pytest.raises(ValueError, match="`unet` returned NaN or infinity"):
        watch.begin_step()
    watch("segmentation_model", network, bad)
    with pytest.raises(ValueError, match="`segmentation_model` returned NaN"):
        watch.finish()
    watch.finish()


def test_results_are_those_of_a_device_that_is_waited_for(late_arrival, monkeypatch):
    late = call(build("unet"), consistency="noise_aware", noise_std=0.1)
    monkeypatch.undo()
    prompt = call(build("unet"), consistency="noise_aware", noise_std=0.1)
    torch.testing.assert_close(late.images, prompt.images, rtol=0, atol=0)


def test_an_iteration_more_of_conjugate_gradients_changes_nothing(late_arrival, monkeypatch):
    diagonal = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rhs = torch.ones(1, 2, 2, dtype=torch.complex64)
    settings = (lambda x: diagonal * x, rhs, torch.zeros_like(rhs), 30, 1e-4)
    late = conjugate_gradient(*settings)
    monkeypatch.undo()
    prompt = conjugate_gradient(*settings)
    assert torch.equal(late.solution, prompt.solution) and torch.equal(late.iterations, prompt.iterations)
