"""Fetches a dataset repository of tarballs from the Hub and unpacks it to a folder in the SKM-TEA layout."""

import json
import os
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ..hub.errors import hub_errors
from ..utils.files import write_json
from .archives import unpack

__all__ = ["MINI_REPOSITORY", "PARTS", "default_folder", "fetch_mini", "find_tarballs"]

MINI_REPOSITORY = "arjundd/skm-tea-mini"
PARTS = ("files_recon_calib-24", "segmentation_masks")  # of the tarballs those that `load_skmtea` reads
_DONE = ".unpacked.json"


def default_folder(repository: str) -> Path:
    """Return the folder that a repository is unpacked to by default: beside the Hub's own cache."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "sgr_diffusers" / repository.replace("/", "--")


def find_tarballs(files: list[str], parts: tuple[str, ...] = PARTS) -> dict[str, str]:
    """Map each part to the file of a repository that holds it; parts without a tarball are left out."""
    return {part: name for part in parts for name in files if PurePosixPath(name).name == f"{part}.tar.gz"}


def fetch_mini(
    folder: str | os.PathLike | None = None,
    repository: str = MINI_REPOSITORY,
    *,
    parts: tuple[str, ...] = PARTS,
    revision: str | None = None,
    endpoint: str | None = None,
    keep_tarballs: bool = False,
    report: Any = print,
) -> Path:
    """Fetch a set of tarballs and unpack it; an interrupted call is taken up where it was.

    The annotations keep only the scans that have a k-space file; those left out are reported.

    Args:
        folder: folder to unpack to; `None` for `default_folder`.
        repository: dataset repository with `annotations/v1.0.0/*.json` and `<part>.tar.gz`, each in any folder.
        parts: names of the tarballs to fetch.
        revision: branch, tag or commit; `None` for the default branch.
        endpoint: endpoint of the Hub; `None` for that of `huggingface_hub`.
        keep_tarballs: flag that keeps a tarball once it is unpacked.
        report: function that is called with a line of text for each step.

    Returns:
        The folder, as `load_skmtea` takes it.

    Raises:
        ValueError: the repository has no such files, or an archive is unsafe or damaged.
        OSError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    folder = default_folder(repository) if folder is None else Path(folder)
    with hub_errors(f"`repository` {repository}"):
        info = HfApi(endpoint=endpoint).dataset_info(repository, revision=revision, files_metadata=True)
    versions = {file.rfilename: getattr(file.lfs, "sha256", None) or file.blob_id for file in info.siblings or []}
    files = list(versions)
    tarballs = find_tarballs(files, parts)
    annotations = [name for name in files if PurePosixPath(name).match("annotations/v1.0.0/*.json")]
    missing = [f"{part}.tar.gz" for part in parts if part not in tarballs]
    if missing or not annotations:
        missing += [] if annotations else ["annotations/v1.0.0/*.json"]
        raise ValueError(
            f"`repository` {repository} must hold {missing}, but has only {files[:20]}. For a repository in the "
            f"SKM-TEA layout: load_skmtea('hf://datasets/{repository}', ...)."
        )
    downloads = folder / ".download"
    downloads.mkdir(parents=True, exist_ok=True)

    def fetch(name: str) -> Path:
        with hub_errors(f"{name} of {repository}"):
            path = hf_hub_download(
                repository, name, repo_type="dataset", revision=info.sha, endpoint=endpoint, local_dir=downloads
            )
        return Path(path)

    done = _read_done(folder)
    for part, name in tarballs.items():
        version = versions[name] or info.sha
        known = done.get(f"{part} files", {})
        if done.get(part) == version and not _incomplete(folder, known):
            report(f"{part}: already there")
            continue
        if done.get(part) != version:  # of the same size, perhaps, but not the same
            for stale in known:
                (folder / stale).unlink(missing_ok=True)
        report(f"{part}: fetching {name}")
        tarball = fetch(name)
        unpacked = unpack(tarball, folder, rename=partial(_below, part))
        report(f"{part}: {len(unpacked)} files, {sum(path.stat().st_size for path in unpacked) / 1e6:.0f} MB unpacked")
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in unpacked}
        done |= {part: version, f"{part} files": sizes}
        write_json(folder / _DONE, done)
        if not keep_tarballs:
            tarball.unlink()
    for name in annotations:
        _copy_annotations(fetch(name), folder, report)
    return folder


def _below(part: str, path: PurePosixPath) -> PurePosixPath | None:
    """Path of a member below the folder of its part, whatever the tarball puts before it."""
    if any(part_name.startswith("._") for part_name in path.parts):  # what macOS adds to tarballs
        return None
    parts = path.parts[path.parts.index(part) :] if part in path.parts else (part, *path.parts)
    return PurePosixPath(*parts)


def _read_done(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _DONE).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _incomplete(folder: Path, sizes: dict[str, int]) -> bool:
    return not sizes or any(
        not (folder / name).is_file() or (folder / name).stat().st_size != size for name, size in sizes.items()
    )


def _copy_annotations(source: Path, folder: Path, report: Any) -> None:
    content = json.loads(source.read_text())
    listed = content.get("images", [])
    have = [entry for entry in listed if (folder / "files_recon_calib-24" / f"{entry['scan_id']}.h5").is_file()]
    if len(have) < len(listed):
        report(f"{source.name}: {len(listed) - len(have)} of {len(listed)} scans are not in this set and left out")
    write_json(folder / "annotations" / "v1.0.0" / source.name, {**content, "images": have})
