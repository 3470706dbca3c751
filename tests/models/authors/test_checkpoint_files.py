import pickle
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sgr_diffusers.models.authors.checkpoint_files import read_state_dict, shortened

ANCHORS = ("first.weight", "start.weight")


class TouchesAFile:
    """Makes a file when it is unpickled: harmless, but it could be anything."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def state():
    return {"first.weight": torch.arange(6.0).view(2, 3), "first.bias": torch.ones(2), "second.weight": torch.ones(4)}


@pytest.fixture
def saved(tmp_path):
    def save(content, name="file.pt", **settings):
        torch.save(content, tmp_path / name, **settings)
        return tmp_path / name

    return save


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def assert_same(found, state):
    assert list(found) == list(state)
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {key: nn.Parameter(value) for key, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 7},
        lambda state: {"ema": {"model": state}, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
        lambda state: prefixed("module.", state),
        lambda state: {"state_dict": prefixed("net.module.", state), "hyper_parameters": {"lr": 1e-4}},
        lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
    ],
)
def test_one_network_is_found_wherever_it_is(saved, state, wrap):
    assert_same(read_state_dict(saved(wrap(state)), ANCHORS), state)


def test_files_of_the_older_format_and_safetensors(saved, state, tmp_path):
    assert_same(read_state_dict(saved(state, _use_new_zipfile_serialization=False), ANCHORS), state)
    save_file(state, tmp_path / "file.safetensors")
    found = read_state_dict(tmp_path / "file.safetensors", ANCHORS)
    assert_same({key: found[key] for key in state}, state)


def test_an_averaged_model_of_torch_is_read(saved):
    network = nn.Sequential(OrderedDict(first=nn.Linear(3, 2), second=nn.Linear(2, 2)))
    assert_same(read_state_dict(saved(AveragedModel(network).state_dict()), ANCHORS), network.state_dict())


def test_of_two_networks_one_must_be_named(saved, state):
    averaged = {key: value + 1 for key, value in state.items()}
    path = saved({"state_dict": state, "ema": averaged})
    with pytest.raises(
        ValueError, match=r"holds 2 networks, 'state_dict', 'ema'\. Choose a network by .* --prior-entry"
    ):
        read_state_dict(path, ANCHORS)
    assert_same(read_state_dict(path, ANCHORS, "ema"), averaged)
    with pytest.raises(ValueError, match=r"`entry` must be one of .*'state_dict', 'ema', got 'average'"):
        read_state_dict(path, ANCHORS, "average")


@pytest.mark.parametrize("own", ["", "model."])
def test_of_two_networks_side_by_side_one_must_be_named(saved, state, own):
    averaged = {key: value + 1 for key, value in state.items()}
    path = saved({"state_dict": prefixed(own, state) | prefixed("model_ema.", averaged)})
    with pytest.raises(ValueError, match="holds 2 networks"):
        read_state_dict(path, ANCHORS)
    assert_same(read_state_dict(path, ANCHORS, "state_dict.model" if own else "state_dict"), state)
    assert_same(read_state_dict(path, ANCHORS, "state_dict.model_ema"), averaged)


def test_the_file_itself_is_named_by_an_empty_text(saved, state):
    path = saved({**state, "ema": {key: value + 1 for key, value in state.items()}})
    with pytest.raises(ValueError, match=r"'' \(the file itself\), 'ema'"):
        read_state_dict(path, ANCHORS)
    with pytest.raises(ValueError, match="'ema' is of type dict, where a tensor is expected"):
        read_state_dict(path, ANCHORS, "")


def test_tensors_beside_the_network_are_left_out_on_demand_only(saved, state):
    path = saved({"state_dict": {**prefixed("net.", state), "criterion.weight": torch.ones(5)}})
    with pytest.raises(ValueError, match=r"beside it criterion\.weight.* leave them out by `entry` 'state_dict\.net'"):
        read_state_dict(path, ANCHORS)
    assert_same(read_state_dict(path, ANCHORS, "state_dict.net"), state)


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 1}]}, "2 entries: state, param_groups"),
        ({"afirst.weight": torch.ones(1)}, "1 entries: afirst.weight"),
        ({f"key_{n}": n for n in range(9)}, "9 entries: key_0, key_1, key_2, key_3, key_4 and 4 more"),
        ({}, "nothing"),
        ([torch.ones(1)], "an object of type list"),
        (torch.ones(1), "an object of type Tensor"),
    ],
)
def test_a_file_of_something_else_is_described(saved, content, held):
    with pytest.raises(ValueError) as error:
        read_state_dict(saved(content), ANCHORS)
    assert "no key in it is or ends in first.weight or start.weight" in str(error.value)
    assert str(error.value).endswith(f"It holds {held}.")


def test_a_value_that_is_no_tensor_is_named(saved, state):
    with pytest.raises(ValueError, match="'step' is of type int, where a tensor is expected"):
        read_state_dict(saved({**state, "step": 3}), ANCHORS)


def test_a_file_that_contains_itself_ends(saved, state):
    content = {"state_dict": state}
    content["self"] = content
    with pytest.raises(ValueError, match="holds 4 networks"):
        read_state_dict(saved(content), ANCHORS)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(saved, state, tmp_path, zipped):
    trace = tmp_path / "it ran"
    path = saved({**state, "x": TouchesAFile(trace)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"more than tensors: io\.open.*can run any code.*`model\.state_dict\(\)`"):
        read_state_dict(path, ANCHORS)
    assert not trace.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path):
    trace = tmp_path / "it ran"
    for protocol in (2, 4):
        (tmp_path / "file.pt").write_bytes(pickle.dumps(TouchesAFile(trace), protocol))
        with pytest.raises(ValueError, match=r"file\.pt (holds more than tensors|is not a PyTorch checkpoint)"):
            read_state_dict(tmp_path / "file.pt", ANCHORS)
    assert not trace.exists()
    # the same file, opened as one would without care, does make it
    pickle.loads((tmp_path / "file.pt").read_bytes()).close()
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"args": Namespace(lr=1)}, "argparse.Namespace"),
        ({"loss": np.float64(1)}, "numpy"),
    ],
)
def test_other_objects_are_refused_by_name(saved, content, name):
    with pytest.raises(ValueError, match=f"holds more than tensors: {name}"):
        read_state_dict(saved(content), ANCHORS)


def test_what_is_no_checkpoint_or_cut_short_is_refused(saved, state, tmp_path):
    zipped = saved({**state, "more": torch.ones(3000)}).read_bytes()
    older = saved({**state, "more": torch.ones(3000)}, _use_new_zipfile_serialization=False).read_bytes()
    archive = tmp_path / "archive.npz"
    np.savez(archive, a=1)
    contents = [b"", b"just text\n", bytes(range(256)), zipped[: len(zipped) // 2], older[: len(older) // 2]]
    for content in [*contents, archive.read_bytes()]:
        for name in ("file.pt", "file.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name} is not a PyTorch checkpoint, or it is damaged: "):
                read_state_dict(tmp_path / name, ANCHORS)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no checkpoint file"):
            read_state_dict(path, ANCHORS)


def test_shortened():
    assert shortened(["a", "b"]) == "a, b"
    assert shortened([*"abcdefg"], 3) == "a, b, c and 4 more"
