"""Networks of other libraries as segmentation models: real ones, tiny, with random weights, through a guided call."""

import importlib
import importlib.util

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from sgr_diffusers.models.adapters import SegmentationAdapter
from tests.helpers.pipeline_parts import build, call, draw_problem
from tests.helpers.torchvision_stub import torchvision_or_stub

SIZE = (16, 12)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Recorder(nn.Module):
    """Keeps its input, returns fixed logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.seen = logits, []

    def forward(self, images):
        self.seen.append(images)
        return self.logits


def monai_unet():
    return SegmentationAdapter(
        UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,)).eval(),
        ["one", "two"],
        size_multiple=2,
    )


@pytest.fixture
def smp():
    """The real segmentation-models-pytorch, with torchvision stubbed if it is not there."""
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip("segmentation-models-pytorch is not installed; `make test` installs it")
    with torchvision_or_stub("timm", "segmentation_models_pytorch"):
        yield importlib.import_module("segmentation_models_pytorch")


def guided_call_moves(model):
    """The bounds of a guided call with this segmentation model are finite and differ."""
    out = call(build(model), draw_problem(n_slices=1), guidance_strength=0.05, classes=[1])
    lower, upper = out.images[0, 0]
    return torch.isfinite(torch.view_as_real(out.images)).all() and (upper - lower).norm() > 1e-4 * upper.norm()


def test_monai():
    torch.manual_seed(0)
    model = monai_unet()
    assert model(draw(2, 1, *SIZE)).shape == (2, 3, *SIZE)
    assert guided_call_moves(model)


def test_segmentation_models_pytorch_with_three_channels_and_one_logit(smp):
    torch.manual_seed(0)
    network = smp.Unet("mit_b0", encoder_weights=None, decoder_channels=(8, 8, 8, 8, 8), classes=1).eval()
    model = SegmentationAdapter(
        network,
        ["cartilage"],
        in_channels=3,
        intensity="minmax",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size_multiple=32,
    )
    magnitude = draw(2, 1, 32, 32)
    logits = model(magnitude)
    flat = magnitude.flatten(1)
    low, high = flat.amin(1)[:, None, None, None], flat.amax(1)[:, None, None, None]
    rgb = ((magnitude - low) / (high - low)).expand(-1, 3, -1, -1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rgb = (rgb - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(logits[:, 1:], network(rgb))
    torch.testing.assert_close(logits.softmax(1)[:, 1:], network(rgb).sigmoid())
    assert guided_call_moves(model)


def test_transformers_with_another_size_and_grouped_labels():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_channels=3,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=6,
    )
    network = transformers.SegformerForSemanticSegmentation(config).eval()
    network.decode_head.classifier.weight.data *= 1e3  # initial weights hardly react to the image
    model = SegmentationAdapter(
        network, ["bone", "fat"], channels={"fat": 4, "bone": [1, 5]}, in_channels=3, input_size=(32, 32)
    )
    magnitude = draw(1, 1, *SIZE)
    probability = model(magnitude).softmax(1)
    assert probability.shape == (1, 3, *SIZE)
    resized = nn.functional.interpolate(magnitude, (32, 32), mode="bilinear", antialias=True)
    logits = network(resized.expand(-1, 3, -1, -1)).logits
    assert logits.shape[-2:] == (8, 8)
    expected = nn.functional.interpolate(logits, SIZE, mode="bilinear").softmax(1)
    torch.testing.assert_close(probability[:, 1], expected[:, 1] + expected[:, 5])
    torch.testing.assert_close(probability[:, 2], expected[:, 4])
    assert guided_call_moves(model)


@pytest.mark.parametrize("form", [lambda x: (x, x + 1), lambda x: [x], lambda x: {"out": x}, lambda x: {"logits": x}])
def test_forms_of_output(form):
    logits = draw(1, 3, *SIZE)
    model = SegmentationAdapter(Recorder(form(logits)), ["one", "two"])
    assert torch.equal(model(draw(1, 1, *SIZE)), logits)


def test_intensities():
    magnitude = 3 + 2 * draw(2, 1, *SIZE)
    for intensity, check in (
        ("quantile", lambda x: torch.equal(x, magnitude)),
        ("minmax", lambda x: x.amin((1, 2, 3)).tolist() == [0, 0] and x.amax((1, 2, 3)).tolist() == [1, 1]),
        ("zscore", lambda x: torch.allclose(x.std((1, 2, 3)), torch.ones(2)) and float(x.mean().abs()) < 1e-5),
    ):
        recorder = Recorder(draw(2, 2, *SIZE))
        SegmentationAdapter(recorder, ["one"], intensity=intensity)(magnitude)
        assert check(recorder.seen[0]), intensity
    constant = Recorder(draw(1, 2, *SIZE))
    SegmentationAdapter(constant, ["one"], intensity="zscore")(torch.ones(1, 1, *SIZE))
    assert torch.isfinite(constant.seen[0]).all()  # an empty slice, as the pipeline probes with


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"intensity": "uint8"}, "`intensity` must be one of"),
        ({"channels": {"two": 1}}, "`channels` must name the classes"),
        ({"channels": {"one": 7}}, "`channels` must be different ones of the network's 3"),
        ({"channels": {"one": [0, 1, 2]}}, "one left for the background"),
        ({"channels": {"one": [1, 1]}}, "`channels` must be different ones"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationAdapter(Recorder(draw(1, 3, *SIZE)), ["one"], **arguments)(draw(1, 1, *SIZE))


def test_output_without_logits_is_named():
    with pytest.raises(TypeError, match="returns str, in which no logits are found"):
        SegmentationAdapter(Recorder("mask"), ["one"])(draw(1, 1, *SIZE))
