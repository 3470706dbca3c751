"""The Python of README and documentation runs, their tables are those of the checkpoints, their links exist."""

import re
import runpy
from contextlib import nullcontext

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from sgr_diffusers.evaluation.curves import width_figure
from sgr_diffusers.pretrained import BRAIN_TUMOUR, PRETRAINED
from tests.helpers.pages import PAGES, ROOT, blocks
from tests.helpers.torchvision_stub import torchvision_or_stub

# The fewest steps with one below t = 0.2, from where the bundled checkpoint is guided.
FEWER = {"num_inference_steps=25": "num_inference_steps=6", "fast_timesteps(25)": "fast_timesteps(3)"}


@pytest.mark.filterwarnings("ignore:raw does not say where its slices lie")  # of the page on DICOM
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page, capsys):
    code = "\n".join(blocks(page, "python"))  # one block goes on from the other
    for steps, fewer in FEWER.items():
        code = code.replace(steps, fewer)
    names = {}
    with torchvision_or_stub("deepinv", "sgr_diffusers.interop.deepinv") if "deepinv" in code else nullcontext():
        exec(compile(code, page, "exec"), names)
    if "out" in names:
        assert names["out"].data_residual.max() < 3 * names["out"].noise_residual.min()
    if page == "README.md":
        assert capsys.readouterr().out.count("mm^3 in these slices") == 4


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_parsed(page):
    fences = re.findall(r"^[ \t>]*(?:```|~~~).*$", (ROOT / page).read_text(), flags=re.MULTILINE)
    languages = {"```python", "```bash", "```console"}  # the last for programs that do not come with this package
    assert set(fences[::2]) <= languages and set(fences[1::2]) <= {"```"}


def test_tables_are_those_of_the_checkpoints():
    tables = runpy.run_path(str(ROOT / "docs" / "fill_tables.py"))
    for page, made in tables["BLOCKS"].items():
        text = (ROOT / page).read_text()
        for name, make in made.items():
            assert text == tables["filled"](text, name, make()), f"run docs/fill_tables.py: {page}, {name}"


@pytest.mark.parametrize("checkpoint", [PRETRAINED, BRAIN_TUMOUR], ids=lambda folder: folder.name)
def test_diagrams_of_the_cards_are_of_their_records(checkpoint, tmp_path):
    evaluation = checkpoint / "evaluation"
    width_figure(pd.read_csv(evaluation / "coverage.csv")).savefig(tmp_path / "new.png")
    kept, new = (plt.imread(path) for path in (evaluation / "coverage.png", tmp_path / "new.png"))
    assert kept.shape == new.shape and abs(kept - new).mean() < 2e-4, "run docs/fill_tables.py"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [
        target for target in targets if "://" not in target and not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert not missing


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
