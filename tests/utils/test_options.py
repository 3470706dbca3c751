import pytest

from sgr_diffusers.utils.options import OptionParser, flag_of


@pytest.fixture
def parser():
    parser = OptionParser()
    parser.add_argument(flag_of("output_dir"))
    parser.add_subparsers().add_parser("run").add_argument("--n-steps", type=int)
    return parser


@pytest.mark.parametrize("spelling", ["--output-dir", "--output_dir"])
def test_words_of_options_are_joined_by_hyphens_or_underscores(parser, spelling):
    assert parser.parse_args([spelling, "a_b"]).output_dir == "a_b"
    assert parser.parse_args([f"{spelling}=--a_b"]).output_dir == "--a_b"


def test_options_of_subcommands_too(parser):
    assert parser.parse_args(["run", "--n_steps", "3"]).n_steps == 3


def test_the_help_states_defaults(parser):
    parser.add_argument("--size", type=int, default=7, help="size of it")
    parser.add_argument("--name", default="x", help="name of it (default: the first)")
    parser.add_argument("--none", help="nothing")
    text = parser.format_help()
    assert "size of it (default: 7)" in text and "(default: the first)" in text and text.count("default") == 2
