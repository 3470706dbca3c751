"""What the command line takes before it reads any data: options, and refusals of arguments."""

import argparse
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgr_diffusers import cli
from sgr_diffusers.cli.options import add_settings, settings_from
from sgr_diffusers.reconstruction.settings import SamplingSettings


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    add_settings({"method": parser, "machine": parser}, SamplingSettings)
    return parser


def test_settings_come_from_the_options(parser):
    assert settings_from(parser.parse_args([]), SamplingSettings) == SamplingSettings()
    given = "--target upper --classes 2 meniscus --steps 7 --strength 0.01 --seed 3 --batch-size 1".split()
    expected = SamplingSettings(
        target="upper", classes=(2, "meniscus"), num_inference_steps=7, guidance_strength=0.01, seed=3, batch_size=1
    )
    assert settings_from(parser.parse_args(given), SamplingSettings) == expected
    spelled_out = ["--num-inference-steps" if part == "--steps" else part for part in given]
    assert settings_from(parser.parse_args(spelled_out), SamplingSettings) == expected


def test_groups_that_were_not_asked_for_have_no_options(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--crop", "0.5"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_the_help_states_every_default(parser):
    text = " ".join(parser.format_help().split())
    for default in ("both", "100, or 25 with --fast", "the checkpoint's", "8"):
        assert f"(default: {default})" in text


@pytest.mark.parametrize(("text", "expected"), [("1", slice(1, 2)), ("::", slice(None, None, None))])
def test_slice_ranges(text, expected):
    arguments = ["reconstruct", "scan.h5", "--output", "out", f"--slices={text}"]
    assert cli.create_parser().parse_args(arguments).slices == expected


@pytest.mark.parametrize("command", ["demo", "reconstruct", "synthesize"])
def test_help_ends_in_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    example = " ".join(capsys.readouterr().out.split("example: sgr ")[1].split())
    assert cli.create_parser().parse_args(example.split()).command == command


def test_without_arguments_the_commands_are_listed(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert "sgr demo" in printed and all(name in printed for name in ("reconstruct", "evaluate", "publish", "app"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "Upper and lower bound reconstructions"),
        (["--version"], 0, f"sgr_diffusers {importlib.metadata.version('sgr-diffusers')}\n"),
        (["reconstruct", "scan.h5", "--output", "out", "--steps", "0"], 2, "expected a whole number from 1 to 10000"),
        (["reconstruct", "scan.h5", "--output", "out"], 2, "`path` scan.h5 is not a file"),
        (["reconstruct", "pipe.h5", "--output", "out"], 2, "is a named pipe"),
        (["reconstruct", "taken/scan.h5", "--output", "taken"], 2, "`output` taken is already there"),
    ],
)
def test_arguments_are_refused_before_anything_heavy_is_imported(tmp_path, arguments, code, said):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "scan.h5").touch()
    os.mkfifo(tmp_path / "pipe.h5")
    command = [
        "import sys",
        f"sys.argv = {['/usr/bin/sgr', *arguments]!r}",
        "import atexit",
        "atexit.register(lambda: print('heavy:', sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules))))",
        "from sgr_diffusers.cli import main",
        "sys.exit(main())",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(command)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == code and said in ended.stdout + ended.stderr
    assert "heavy: []" in ended.stdout
