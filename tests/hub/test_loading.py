"""Pipelines pushed to and loaded from a Hub on this machine, through the clients that users have."""

import pytest
import torch

from sgr_diffusers.hub.code_bundle import bundle_files
from tests.helpers.hub_client import OWNER, READER, WRONG, BareEnvironment, run_client
from tests.helpers.pipeline_parts import build, call, draw_problem

WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "segmentation_model/diffusion_pytorch_model.safetensors")

SETUP = f"""
import torch, json
from pathlib import Path
from diffusers import UNet2DModel
from huggingface_hub import HfApi
from tests.helpers.pipeline_parts import build, call
from sgr_diffusers import SGRMRIPipeline, SegmentationUNet
OWNER, READER, WRONG = {OWNER!r}, {READER!r}, {WRONG!r}
"""
TOTAL = "result = [out.images.abs().double().sum().item(), out.volumes_mm3.double().sum().item()]\n"


@pytest.fixture
def client(worker, tmp_path):
    """Runs code with an empty cache of its own."""

    class Client:
        def run(self, code):
            return worker.run(f"{SETUP}CACHE = {str(tmp_path / 'cache')!r}\n{code}")

        def fail(self, code):
            return worker.fail(f"{SETUP}CACHE = {str(tmp_path / 'cache')!r}\n{code}")

    return Client()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Those of a saved pipeline."""
    folder = tmp_path_factory.mktemp("saved")
    build("unet").save_pretrained(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def expected():
    out = call(build("unet"))
    return [out.images.abs().double().sum().item(), out.volumes_mm3.double().sum().item()]


@pytest.fixture(autouse=True)
def without_faults(hub):
    yield
    for faults in (hub.cut, hub.corrupt):
        faults.clear()


def resolved(hub):
    return [path.split("/resolve/")[1].partition("/")[2] for method, path, _ in hub.requests
            if method == "GET" and "/resolve/" in path]  # fmt: skip


def test_push_and_load(hub, client, expected):
    client.run("""build("unet").push_to_hub("org/pushed", token=OWNER)""")
    pushed = hub.repository("org/pushed").files
    assert set(bundle_files()) | {*WEIGHTS, "README.md", "model_index.json"} <= set(pushed)
    assert b"not for clinical use" in pushed["README.md"].lower()
    hub.requests.clear()
    code = """pipe = SGRMRIPipeline.from_pretrained("org/pushed", cache_dir=CACHE)
assert type(pipe) is SGRMRIPipeline, type(pipe)
pipe.set_progress_bar_config(disable=True)
out = call(pipe)\n"""
    assert client.run(code + TOTAL) == pytest.approx(expected, rel=1e-5)
    assert {name for name in resolved(hub) if name.endswith(".py")} <= {"pipeline.py"}  # which diffusers always takes
    assert sorted(name for name in resolved(hub) if name in WEIGHTS) == sorted(WEIGHTS)  # and weights once


def test_load_where_the_package_is_not(hub, files, tmp_path):
    """As in test_code_bundle, from a Hub, also a branch and half precision; then from the cache, without network."""
    build("unet").to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    half = {name: (tmp_path / "half" / name.replace(".", ".fp16.", 1)).read_bytes() for name in WEIGHTS}
    repository = hub.add("org/bare", {**files, **{name.replace(".", ".fp16.", 1): half[name] for name in WEIGHTS}})
    changed = files["model_index.json"].replace(b'"cg_iterations": 5', b'"cg_iterations": 7')
    pipeline = files["pipeline.py"] + b"\nBRANCH = 'wild'\n"
    repository.commit({**files, "model_index.json": changed, "pipeline.py": pipeline}, "changed", branch="wild")
    problem = draw_problem()
    torch.save(problem, tmp_path / "problem.pt")
    code = """
import torch
torch.set_num_threads(THREADS)
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(SOURCE, trust_remote_code=True)
problem = torch.load("PROBLEM", weights_only=True)
out = pipe(**problem, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
torch.save(out.images, "images.pt")
"""
    code = code.replace("PROBLEM", str(tmp_path / "problem.pt")).replace("THREADS", str(torch.get_num_threads()))
    bare = BareEnvironment(tmp_path / "site-packages")
    more = """
pipe = DiffusionPipeline.from_pretrained(SOURCE, trust_remote_code=True, variant="fp16", dtype=torch.float16)
assert pipe.unet.dtype == pipe.segmentation_model.dtype == torch.float16
wild = DiffusionPipeline.from_pretrained(SOURCE, trust_remote_code=True, revision="wild")
assert (pipe.config.cg_iterations, wild.config.cg_iterations) == (5, 7)
assert sys.modules[type(wild).__module__].BRANCH == "wild"
"""
    run_client((code + more).replace("SOURCE", "'org/bare'"), tmp_path / "home", endpoint=hub.url, path=bare)
    images = call(build("unet"), problem).images
    assert torch.equal(torch.load(tmp_path / "home/images.pt", weights_only=True), images)
    (tmp_path / "home/images.pt").unlink()
    # diffusers asks the Hub for the commit of remote code even if it is cached: offline, the folder is what loads
    cached = "__import__('huggingface_hub').snapshot_download('org/bare', local_files_only=True)"
    run_client(code.replace("SOURCE", cached), tmp_path / "home", path=bare, HF_HUB_OFFLINE="1")
    assert torch.equal(torch.load(tmp_path / "home/images.pt", weights_only=True), images)


def test_revisions(hub, client, files):
    hub.add("org/revisions", files)
    client.run("""
api = HfApi(token=OWNER)
api.create_tag("org/revisions", tag="v1")
api.create_branch("org/revisions", branch="wild")
first = api.model_info("org/revisions").sha
pipe = build("unet", cg_iterations=7)
pipe.save_pretrained("changed")
api.upload_folder(repo_id="org/revisions", folder_path="changed", revision="wild")
for revision, iterations in (("v1", 5), ("main", 5), ("wild", 7), (first, 5)):
    pipe = SGRMRIPipeline.from_pretrained("org/revisions", revision=revision, cache_dir=CACHE)
    assert pipe.config.cg_iterations == iterations, revision
""")
    names, _ = client.fail('SGRMRIPipeline.from_pretrained("org/revisions", revision="v9", cache_dir=CACHE)')
    assert "RevisionNotFoundError" in names


def test_components_by_subfolder_and_variants(hub, client, files):
    hub.add("org/variants", files)
    client.run("""
pipe = build("unet").to(torch.float16)
pipe.save_pretrained("half", variant="fp16")
HfApi(token=OWNER).upload_folder(repo_id="org/variants", folder_path="half", allow_patterns="*fp16*")
""")
    hub.requests.clear()
    client.run("""
half = SGRMRIPipeline.from_pretrained("org/variants", variant="fp16", dtype=torch.float16, cache_dir=CACHE)
assert half.unet.dtype == half.segmentation_model.dtype == torch.float16
""")
    assert sorted(name for name in resolved(hub) if name.endswith("safetensors")) == sorted(
        name.replace(".safetensors", ".fp16.safetensors") for name in WEIGHTS
    )
    client.run("""
unet = UNet2DModel.from_pretrained("org/variants", subfolder="unet", cache_dir=CACHE)
model = SegmentationUNet.from_pretrained("org/variants", subfolder="segmentation_model", cache_dir=CACHE)
assert model.config.class_names == ["one", "two"] and unet.dtype == torch.float32
half = UNet2DModel.from_pretrained("org/variants", subfolder="unet", variant="fp16", cache_dir=CACHE)
assert not torch.equal(half.conv_in.weight, unet.conv_in.weight)
""")
    names, message = client.fail('SGRMRIPipeline.from_pretrained("org/variants", variant="bf16", cache_dir=CACHE)')
    assert "OSError" in names or "ValueError" in names
    assert "bf16" in message


def test_what_is_cached_loads_without_the_hub(hub, client, files, tmp_path):
    hub.add("org/cached", files)
    load = 'SGRMRIPipeline.from_pretrained("org/cached", cache_dir=CACHE, local_files_only=True)'
    names, _ = client.fail(load)
    assert "OSError" in names
    client.run('SGRMRIPipeline.from_pretrained("org/cached", cache_dir=CACHE)')
    hub.requests.clear()
    client.run(load)
    assert hub.requests == []
    offline = f"""
import torch
from sgr_diffusers import SGRMRIPipeline
SGRMRIPipeline.from_pretrained("org/cached", cache_dir={str(tmp_path / "cache")!r})
try:
    SGRMRIPipeline.from_pretrained("org/other", cache_dir={str(tmp_path / "cache")!r})
except OSError as error:
    assert "org/other" in str(error), error
else:
    raise AssertionError("a repository that was never seen")
"""
    run_client(offline, tmp_path / "home", HF_HUB_OFFLINE="1")


def test_the_bundled_checkpoint_needs_no_network(tmp_path):
    run_client(
        """
from diffusers import DiffusionPipeline
from sgr_diffusers.reconstruction.volume import PRETRAINED, load_pipeline
assert load_pipeline().segmentation_model is not None
assert type(DiffusionPipeline.from_pretrained(PRETRAINED)).__name__ == "SGRMRIPipeline"
for host in ("huggingface.co", "127.0.0.1"):
    try:
        socket.create_connection((host, 80), timeout=1)
    except OSError as error:
        assert "a test" in str(error), error
    else:
        raise AssertionError(host)
""",
        tmp_path / "home",
    )


# --- who may ---------------------------------------------------------------------------------------------------------


def test_private_repositories(hub, client, files):
    hub.add("org/private", files, private=True)
    client.run('SGRMRIPipeline.from_pretrained("org/private", cache_dir=CACHE, token=OWNER)')
    for token in ("False", "READER"):
        load = f'SGRMRIPipeline.from_pretrained("org/private", cache_dir=CACHE + "2", token={token})'
        names, message = client.fail(load)
        assert "OSError" in names and "org/private" in message
    names, message = client.fail('SGRMRIPipeline.from_pretrained("org/never", cache_dir=CACHE, token=OWNER)')
    assert "OSError" in names and "org/never" in message


def test_gated_repositories(hub, client, files):
    repository = hub.add("org/gated", files, gated=True)
    load = 'SGRMRIPipeline.from_pretrained("org/gated", cache_dir=CACHE, token={})'
    for token in ("False", "READER"):
        names, message = client.fail(load.format(token))
        assert "GatedRepoError" in names, names
        assert "org/gated" in message
    repository.granted.add("reader")
    client.run(load.format("READER"))


def test_a_wrong_token(hub, client, files):
    hub.add("org/public", files)
    names, message = client.fail('SGRMRIPipeline.from_pretrained("org/public", cache_dir=CACHE, token=WRONG)')
    assert "OSError" in names and "401" in message and WRONG not in message
    names, message = client.fail('build("unet").push_to_hub("org/public", token=WRONG)')
    assert "HfHubHTTPError" in names and WRONG not in message
    names, message = client.fail('build("unet").push_to_hub("org/public", token=READER)')
    assert "403" in message and READER not in message
    assert hub.repository("org/public").at("main").message == "initial commit"


# --- what can go wrong on the way ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "scheduler_config.json"])
def test_a_damaged_file_of_the_right_size_is_found_by_its_hash(hub, client, files, name):
    hub.add("org/damaged", files)
    hub.corrupt.append(name)
    load = 'SGRMRIPipeline.from_pretrained("org/damaged", cache_dir=CACHE)'
    names, message = client.fail(load)
    assert "DamagedFileError" in names and name in message
    client.run(load)


# --- what must not be done -------------------------------------------------------------------------------------------


def test_a_hostile_index_is_refused_before_anything_else_is_fetched(hub, client, files):
    hostile = files["model_index.json"].replace(b'"segmentation_unet"', b'"subprocess"')
    hub.add("org/hostile", {**files, "model_index.json": hostile.replace(b'"SegmentationUNet"', b'"Popen"')})
    hub.requests.clear()
    names, message = client.fail(
        'SGRMRIPipeline.from_pretrained("org/hostile", cache_dir=CACHE, trust_remote_code=True)'
    )
    assert "UnsafeCheckpointError" in names and "subprocess" in message
    assert set(resolved(hub)) <= {"model_index.json"}


def test_a_repository_of_pickles_is_refused_before_they_are_fetched(hub, client, files):
    renamed = {name.replace(".safetensors", ".bin"): content for name, content in files.items()}
    hub.add("org/pickles", renamed)
    hub.requests.clear()
    names, message = client.fail('SGRMRIPipeline.from_pretrained("org/pickles", cache_dir=CACHE)')
    assert "OSError" in names and "necessary `safetensors` weights" in message
    assert set(resolved(hub)) == {"model_index.json"}


def test_no_token_is_printed_or_pushed(hub, worker):
    """After all of the above."""
    pushed = b"".join(content for one in hub.repositories.values() for content in one.files.values())
    messages = "".join(commit.message for one in hub.repositories.values() for commit in one.commits.values())
    assert OWNER in hub.tokens and "org" in hub.users_seen  # it was used
    for token in (OWNER, READER, WRONG):
        assert token.encode() not in pushed and token not in messages and token not in worker.printed
