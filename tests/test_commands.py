"""What README, Makefile and CI promise; the tests of the bundled checkpoint need it to be there."""

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
from sgr_diffusers.evaluation.table1 import read_table1, table1_markdown
from sgr_diffusers.pretrained import PRETRAINED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "pipelines/SCHEDULERS.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def project():
    import tomllib  # the standard library's, from Python 3.11 on

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line]


def test_the_readme_starts_with_the_two_commands():
    assert [shlex.split(line, comments=True) for line in COMMANDS[:2]] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_readme_are_understood(line):
    program, *arguments = shlex.split(line, comments=True)
    if program == "sgr":
        assert cli.create_parser().parse_args(arguments).command == arguments[0]
    elif program == "make":
        assert f"\n{arguments[0]}: " in (ROOT / "Makefile").read_text()
    elif program == "accelerate":
        option, config, script, *rest = arguments[1:]
        assert (arguments[0], option) == ("launch", "--config_file") and (ROOT / config).is_file()
        assert runpy.run_path(str(ROOT / script))["parse_arguments"](rest).data_dir == "runs/knee"
    else:
        assert program == "python" and (ROOT / arguments[0]).is_file()
        if arguments[0].startswith("training/"):
            script = runpy.run_path(str(ROOT / arguments[0]))
            parsed = script["parse_arguments"](arguments[1:])
            assert getattr(parsed, "data_dir", "runs/knee") == "runs/knee"  # varied images need no data
        else:
            source = (ROOT / arguments[0]).read_text()
            assert all(f'"{option}"' in source for option in arguments if option.startswith("--"))


@pytest.mark.parametrize(
    ("target", "last"),
    [
        ("demo", ".venv/bin/sgr demo"),
        ("test", ".venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile"),
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
    order = [steps.index(part) for part in ("-m venv .venv", "-c constraints.txt torch", "-e '.[test]'", last)]
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
    assert "patellar_cartilage" in capsys.readouterr().out


def test_python_of_the_readme_with_the_bundled_checkpoint(capsys):
    bundled = "\n".join(blocks("python"))  # one goes on from the other
    for steps, fewer in (  # the fewest with one below t = 0.2, from where this checkpoint is guided
        ("num_inference_steps=25", "num_inference_steps=6"),
        ("fast_timesteps(25)", "fast_timesteps(3)"),
    ):
        assert steps in bundled
        bundled = bundled.replace(steps, fewer)
    exec(bundled, {})
    assert capsys.readouterr().out.count("mm^3 in these slices") == 4


def test_python_of_the_guide_with_the_bundled_checkpoint():
    guide = "\n".join(blocks("python", GUIDE))
    assert guide.count("fast_timesteps(25)") == 2
    exec(guide.replace("fast_timesteps(25)", "fast_timesteps(3)"), {})


def test_the_guide_was_measured_on_the_bundled_checkpoint():
    weights = (PRETRAINED / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert f"prior `{hashlib.sha256(weights).hexdigest()[:16]}`" in GUIDE


def test_the_table_of_the_readme_is_that_of_the_checkpoint():
    shown = README.partition("<!-- table 1: begin -->\n")[2].partition("\n<!-- table 1: end -->")[0]
    assert shown == table1_markdown(read_table1(PRETRAINED / "evaluation" / "table1.csv"))
