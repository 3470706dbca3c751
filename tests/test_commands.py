"""What README, documentation, Makefile and CI promise; the tests of the bundled checkpoint need it to be there."""

import hashlib
import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sgr_diffusers import cli
from sgr_diffusers.pretrained import BRAIN_TUMOUR, GENERAL, PRETRAINED
from tests.helpers.pages import PAGES, blocks

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/how-to/schedulers.md").read_text()


def project():
    import tomllib  # the standard library's, from Python 3.11 on

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


COMMANDS = {page: [line for block in blocks(page, "bash") for line in block.splitlines() if line] for page in PAGES}


def test_the_readme_starts_with_the_two_commands():
    first = [shlex.split(line, comments=True) for line in COMMANDS["README.md"][:2]]
    assert first == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("line", sorted({line for lines in COMMANDS.values() for line in lines}))
def test_commands_of_readme_and_documentation_are_understood(line):
    check_command(line)


@pytest.mark.parametrize("checkpoint", [PRETRAINED, GENERAL, BRAIN_TUMOUR], ids=lambda folder: folder.name)
def test_commands_of_the_cards_are_understood(checkpoint):
    """Or the card says which option is gone."""
    card = (checkpoint / "README.md").read_text()
    lines = re.findall(r"^(?:sgr|python) .+$", card, flags=re.MULTILINE)
    gone = re.findall(r"no longer has `(--[\w-]+)`", card)
    assert lines
    for line in lines:
        for option in gone:
            line = re.sub(rf" {option} \S+", "", line)
        check_command(line)


def check_command(line):
    """Check that a line of a shell names a command and options that there are."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "sgr":
        assert cli.create_parser().parse_args(arguments).command == arguments[0]
    elif program == "make":
        assert f"\n{arguments[0]}: " in (ROOT / "Makefile").read_text()
    elif program == "accelerate-launch":
        option, config, script, *rest = arguments
        assert option == "--config_file" and (ROOT / config).is_file()
        assert runpy.run_path(str(ROOT / script))["parse_arguments"](rest).data_dir == "runs/knee"
    else:
        assert program in ("python", "jupytext") and (ROOT / arguments[-1 if program == "jupytext" else 0]).is_file()
        if program == "python" and arguments[0].startswith("training/"):
            script = runpy.run_path(str(ROOT / arguments[0]))
            parsed = script["parse_arguments"](arguments[1:])
            assert getattr(parsed, "data_dir", "runs/knee").startswith("runs/")  # varied images need no data
        elif program == "python":
            source = (ROOT / arguments[0]).read_text()
            assert all(f'"{option}"' in source for option in arguments if option.startswith("--"))


@pytest.mark.parametrize(
    ("target", "last"),
    [
        ("demo", ".venv/bin/sgr demo"),
        ("test", ".venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder"),
        ("docs", "mkdocs build --strict"),
        ("lint", ".venv/bin/mypy"),
    ],
)
def test_make_targets_set_themselves_up(target, last, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)  # a fresh clone, as far as make can tell
    # not as a part of the `make test` that may be running this
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    steps = subprocess.run(
        ["make", "-n", target], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    order = [steps.index(part) for part in ("-m venv .venv", "-c constraints.txt torch", "-e '.[test,docs]'", last)]
    assert order == sorted(order)
    assert steps.rstrip().endswith(last)


def test_ci_calls_make_test():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    text = (ROOT / ".ci/run").read_text()
    assert "set -euo pipefail" in text and text.rstrip().endswith("make test")


def test_every_dependency_is_pinned_within_its_range():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = [Requirement(text) for text in project()["dependencies"] + project()["optional-dependencies"]["test"]]
    assert not [str(one) for one in wanted if pins.get(canonicalize_name(one.name)) not in one.specifier]
    assert pins["torch"] == "2.13.0"


def test_version_is_the_same_everywhere():
    version = project()["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()


def test_bundled_checkpoint_is_small_and_safe():
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    names = {str(path.relative_to(PRETRAINED)) for path in files}
    assert {"model_index.json", "README.md", "case.h5"} <= names
    assert sum(path.stat().st_size for path in files) <= 15e6
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py"))]


def test_demo_of_the_bundled_case(tmp_path, capsys):
    arguments = ["demo", "--steps", "3", "--accelerations", "16", "--output", str(tmp_path / "demo")]
    assert cli.main(arguments) == 0
    assert {entry.name for entry in (tmp_path / "demo").iterdir()} == {"figure.png", "volumes.csv", "settings.json"}
    printed = capsys.readouterr()
    assert "patellar cartilage" in printed.out and "Loading pipeline" not in printed.err


def test_the_guide_was_measured_on_the_bundled_checkpoint():
    weights = (PRETRAINED / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert f"prior `{hashlib.sha256(weights).hexdigest()[:16]}`" in GUIDE
