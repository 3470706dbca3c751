"""`sgr convert`, from the authors' files to a pipeline that reconstructs, and back."""

import json
from types import SimpleNamespace

import pytest
import torch
from monai.networks.nets import UNet

from sgr_diffusers import SegmentationAdapter, SGRMRIPipeline, cli, create_prior, create_scheduler
from tests.helpers.authors_unet import AuthorsUNet, random_authors_unet
from tests.helpers.tiny_pipeline import save_tiny_pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A prior wrapped as trainers do, and a segmentation network with five output channels."""
    folder = tmp_path_factory.mktemp("authors")
    prior = random_authors_unet(multipliers=(1, 1), attention_levels=(1,)).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        segmentation = UNet(2, 1, 5, channels=(4, 8), strides=(2,), num_res_units=1).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in prior.items()}, "step": 7}, folder / "ema.pt")
    torch.save(segmentation, folder / "segmentation.pt")
    return SimpleNamespace(folder=folder, prior=prior, segmentation=segmentation)


def run(*arguments):
    return cli.main(["convert", *map(str, arguments)])


def from_authors(files, output, *more):
    options = ["--prior", files.folder / "ema.pt", "--num-head-channels", 16]
    return run(*options, "--segmentation", files.folder / "segmentation.pt", *more, output)


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "pipeline"
    assert from_authors(files, output, "--flip-average", "--sample-size", 64, 48) == 0
    return output


def test_the_folder_is_a_pipeline(converted):
    folders = {path.name for path in converted.iterdir()}
    assert folders >= {"unet", "scheduler", "segmentation_model", "model_index.json", "settings.json"}
    pipe = SGRMRIPipeline.from_pretrained(converted)
    assert pipe.class_names == ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus")
    assert pipe.segmentation_model.config.flip_average
    assert tuple(pipe.unet.config.sample_size) == (64, 48)
    papers = {key: value for key, value in create_scheduler("epsilon").config.items() if not key.startswith("_")}
    assert {key: pipe.scheduler.config[key] for key in papers} == papers
    kspace = torch.randn(1, 16, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(16) % 2 == 0).expand(16, 16)
    out = pipe(
        kspace * mask,
        mask,
        target="both",
        classes=["meniscus"],
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert out.images.shape == (1, 1, 2, 16, 16)
    assert out.data_residual.max() < 1e-4


def test_the_record_says_from_what(converted, files):
    record = json.loads((converted / "settings.json").read_text())
    assert record["prior"]["file"] == "ema.pt" and len(record["prior"]["sha256"]) == 64
    assert record["prior"]["num_head_channels"] == 16 and record["prior"]["attention_resolutions"] == [2]
    assert record["segmentation"]["channels"] == [4, 8] and record["segmentation"]["flip_average"]


def test_there_and_back_is_the_same_to_the_bit(converted, files, tmp_path, capsys):
    assert run("--to-authors", converted, tmp_path / "back") == 0
    assert "prior: in_channels 2, model_channels 32" in capsys.readouterr().out
    for name, expected in (("prior", files.prior), ("segmentation", files.segmentation)):
        state = torch.load(tmp_path / "back" / f"{name}.pt", weights_only=True)
        assert list(state) == list(expected)
        assert all(torch.equal(state[key], value) for key, value in expected.items())
    flags = json.loads((tmp_path / "back" / "settings.json").read_text())["prior"]
    assert flags["num_head_channels"] == 16 and flags["resblock_updown"]
    AuthorsUNet(multipliers=(1, 1), attention_levels=(1,)).load_state_dict(
        torch.load(tmp_path / "back" / "prior.pt", weights_only=True)
    )


def test_the_newer_attention_order_goes_there_and_back(files, tmp_path):
    prior = ["--prior", files.folder / "ema.pt", "--num-head-channels", 16, "--new-attention-order"]
    assert run(*prior, tmp_path / "one") == 0
    assert SGRMRIPipeline.from_pretrained(tmp_path / "one").segmentation_model is None
    assert run("--to-authors", tmp_path / "one", "--new-attention-order", tmp_path / "back") == 0
    assert not (tmp_path / "back" / "segmentation.pt").exists()
    state = torch.load(tmp_path / "back" / "prior.pt", weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in files.prior.items())
    assert run("--to-authors", tmp_path / "one", tmp_path / "legacy") == 0
    other = torch.load(tmp_path / "legacy" / "prior.pt", weights_only=True)
    differ = [key for key, value in files.prior.items() if not torch.equal(other[key], value)]
    assert differ and all(".qkv." in key for key in differ)


def test_an_existing_folder_is_replaced_on_demand_only(files, tmp_path, capsys):
    output = tmp_path / "pipeline"
    prior = ["--prior", files.folder / "ema.pt", "--num-head-channels", 16]
    assert run(*prior, output) == 0
    before = (output / "settings.json").read_bytes()
    assert run(*prior, output) == 2
    assert "is already there" in capsys.readouterr().err
    assert (output / "settings.json").read_bytes() == before
    assert from_authors(files, output, "--overwrite") == 0
    assert (output / "segmentation_model").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prior", "{}/none.pt"], "There is no checkpoint file"),
        (["--prior", "{}/ema.pt"], "`num_head_channels` (--num-head-channels) is needed"),
        (["--prior", "{}/segmentation.pt"], "no key in it is or ends in time_embed.0.weight"),
        (
            ["--prior", "{}/ema.pt", "--num-head-channels", "16", "--segmentation", "{}/ema.pt"],
            "no key in it is or ends in model.0.conv.unit0.conv.weight or model.0.conv.weight",
        ),
        (["--prior", "{}/ema.pt", "--prior-entry", "ema"], "must be one of those in"),
        (
            "--prior {0}/ema.pt --num-head-channels 16 --segmentation {0}/segmentation.pt "
            "--segmentation-entry x".split(),
            "must be one of those in",
        ),
        (["--prior", "{}/ema.pt", "--flip-average"], "--flip-average: has an effect only with --segmentation FILE.pt"),
        (["--to-authors", "{}", "--num-head-channels", "16"], "--num-head-channels: has an effect only with --prior"),
        (["--to-authors", "{}"], "model_index.json"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(files, tmp_path, capsys, options, message):
    assert run(tmp_path / "out", *(option.format(files.folder) for option in options)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_direction_is_needed(capsys):
    with pytest.raises(SystemExit):
        run("out")
    assert "one of the arguments --prior --to-authors is required" in capsys.readouterr().err


def test_networks_that_the_authors_do_not_have_are_refused(files, tmp_path, capsys):
    assert run("--to-authors", save_tiny_pipeline(tmp_path / "tiny"), tmp_path / "out") == 2
    assert "norm_num_groups 4, and guided diffusion only 32" in capsys.readouterr().err


def test_a_segmentation_model_of_another_kind_is_refused(tmp_path, capsys, monkeypatch):
    unet = create_prior(
        "paper",
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D",),
        up_block_types=("ResnetUpsampleBlock2D",),
        attention_head_dim=16,
    )
    adapter = SegmentationAdapter(torch.nn.Conv2d(1, 2, 1), class_names=("a",))
    pipe = SGRMRIPipeline(unet, create_scheduler("epsilon"), adapter)
    monkeypatch.setattr(SGRMRIPipeline, "from_pretrained", lambda _: pipe)
    assert run("--to-authors", "anything", tmp_path / "out") == 2
    assert "SegmentationAdapter; only a SegmentationUNet has a MONAI UNet inside" in capsys.readouterr().err
