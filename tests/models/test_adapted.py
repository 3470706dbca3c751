"""Networks of MONAI and transformers by the name of their repository, saved and loaded with the pipeline."""

import json

import pytest
import torch
from monai.networks.nets import UNet

from sgr_diffusers import AdaptedSegmentation, SGRMRIPipeline
from sgr_diffusers.models.adapted import load_segmentation
from tests.helpers.pipeline_parts import SIZE, build, build_segmentation_unet, call, draw_problem

ARGUMENTS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


def draw():
    return torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def monai(tmp_path_factory):
    """A bundle, and the network whose weights it has."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    network = UNet(**ARGUMENTS).eval()
    channels = {"0": "background", "1": "cartilage", "2": "meniscus"}
    data = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"channel_def": channels}}}
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    (folder / "configs/inference.json").write_text(json.dumps({"network_def": {"_target_": "UNet", **ARGUMENTS}}))
    (folder / "configs/metadata.json").write_text(json.dumps({"network_data_format": data}))
    torch.save(network.state_dict(), folder / "models/model.pt")
    return folder, network


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("segformer")
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.SegformerConfig(
        **sizes, decoder_hidden_size=16, id2label={0: "background", 1: "bone", 2: "fat"}
    )
    network = transformers.SegformerForSemanticSegmentation(config).eval()
    network.decode_head.classifier.weight.data *= 1e3  # initial weights hardly react to the image
    network.save_pretrained(folder)
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3], "size": {"height": 32, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, network


@pytest.mark.parametrize("library", ["monai", "segformer"])
def test_it_guides_and_comes_back_with_the_pipeline(library, request, tmp_path):
    source, network = request.getfixturevalue(library)
    build(None).save_pretrained(tmp_path / "plain")
    pipe = SGRMRIPipeline.from_pretrained(tmp_path / "plain", segmentation_model=str(source))
    model = pipe.segmentation_model
    if library == "monai":
        assert pipe.class_names == ("cartilage", "meniscus")
        torch.testing.assert_close(model(draw()), network(draw()))
    else:
        assert pipe.class_names == ("bone", "fat")
        settings = {name: model.config[name] for name in ("in_channels", "intensity", "mean", "input_size")}
        expected = {"in_channels": 3, "intensity": "minmax", "mean": [0.4, 0.5, 0.6], "input_size": [32, 64]}
        assert settings == expected
        torch.testing.assert_close(model.adapter.model.state_dict(), network.state_dict())
    pipe.save_pretrained(tmp_path / "saved")
    loaded = SGRMRIPipeline.from_pretrained(tmp_path / "saved")
    assert type(loaded.segmentation_model) is AdaptedSegmentation and loaded.class_names == pipe.class_names
    assert torch.equal(loaded.segmentation_model(draw()), model(draw()))
    assert str(tmp_path) not in (tmp_path / "saved/segmentation_model/config.json").read_text()
    problem = draw_problem(n_slices=1)
    lower, upper = call(loaded, problem, guidance_strength=0.05, classes=[1]).images[0, 0]
    assert (upper - lower).norm() > 1e-4 * upper.norm()
    assert torch.equal(call(pipe, problem, guidance_strength=0.05, classes=[1]).images[0, 0, 1], upper)


def test_settings_given_take_the_place_of_those_stated(segformer):
    model = AdaptedSegmentation.from_hub(
        segformer[0], channels={"leg": [1, 2]}, intensity="zscore", input_size=[32, 32]
    )
    assert model.config.class_names == ["leg"] and model(draw()).shape == (2, 2, *SIZE)
    assert (model.config.intensity, model.config.mean) == ("zscore", [0.4, 0.5, 0.6])


def test_by_name_from_the_hub(hub, worker, monai, segformer, tmp_path):
    hub.add("org/bundle", monai[0])
    hub.add("org/segformer", segformer[0])
    build_segmentation_unet().save_pretrained(tmp_path / "own")
    hub.add("org/own", tmp_path / "own")
    build(None).save_pretrained(tmp_path / "plain")
    code = f"""
from sgr_diffusers import SGRMRIPipeline
result = []
for name in ("org/bundle", "org/segformer", "org/own"):
    pipe = SGRMRIPipeline.from_pretrained({str(tmp_path / "plain")!r}, segmentation_model=name)
    result.append([type(pipe.segmentation_model).__name__, *pipe.class_names])
"""
    assert worker.run(code) == [
        ["AdaptedSegmentation", "cartilage", "meniscus"],
        ["AdaptedSegmentation", "bone", "fat"],
        ["SegmentationUNet", "one", "two"],
    ]
    code = "from sgr_diffusers.models.adapted import load_segmentation\nload_segmentation('org/no-such')"
    assert "OSError" in worker.fail(code)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network_def": {"_target_": "UNet", "norm": "$__import__('os').getpid()"}}, "must hold plain values"),
        ({"network_def": {"_target_": "os.system", "command": "true"}}, "must be a 2-D network of monai"),
        ({"network_def": {"_target_": "UNet", **ARGUMENTS, "spatial_dims": 3}}, "must be a 2-D network of monai"),
        ({"metadata": {}}, "`class_names` must be given: .* does not state its classes"),
        ({"weights": None}, "must hold the weights as models/model.pt"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_refused(monai, tmp_path, change, message):
    for file in ("configs/inference.json", "configs/metadata.json", "models/model.pt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((monai[0] / file).read_bytes())
    if "network_def" in change:
        (tmp_path / "configs/inference.json").write_text(json.dumps(change))
    elif "metadata" in change:
        (tmp_path / "configs/metadata.json").write_text("{}")
    else:
        (tmp_path / "models/model.pt").unlink()
    with pytest.raises(ValueError, match=message):
        load_segmentation(tmp_path)


def test_weights_that_would_run_code_are_refused(monai, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    for file in ("inference.json", "metadata.json"):
        (tmp_path / "configs" / file).write_bytes((monai[0] / "configs" / file).read_bytes())
    torch.save({"model": print}, tmp_path / "models/model.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_segmentation(tmp_path)
