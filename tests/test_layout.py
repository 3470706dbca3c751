"""The data's way through the package is one-way: nothing imports upward."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sgr_diffusers

ROOT = Path(sgr_diffusers.__file__).parent
NAME = "sgr_diffusers"

# part -> the other parts of the package that it may import
ALLOWED = {
    "utils": [],
    "calibration": ["utils"],
    "mri": ["utils"],
    "io": ["mri", "utils"],
    "models": [],
    "guidance": [],
    "schedulers": ["guidance"],
    "bounds": [],
    "hub": ["models"],
    "pipeline": ["__version__", "bounds", "calibration", "guidance", "hub", "models", "mri", "schedulers", "utils"],
    "data": ["hub", "io", "mri", "utils"],
    "training": ["data", "evaluation", "hub", "models", "mri", "pipeline", "publishing", "utils"],
    "pretrained": [],
    "figures": ["bounds"],
    "reconstruction": [
        "__version__",
        "bounds",
        "calibration",
        "figures",
        "guidance",
        "io",
        "mri",
        "pipeline",
        "pretrained",
        "schedulers",
        "utils",
    ],
    "interop": ["bounds", "guidance", "io", "mri", "pipeline", "reconstruction", "schedulers", "utils"],
    "evaluation": [
        "bounds",
        "calibration",
        "data",
        "figures",
        "guidance",
        "models",
        "mri",
        "pipeline",
        "pretrained",
        "reconstruction",
        "schedulers",
        "utils",
    ],
    "publishing": ["calibration", "data", "evaluation", "guidance", "hub", "reconstruction", "utils"],
    "app": ["bounds", "calibration", "figures", "io", "mri", "pipeline", "reconstruction", "utils"],
    "cli": [
        "__version__",
        "app",
        "data",
        "evaluation",
        "figures",
        "io",
        "pipeline",
        "publishing",
        "reconstruction",
        "schedulers",
        "utils",
    ],
}


def imports_of(path):
    """Modules of the package that a file imports anywhere in it, relative to the package."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {".".join(name[1:]) for name in names if name[0] == NAME}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                module = [*package[: len(package) - node.level + 1], *module]
            elif module[:1] == [NAME]:
                module = module[1:]
            else:
                continue
            # `from .mri import coils` imports a module, `from .mri.coils import f` a name: both are seen
            found |= {".".join([*module, alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_nothing_imports_upward(part):
    files = sorted((ROOT / part).rglob("*.py")) or [ROOT / f"{part}.py"]
    for file in files:
        found = {module.split(".")[0] for module in imports_of(file)}
        assert found <= {part, *ALLOWED[part]}, file.name


def test_the_walk_sees_the_imports_there_are():
    assert "mri.operators.SenseOperator" in imports_of(ROOT / "pipeline/problem.py")
    assert "bounds.volume_mm3" in imports_of(ROOT / "pipeline/pipeline_sgr_mri.py")


def test_the_table_of_contents_is_short_and_complete():
    assert len(sgr_diffusers.__all__) < 20
    assert all(hasattr(sgr_diffusers, name) for name in sgr_diffusers.__all__)
    assert sgr_diffusers.load_skmtea.__module__ == f"{NAME}.data.load"


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, {NAME}; print([name for name in ('torch', 'diffusers', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout == "[]\n"
    assert set(sgr_diffusers.__all__) <= set(dir(sgr_diffusers))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = sgr_diffusers.no_such_name
