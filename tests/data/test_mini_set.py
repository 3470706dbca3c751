"""The mini set: fetched from a Hub on this machine, unpacked, loaded like the full set."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from sgr_diffusers.data import mini_set
from sgr_diffusers.data.archives import UnsafeArchiveError
from sgr_diffusers.data.load import load_skmtea, resolve_root
from sgr_diffusers.data.mini_set import fetch_mini
from sgr_diffusers.data.scan_files import close_files
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.local_hub import local_hub

REPOSITORY = "someone/skm-tea-mini"


@pytest.fixture
def source(tmp_path):
    """A folder in the SKM-TEA layout and, in `hub`, the same as the mini set has it."""
    root = write_tiny_skm_tea(tmp_path / "source")
    hub = tmp_path / "hub" / "v1-release"
    shutil.copytree(root / "annotations", hub / "annotations")
    (hub / "tarball").mkdir()
    for part in ("files_recon_calib-24", "segmentation_masks"):
        with tarfile.open(hub / "tarball" / f"{part}.tar.gz", "w:gz") as file:
            file.add(root / part, part)
    (hub / "tarball/dicoms.tar.gz").write_bytes(b"not asked for")
    yield root
    close_files()


@pytest.fixture
def hub(source, tmp_path):
    with local_hub(tmp_path / "hub", REPOSITORY) as server:
        yield server


def fetched(hub):
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "resolve" in path]


def test_it_loads_like_the_full_set(source, hub, tmp_path):
    lines = []
    folder = fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=lines.append)
    for split in ("train", "val", "test"):
        ours = load_skmtea(folder, split, acceleration=8, cache_dir=tmp_path / "cache")
        expected = load_skmtea(source, split, acceleration=8, cache_dir=tmp_path / "cache")
        for row, other in zip(ours, expected, strict=True):
            for key in ("kspace", "coil_maps", "target", "mask", "labels"):
                np.testing.assert_array_equal(row[key], other[key])
    assert "dicoms.tar.gz" not in fetched(hub)
    assert not list(folder.rglob("*.tar.gz"))  # gone once unpacked
    assert any("files_recon_calib-24: 4 files" in line for line in lines)


def test_a_second_call_fetches_no_tarball_and_a_lost_file_is_brought_back(hub, tmp_path):
    folder = fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=str)
    hub.requests.clear()
    fetch_mini(folder, REPOSITORY, endpoint=hub.url, report=str)
    assert not [name for name in fetched(hub) if name.endswith(".tar.gz")]
    scan = folder / "files_recon_calib-24/MTR_002.h5"
    content = scan.read_bytes()
    scan.write_bytes(content[:100])
    fetch_mini(folder, REPOSITORY, endpoint=hub.url, report=str)
    assert scan.read_bytes() == content
    assert fetched(hub).count("segmentation_masks.tar.gz") == 0


def test_a_tarball_that_changed_replaces_files_of_the_same_size(hub, tmp_path):
    folder = fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=str)
    labels = folder / "segmentation_masks/raw-data-track/MTR_002.nii.gz"
    changed = bytes(labels.stat().st_size)
    with tarfile.open(tmp_path / "hub/v1-release/tarball/segmentation_masks.tar.gz", "w:gz") as file:
        member = tarfile.TarInfo("segmentation_masks/raw-data-track/MTR_002.nii.gz")
        member.size = len(changed)
        file.addfile(member, io.BytesIO(changed))
    hub.requests.clear()
    fetch_mini(folder, REPOSITORY, endpoint=hub.url, report=str)
    assert labels.read_bytes() == changed
    assert "files_recon_calib-24.tar.gz" not in fetched(hub)  # that one is the same


def test_an_interrupted_download_goes_on_where_it_was(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what is lost is less than one
    hub.cut.append("files_recon_calib-24.tar.gz")
    folder = fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=str)
    ranges = [one for method, path, one in hub.requests if path.endswith("calib-24.tar.gz") and method == "GET"]
    assert ranges[0] is None and ranges[1].startswith("bytes=") and ranges[1] != "bytes=0-"
    assert len(list((folder / "files_recon_calib-24").iterdir())) == 4


def test_half_unpacked_folders_are_finished(hub, tmp_path, monkeypatch):
    real, count = mini_set.unpack, []

    def interrupted(archive, folder, **arguments):
        paths = real(archive, folder, **arguments)
        if not count:
            count.append(1)
            paths[-1].unlink()
            raise KeyboardInterrupt
        return paths

    monkeypatch.setattr(mini_set, "unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=str)
    assert not (tmp_path / "mini/annotations").exists()  # nobody takes it for whole
    folder = fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=str)
    assert len(list((folder / "files_recon_calib-24").iterdir())) == 4
    assert fetched(hub).count("files_recon_calib-24.tar.gz") == 1  # the tarball was still there


def test_annotations_of_the_full_set_are_cut_to_what_is_there(source, hub, tmp_path):
    path = tmp_path / "hub/v1-release/annotations/v1.0.0/train.json"
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "scan_id": "MTR_999"})
    path.write_text(json.dumps(content))
    lines = []
    folder = fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=lines.append)
    assert "train.json: 1 of 3 scans are not in this set and left out" in lines
    assert len(load_skmtea(folder, "train", cache_dir=tmp_path / "cache")) == 12


def test_load_by_the_name_of_the_repository(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mini_set, "default_folder", lambda repository: tmp_path / repository.replace("/", "--"))
    real = mini_set.fetch_mini
    monkeypatch.setattr(mini_set, "fetch_mini", lambda *args: real(*args, endpoint=hub.url, report=str))
    import huggingface_hub

    api = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda endpoint=None: api(endpoint=endpoint or hub.url))
    with pytest.raises(ValueError, match=r"`streaming`.*holds tarballs"):
        load_skmtea(REPOSITORY, "train", streaming=True)
    assert len(load_skmtea(REPOSITORY, "train", cache_dir=tmp_path / "cache")) == 12
    hub.requests.clear()
    assert len(load_skmtea(REPOSITORY, "train", cache_dir=tmp_path / "cache")) == 12
    assert not hub.requests
    shutil.rmtree(tmp_path / "hub/v1-release/tarball")
    shutil.rmtree(tmp_path / "someone--skm-tea-mini")
    assert resolve_root(REPOSITORY) == f"hf://datasets/{REPOSITORY}"  # files that can be read in place


def test_a_repository_without_tarballs(hub, tmp_path):
    (tmp_path / "hub/v1-release/tarball/segmentation_masks.tar.gz").unlink()
    with pytest.raises(ValueError, match=r"must hold \['segmentation_masks.tar.gz'\]"):
        fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url)


def test_a_tarball_that_would_leave_the_folder(hub, tmp_path):
    with tarfile.open(tmp_path / "hub/v1-release/tarball/segmentation_masks.tar.gz", "w:gz") as file:
        member = tarfile.TarInfo("segmentation_masks/../../evil")
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UnsafeArchiveError, match="would leave the folder"):
        fetch_mini(tmp_path / "mini", REPOSITORY, endpoint=hub.url, report=str)
    assert not (tmp_path / "evil").exists()


def test_streaming_a_repository_in_the_layout_by_hf(source, tmp_path, monkeypatch):
    from huggingface_hub import HfFileSystem, constants

    with local_hub(source, REPOSITORY) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        HfFileSystem.clear_instance_cache()
        try:
            stream = load_skmtea(f"hf://datasets/{REPOSITORY}", "train", acceleration=8, streaming=True)
            local = load_skmtea(source, "train", acceleration=8, cache_dir=tmp_path / "cache")
            row = next(iter(stream))
            for key in ("kspace", "coil_maps", "target", "mask", "labels"):
                np.testing.assert_array_equal(row[key], local[0][key])
            assert not [path for _, path, _ in server.requests if "MTR_002" in path]  # its turn did not come
        finally:
            HfFileSystem.clear_instance_cache()
            close_files()
