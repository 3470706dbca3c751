"""The source distribution holds what README and documentation use."""

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.helpers.pages import PAGES, blocks

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "sgr_demo")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Paths of the files in a source distribution that is built of a copy of the repository."""
    copy = tmp_path_factory.mktemp("source") / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def test_it_holds_what_make_needs(names):
    assert {"Makefile", "pyproject.toml", "constraints.txt", "tests/conftest.py", "tests/helpers/__init__.py"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_it_holds_every_file_that_readme_and_documentation_name(names):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    commands = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    made = ("sgr_demo/", "runs/", "build/")  # by the commands themselves
    words = {word for line in commands for word in shlex.split(line) if not word.startswith(made)}
    scripts = {word for word in words if (ROOT / word).is_file()}
    assert len(links) > 1 and len(scripts) > 5
    assert {*links, *scripts, *PAGES} <= names


def test_it_holds_the_package_with_its_data(names):
    files = [
        path for path in (ROOT / "sgr_diffusers").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {str(path.relative_to(ROOT)) for path in files} <= names
