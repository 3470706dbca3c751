"""Imports a module of this package once a library is imported, and libraries of the extras when they are needed."""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["import_after", "require"]


def import_after(library: str, module: str) -> None:
    """Import a module as soon as a library is imported, or at once where the library has been imported.

    Args:
        library: name of a top-level package.
        module: full name of the module, which may import the library.
    """
    if library in sys.modules:
        import_module(module)
    else:
        sys.meta_path.insert(0, _Watch(library, module))


class _Watch(MetaPathFinder):
    """Finds the library as Python does, and adds the import to what loads it."""

    def __init__(self, library: str, module: str) -> None:
        self.library, self.module = library, module

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the specification of the library; `None` for all else."""
        if fullname != self.library:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            load = loader.exec_module

            def load_both(module: ModuleType) -> None:
                load(module)
                import_module(self.module)

            loader.exec_module = load_both
        return spec


def require(library: str, extra: str) -> ModuleType:
    """Import a library that an extra of this package brings.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library.split(".")[0]:
            raise
        raise ValueError(f"{library} is not installed. Install it by: pip install 'sgr-diffusers[{extra}]'") from error
