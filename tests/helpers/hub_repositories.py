"""Files and commits of repositories on the local Hub, without anything of HTTP."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

LFS_SUFFIXES = {".safetensors", ".h5", ".bin", ".png", ".parquet", ".gz"}


def git_blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    """A state of a repository: all its files."""

    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Commits and the branches and tags that point to them. `gated` readers must be among `granted`."""

    owner: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files, message, branch="main"):
        sha = hashlib.sha1(f"{branch} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, message, files)
        self.branches[branch] = sha
        return sha

    def at(self, revision):
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    @property
    def files(self):
        return self.at("main").files


class FolderRepository(Repository):
    """Serves what a folder holds at the moment, under one commit."""

    def __init__(self, folder, owner):
        super().__init__(owner)
        self.folder = Path(folder)

    def at(self, revision):
        if revision not in ("main", "c" * 40):
            return None
        files = {str(one.relative_to(self.folder)): one for one in sorted(self.folder.rglob("*")) if one.is_file()}
        return Commit("c" * 40, "folder", {name: path.read_bytes() for name, path in files.items()})


def describe(name, content):
    """A file as the Hub lists it."""
    entry = {"type": "file", "path": name, "size": len(content), "oid": git_blob_id(content)}
    if Path(name).suffix in LFS_SUFFIXES:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
