"""The source distribution holds what the README uses."""

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

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


def test_it_holds_every_file_that_the_readme_names(names):
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    words = [
        word for line in re.findall(r"^(?:python|accelerate) .*", text, re.MULTILINE) for word in shlex.split(line)
    ]
    scripts = [word for word in words if (ROOT / word).is_file()]
    assert len(links) > 1 and len(scripts) > 5
    assert {*links, *scripts} <= names


def test_it_holds_the_package_with_its_data(names):
    files = [
        path for path in (ROOT / "sgr_diffusers").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {str(path.relative_to(ROOT)) for path in files} <= names
