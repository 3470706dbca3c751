"""The data's way through the package is one-way: nothing imports upward."""

import ast
from pathlib import Path

import pytest

import sgr_diffusers

ROOT = Path(sgr_diffusers.__file__).parent
NAME = "sgr_diffusers"

# part -> what it may not import, each relative to the package
FORBIDDEN = {
    "mri": [
        "models",
        "data",
        "evaluation",
        "guidance",
        "schedules",
        "inputs",
        "networks",
        "bounds",
        "pipeline_sgr_mri",
    ],
    "models": ["data", "evaluation", "guidance", "schedules", "inputs", "networks", "bounds", "pipeline_sgr_mri"],
    "guidance": [
        "models",
        "data",
        "evaluation",
        "mri",
        "schedules",
        "inputs",
        "networks",
        "bounds",
        "pipeline_sgr_mri",
    ],
    "schedules": [
        "models",
        "data",
        "evaluation",
        "mri",
        "guidance",
        "inputs",
        "networks",
        "bounds",
        "pipeline_sgr_mri",
    ],
    "networks": ["data", "evaluation", "guidance", "schedules", "bounds", "pipeline_sgr_mri"],
    "inputs": ["models", "data", "evaluation", "guidance", "schedules", "bounds", "pipeline_sgr_mri"],
    "bounds": ["models", "data", "evaluation", "mri", "schedules", "inputs", "networks", "pipeline_sgr_mri"],
    "pipeline_sgr_mri": ["data", "evaluation", "cli", "mri.io", "training"],
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
            # `from .mri import io` imports a module, `from .mri.io import f` a name: both are seen
            found |= {".".join([*module, alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_nothing_imports_upward(part):
    files = sorted((ROOT / part).rglob("*.py")) or [ROOT / f"{part}.py"]
    for file in files:
        for module in imports_of(file):
            for forbidden in FORBIDDEN[part]:
                assert not f"{module}.".startswith(f"{forbidden}."), f"{file.name} imports {module}"


def test_the_walk_sees_the_imports_there_are():
    assert "mri.operators.SenseOperator" in imports_of(ROOT / "pipeline_sgr_mri.py")
    assert "guidance.volume_mm3" in imports_of(ROOT / "bounds.py")


def test_the_table_of_contents_is_short_and_complete():
    assert len(sgr_diffusers.__all__) < 20
    assert all(hasattr(sgr_diffusers, name) for name in sgr_diffusers.__all__)
