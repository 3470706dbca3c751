"""The tutorials run from top to bottom, with few steps."""

import matplotlib
import pytest

from tests.helpers.pages import ROOT

TUTORIALS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == "train" else [])  # six processes
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.py"))
]
FEWER = {"n_steps = 25": "n_steps = 6", "n_steps, n_samples = 25, 16": "n_steps, n_samples = 6, 2"}


@pytest.mark.filterwarnings("ignore:the reconstruction misses the measured")  # of networks that are hardly trained
@pytest.mark.parametrize("path", TUTORIALS)
def test_it_runs(path, capsys):
    jupytext = pytest.importorskip("jupytext", reason="the extra `docs` is not installed")
    notebook = jupytext.read(path)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for steps, fewer in FEWER.items():
        code = code.replace(steps, fewer)
    assert "= 6" in code
    names = {}
    with matplotlib.rc_context({"backend": "agg"}):
        try:
            exec(compile(code, str(path), "exec"), names)
        except SystemExit as end:
            pytest.skip(str(end))
        if "plt" in names:
            names["plt"].close("all")
    assert any(unit in capsys.readouterr().out for unit in ("mm^3", "pixels"))
