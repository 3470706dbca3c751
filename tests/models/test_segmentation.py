import monai
import pytest
import torch
from diffusers import DiffusionPipeline

from sgr_diffusers.models.segmentation import SegmentationUNet


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SegmentationUNet(class_names=("a", "b"), channels=(4, 8, 8), strides=(2, 2), num_res_units=1).eval()


def random_magnitude(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_defaults_are_the_papers_network():
    with torch.device("meta"):
        model = SegmentationUNet()
    assert model.n_classes == 4
    assert model.config.class_names[3] == "meniscus"
    assert model.network.out_channels == 5
    authors = monai.networks.nets.UNet(2, 1, 5, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    assert {name: value.shape for name, value in model.network.state_dict().items()} == {
        name: value.shape for name, value in authors.state_dict().items()
    }


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (8, 8), (16, 12), (17, 30)])
@pytest.mark.parametrize("flip_average", [False, True])
def test_any_size_returns_logits_of_that_size(model, size, flip_average):
    model.register_to_config(flip_average=flip_average)
    with torch.no_grad():
        logits = model(random_magnitude(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_a_fitting_size_is_not_padded(model):
    image = random_magnitude(1, 1, 16, 12)
    with torch.no_grad():
        assert torch.equal(model(image), model.network(image))


def test_flip_average_is_the_mean_of_the_probabilities(model):
    image = random_magnitude(2, 1, 16, 12)
    with torch.no_grad():
        flips = [(), (-2,), (-1,), (-2, -1)]
        expected = sum(model(image.flip(axes)).softmax(dim=1).flip(axes) for axes in flips) / 4
        model.register_to_config(flip_average=True)
        actual = model(image)
        torch.testing.assert_close(actual.exp(), expected)
        torch.testing.assert_close(actual.softmax(dim=1), expected)
        # and it is equivariant, which a single pass is not
        torch.testing.assert_close(model(image.flip(-1)).flip(-1), actual)


def test_flip_average_is_left_out_in_training(model):
    model.register_to_config(flip_average=True)
    image = random_magnitude(1, 1, 16, 12)
    with torch.no_grad():
        assert torch.equal(model.train()(image), model.network(image))


def test_gradient_reaches_the_image(model):
    model.register_to_config(flip_average=True)
    image = random_magnitude(1, 1, 10, 10).requires_grad_()
    model(image).log_softmax(1)[:, 1].sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0


def test_batch_of_n_equals_n_batches_of_one(model):
    images = random_magnitude(3, 1, 10, 14)
    with torch.no_grad():
        together = model(images)
        torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), together)


def test_round_trip_is_safetensors_only(model, tmp_path):
    model.register_to_config(flip_average=True)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = SegmentationUNet.from_pretrained(tmp_path)
    assert tuple(loaded.config.class_names) == ("a", "b")
    assert loaded.config.flip_average
    assert not loaded.training
    image = random_magnitude(1, 1, 9, 9)
    with torch.no_grad():
        assert torch.equal(model(image), loaded(image))


def test_component_of_a_pipeline(model):
    class Pipeline(DiffusionPipeline):
        def __init__(self, segmentation_model):
            super().__init__()
            self.register_modules(segmentation_model=segmentation_model)

    pipe = Pipeline(model).to(dtype=torch.float64)
    assert pipe.segmentation_model.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": ()}, "`class_names`"),
        ({"class_names": ("a", "a")}, "`class_names`"),
        ({"channels": (4, 8), "strides": (2, 2)}, "`strides`"),
    ],
)
def test_constructor_names_a_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationUNet(**arguments)


def test_wrong_channel_count(model):
    with pytest.raises(ValueError, match="`magnitude`"):
        model(random_magnitude(1, 2, 16, 16))


def test_gradient_checkpointing_changes_nothing_but_the_memory():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SegmentationUNet(channels=(4, 8, 8), strides=(2, 2), num_res_units=2).train()
    image = torch.rand(2, 1, 16, 12, generator=torch.Generator().manual_seed(0))

    def gradients_and_saved():
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one.numel()) or one, lambda one: one):
            loss = model(image).square().mean()
        model.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()], sum(saved)

    plain, n_plain = gradients_and_saved()
    model.enable_gradient_checkpointing()
    again, n_again = gradients_and_saved()
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert n_again < 0.5 * n_plain
    model.disable_gradient_checkpointing()
    assert gradients_and_saved()[1] == n_plain
