"""Makes, from the package's source, the Python files that let a Hub repository load without the package.

diffusers copies `pipeline.py`, and what it imports from beside it, into a folder of modules; a component's file stands
alone. So the modules become siblings at the root, named `sgr_...` since other repositories' files may lie in the same
folder, their imports are rewritten, and the shapes in annotations, which need jaxtyping, are kept for the reader only.
"""

import ast
import functools
import re
from pathlib import Path

from .model_index import PIPELINE_FILE, SEGMENTATION_FILE

__all__ = ["SEGMENTATION_PATH", "bundle_files", "code_files"]

PACKAGE = Path(__file__).parents[1]
SEGMENTATION_PATH = f"segmentation_model/{SEGMENTATION_FILE}.py"
SHAPES = "sgr_shapes"

_START, _SELF, _REGISTRATION = "pipeline.pipeline_sgr_mri", "hub.code_bundle", "hub.registration"
_HEADER = """\
# Made from the Python package sgr_diffusers (Apache-2.0) when this pipeline was saved.
# To change it, change the package.
"""
_SHAPE_CLASS = '''\
class {name}:
    """`{name}[Tensor, "y x"]` is a `Tensor`; data type and shape are for the reader."""

    def __class_getitem__(cls, item):
        """The type of array alone."""
        return item[0]
'''
_SHAPES_DOC = '"""Annotations of arrays, for the reader: jaxtyping, which would check them, is not needed."""\n'
# Stands in for `hub.registration`: diffusers finds the classes of a repository by their files.
_UNREGISTERED = '''\
"""Classes of this repository are not registered with diffusers, which finds them by their files."""


def register(pipeline_class):
    """Return the class as it is."""
    return pipeline_class


def named_segmentation(name):
    """Refuse: the networks of other libraries are loaded by the package."""
    raise ValueError("`segmentation_model` can be a name only where sgr_diffusers is installed. Pass the model.")
'''
# Stands in for this very module.
_CARRIED = '''\
"""The files of this repository leave, so that a pipeline that was loaded from it can be saved whole."""

import inspect
from pathlib import Path

ROOT_FILES = {root_files}
SEGMENTATION_PATH = "{segmentation_path}"


def code_files(segmentation_class=None):
    """Path in the repository -> text, for a segmentation model of this class."""
    here = Path(__file__).parent
    files = {{name: (here / name).read_text(encoding="utf-8") for name in ROOT_FILES}}
    if segmentation_class is not None:
        files[SEGMENTATION_PATH] = Path(inspect.getfile(segmentation_class)).read_text(encoding="utf-8")
    return files
'''


def code_files(segmentation_class: type | None = None) -> dict[str, str]:
    """Map paths in the repository to texts, for a pipeline whose segmentation model is of this class.

    Args:
        segmentation_class: class of the segmentation model, `SegmentationUNet`; `None` for a pipeline without it.
    """
    files = bundle_files()
    if segmentation_class is None:
        del files[SEGMENTATION_PATH]
    return files


def bundle_files() -> dict[str, str]:
    """Map paths in the repository to texts, for everything that is carried."""
    return dict(_bundle())


@functools.cache
def _bundle() -> dict[str, str]:
    modules = _needed_modules()
    names = {module: _flat_name(module) for module in modules}
    own = (_SELF, _REGISTRATION)
    root = {f"{names[module]}.py": _rewrite(module, names) for module in modules if module not in own}
    root[f"{names[_REGISTRATION]}.py"] = _UNREGISTERED
    shapes = " = ".join(sorted({name for text in root.values() for name in _shape_names(text)}))
    root[f"{SHAPES}.py"] = f"{_SHAPES_DOC}\n\n{_SHAPE_CLASS.format(name='AnyArray')}\n\n{shapes} = AnyArray\n"
    carried = f"{names[_SELF]}.py"
    listed = "".join(f'    "{name}",\n' for name in sorted({*root, carried}))
    root[carried] = _CARRIED.format(root_files=f"(\n{listed})", segmentation_path=SEGMENTATION_PATH)
    # diffusers copies what this one file names, not what those files import in turn
    main = root[f"{PIPELINE_FILE}.py"]
    missing = sorted(Path(name).stem for name in root if f"from .{Path(name).stem} import" not in main)
    also = "".join(f"from .{name} import __name__ as _{name}\n" for name in missing if name != PIPELINE_FILE)
    first = main.index("\nfrom .") + 1
    comment = "# Not used here, but diffusers copies only the files that this one names.\n"
    root[f"{PIPELINE_FILE}.py"] = f"{main[:first]}{comment}{also}\n{main[first:]}"
    files = {name: _HEADER + text for name, text in sorted(root.items())}
    return files | {SEGMENTATION_PATH: _HEADER + _alone("models/segmentation.py")}


def _needed_modules() -> list[str]:
    """The pipeline's module and all that it imports from the package, in turn, by dotted name."""
    modules, waiting = [], [_START]
    while waiting:
        module = waiting.pop(0)
        if module not in modules:
            modules.append(module)
            if module not in (_SELF, _REGISTRATION):
                waiting += [target for _, target in _package_imports(module)]
    return modules


def _package_imports(module: str) -> list[tuple[ast.Import | ast.ImportFrom, str]]:
    """Imports of a module from the package, with the module that each names."""
    parents = module.split(".")[:-1]
    imports = []
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            names = [origin] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            level = node.level if isinstance(node, ast.ImportFrom) else 0
            if any(name.split(".")[0] == PACKAGE.name for name in names) or (level and not origin):
                raise ValueError(
                    f"sgr_diffusers/{module.replace('.', '/')}.py, line {node.lineno}: what goes to the Hub must "
                    "import names from modules of the package relatively, `from .module import name`."
                )
            if level:
                imports.append((node, ".".join([*parents[: len(parents) - level + 1], origin])))
    return imports


def _flat_name(module: str) -> str:
    return PIPELINE_FILE if module == _START else f"sgr_{module.split('.')[-1]}"


def _rewrite(module: str, names: dict[str, str]) -> str:
    """Source of a module as a sibling of all others."""
    lines = _source(module).splitlines(keepends=True)
    for node, target in _package_imports(module):
        row = node.lineno - 1
        lines[row] = re.sub(r"from \.+[\w.]+ import", f"from .{names[target]} import", lines[row], count=1)
    return re.sub(r"^from jaxtyping import", f"from .{SHAPES} import", "".join(lines), flags=re.MULTILINE)


def _alone(path: str) -> str:
    """Source of a module that imports nothing from the package, with what it needs of `sgr_shapes` in it."""
    text = (PACKAGE / path).read_text(encoding="utf-8")
    [(line, names)] = re.findall(r"^(from jaxtyping import (.+)\n)", text, flags=re.MULTILINE)
    classes = "\n\n".join(_SHAPE_CLASS.format(name=name.strip()) for name in names.split(","))
    text = text.replace(line, "")
    last = list(re.finditer(r"^(from|import) .+\n", text, flags=re.MULTILINE))[-1].end()
    return f"{text[:last]}\n\n{classes}\n\n{text[last:].lstrip()}"


def _shape_names(text: str) -> list[str]:
    match = re.search(rf"^from \.{SHAPES} import (.+)$", text, flags=re.MULTILINE)
    return [name.strip() for name in match.group(1).split(",")] if match else []


def _source(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
