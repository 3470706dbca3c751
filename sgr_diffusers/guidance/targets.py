"""Targets and classes of a call: which bounds are asked for, and of which tissues."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

__all__ = ["TARGETS", "resolve_classes"]

TARGETS = {"lower": ("lower",), "upper": ("upper",), "both": ("lower", "upper"), "none": ("none",)}


def resolve_classes(classes: Sequence[str | int] | str | int | None, class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the label numbers, from 1, of classes given by name or number; all of them for `None`.

    Raises:
        ValueError: a class is unknown, given twice, or none is given.
    """
    if classes is None:
        return tuple(range(1, len(class_names) + 1))
    if isinstance(classes, (str, int, Integral)):
        classes = (classes,)
    if not isinstance(classes, Iterable) or isinstance(classes, Mapping):
        raise ValueError(f"`classes` must be a name, a label number or a list of them, got {classes!r}.")
    known = ", ".join(f"{number} {name!r}" for number, name in enumerate(class_names, start=1))
    numbers = []
    for entry in classes:
        if isinstance(entry, str) and entry in class_names:
            numbers.append(list(class_names).index(entry) + 1)
        elif isinstance(entry, Integral) and not isinstance(entry, bool) and 1 <= int(entry) <= len(class_names):
            numbers.append(int(entry))
        else:
            raise ValueError(f"`classes` must name classes of the segmentation model ({known}), got {entry!r}.")
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(
            f"`classes` must name one class or more, each once, got {tuple(classes)!r}. Of {known}, None means all."
        )
    return tuple(numbers)
