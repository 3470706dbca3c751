import pytest
import torch
from monai.networks.nets import UNet

from sgr_diffusers.models.authors.segmentation import segmentation_from_authors, segmentation_to_authors
from sgr_diffusers.models.segmentation import SegmentationUNet

NAMES = ("cartilage", "meniscus")


def monai_unet(**changes):
    settings = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": (4, 8, 16), "strides": (2, 2)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(**{**settings, "num_res_units": 2, **changes}).eval()


@pytest.fixture(scope="module")
def state():
    return monai_unet().state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_res_units": 0},
        {"num_res_units": 1, "channels": (4, 8)},
        {"num_res_units": 3, "channels": (4, 4, 4, 8), "strides": (2, 2, 2)},
        {"strides": (2, 1)},
        {"strides": (1, 2)},
        {"strides": (2, 1), "channels": (4, 4, 8)},
        {"strides": (1, 2), "channels": (1, 4, 8)},
    ],
    ids=str,
)
def test_the_architecture_is_read_and_outputs_are_the_same_to_the_bit(settings):
    if "channels" in settings:
        settings = {"strides": (2,) * (len(settings["channels"]) - 1), **settings}
    network = monai_unet(**settings)
    model = segmentation_from_authors(network.state_dict(), NAMES)
    for name in ("channels", "strides", "num_res_units"):
        assert model.config[name] == getattr(network, name)
    assert model.config.class_names == NAMES and not model.training and not model.config.flip_average
    for size in ((16, 16), (24, 40)):
        image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert torch.equal(model(image), network(image))


def test_there_and_back_is_the_same_to_the_bit(state):
    back = segmentation_to_authors(segmentation_from_authors(state, NAMES))
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())
    monai_unet().load_state_dict(back)


def test_the_papers_network_has_the_classes_of_skm_tea():
    with torch.device("meta"):
        network = UNet(2, 1, 5, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
        expected = SegmentationUNet()
    model = segmentation_from_authors(network.state_dict(), flip_average=True)
    names = [name for name in expected.config if not name.startswith("_")]
    assert {name: model.config[name] for name in names} == {
        name: name == "flip_average" or expected.config[name] for name in names
    }
    assert model.state_dict().keys() == expected.state_dict().keys()


def test_with_flip_average_it_is_the_mean_over_four_flips_as_in_the_authors_code(state):
    network, model = monai_unet(), segmentation_from_authors(state, NAMES, flip_average=True)
    image = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = sum(network(image.flip(axes)).softmax(dim=1).flip(axes) for axes in ([], [2], [3], [2, 3])) / 4
        torch.testing.assert_close(model(image).softmax(dim=1), expected)


def test_half_precision_becomes_single_precision(state):
    model = segmentation_from_authors({key: value.half() for key, value in state.items()}, NAMES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("strides", [(4, 2), (2, 3)])
def test_other_strides_are_taken_from_the_caller(strides):
    network = monai_unet(strides=strides)
    model = segmentation_from_authors(network.state_dict(), NAMES, strides)
    image = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(image), network(image))


@pytest.mark.parametrize("n_res_units", [0, 2])
def test_every_missing_key_is_named(n_res_units):
    state = monai_unet(num_res_units=n_res_units).state_dict()
    for key in state:
        with pytest.raises(ValueError) as error:
            segmentation_from_authors({name: value for name, value in state.items() if name != key}, NAMES)
        assert key in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "BATCH"}, r"unexpected: model\.0\.conv\.unit0\.adn\.N\.weight, .* and \d+ more"),
        ({"act": "RELU"}, r"missing: model\.0\.conv\.unit0\.adn\.A\.weight"),
        ({"bias": False}, r"missing: model\.0\.conv\.unit0\.conv\.bias"),
        ({"kernel_size": 5}, r"model\.0\.conv\.unit0\.conv\.weight must have the shape \(4, 1, 3, 3\)"),
        ({"in_channels": 2}, r"model\.0\.conv\.unit0\.conv\.weight: the network has 2 input channels"),
        ({"spatial_dims": 3}, r"model\.0\.conv\.unit0\.conv\.weight must have 4 axes in a network for images"),
    ],
    ids=str,
)
def test_another_architecture_is_refused_by_the_key(settings, message):
    with pytest.raises(ValueError, match=message):
        segmentation_from_authors(monai_unet(**settings).state_dict(), NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"`class_names` \(--class-names\) must name the 2 output channels .*, got none"),
        ({"class_names": ("a",)}, "got 1: a. The network has 3 output channels"),
        ({"class_names": NAMES, "strides": (2,)}, r"`strides` \(--strides\) must be 2 factors .* got \(2,\)"),
        ({"class_names": NAMES, "strides": (2, 0)}, r"1 or more, .* got \(2, 0\)"),
        ({"class_names": ("a", "a")}, "different names"),
    ],
)
def test_arguments_that_do_not_fit(state, arguments, message):
    with pytest.raises(ValueError, match=message):
        segmentation_from_authors(state, **arguments)


def test_strides_against_what_the_checkpoint_shows():
    state = monai_unet(strides=(2, 1)).state_dict()
    with pytest.raises(ValueError, match="`strides` has 2 below level 1, where the checkpoint shows a stride of 1"):
        segmentation_from_authors(state, NAMES, (2, 2))


def test_something_else_is_refused():
    with pytest.raises(
        ValueError, match=r"model\.0\.conv\.unit0\.conv\.weight is missing .* begins with conv\.weight"
    ):
        segmentation_from_authors({"conv.weight": torch.ones(1)}, NAMES)
