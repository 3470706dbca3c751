"""Stands in for torchvision where it is not installed, so that libraries which import it can be tested."""

import importlib.machinery
import importlib.util
import sys
import types
from contextlib import contextmanager

from torch import nn


class _Anything(type(nn.Module)):
    """A class with every attribute that is asked for."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StubFinder:
    """Modules of torchvision with empty classes: timm imports many, the networks here use none.

    There is no build of torchvision beside the CPU build of torch; the one of the registry breaks on import.
    """

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__version__ = "0.0.0"
        module.__getattr__ = _stub_class
        return module

    def exec_module(self, module):
        pass


def _stub_class(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (nn.Module,), {})


@contextmanager
def torchvision_or_stub(*libraries):
    """Within the context torchvision can be imported; a stub and the modules that saw it are forgotten after it."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    before, finder = set(sys.modules), _StubFinder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name in libraries or name.split(".")[0] in ("torchvision", *libraries):
                del sys.modules[name]
