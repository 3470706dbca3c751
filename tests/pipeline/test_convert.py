"""`sgr convert`, from the authors' files to a pipeline that reconstructs, and back."""

import functools
import hashlib
import json
import shlex
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import torch
from monai.networks.nets import UNet

from sgr_diffusers import SegmentationAdapter, SGRMRIPipeline, cli, create_prior, create_scheduler
from tests.helpers.authors_unet import AuthorsUNet, random_authors_unet
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.pages import blocks
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


@pytest.fixture
def server(tmp_path):
    """Address of a server on this machine, and the folder that it serves."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "served"
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", folder
        http.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the documented download needs curl")
def test_the_documented_commands_download_convert_and_reconstruct(files, server, tmp_path, monkeypatch):
    page, (address, folder) = "docs/how-to/authors-weights.md", server
    (download,) = blocks(page, "console")
    convert, reconstruct = (shlex.split(line)[1:] for line in blocks(page, "bash")[0].splitlines())
    sources = dict(zip(["model1000000.pt", "model_segmentation.pt"], ["ema.pt", "segmentation.pt"], strict=True))
    words = shlex.split(download)
    for k, word in enumerate(words):
        if word.startswith("https://"):
            path = urlsplit(word).path
            (folder / path[1:]).parent.mkdir(parents=True)
            shutil.copy(files.folder / sources[Path(path).name], folder / path[1:])
            words[k] = address + path
    monkeypatch.chdir(tmp_path)
    subprocess.run(words, check=True, capture_output=True)
    assert cli.main([*convert, "--num-head-channels", "16"]) == 0  # of the paper's architecture it is known
    record = json.loads(Path("runs/authors/settings.json").read_text())
    for name, file in (("prior", "model1000000.pt"), ("segmentation", "model_segmentation.pt")):
        assert record[name]["sha256"] == hashlib.sha256(Path("models", file).read_bytes()).hexdigest()
    write_tiny_skm_tea(tmp_path, n_scans=(("train", 5),), shape=(4, 40, 24))
    few = ["--slices", "2", "--steps", "2", "--classes", "meniscus"]
    assert cli.main([*reconstruct, *few]) == 0
    names = {path.name for path in Path("bounds").iterdir()}
    assert {"volumes.csv", "meniscus_lower_image.nii.gz", "meniscus_upper_segmentation.nii.gz"} <= names


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
