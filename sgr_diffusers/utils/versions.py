"""Tells the versions of the libraries that results depend on."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["library_versions"]

_LIBRARIES = ("sgr_diffusers", "torch", "diffusers", "monai", "numpy")


def library_versions() -> dict[str, str]:
    """Return the versions of what computes the results; "-" for a package that runs from its source tree only."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "-"
    return versions
