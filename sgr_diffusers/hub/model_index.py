"""Reads an untrusted `model_index.json` and checks it before anything is loaded.

A model index names modules and classes to load. Only names that stand for a known class go through: nothing is
imported because a repository says so. Configurations of components are checked for size, so that they cannot ask for
networks without end.
"""

import inspect
import itertools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin, SchedulerMixin

__all__ = [
    "COMPONENTS",
    "OWN_CLASS",
    "OWN_SEGMENTATION",
    "PICKLES",
    "PIPELINE_FILE",
    "SEGMENTATION_FILE",
    "UnsafeCheckpointError",
    "check_folder",
    "check_settings",
    "read_json",
    "read_model_index",
]

OWN_CLASS, OWN_SEGMENTATION = "SGRMRIPipeline", "SegmentationUNet"
PIPELINE_FILE = "pipeline"  # pipeline.py, at the root of a repository
SEGMENTATION_FILE = "segmentation_unet"  # segmentation_model/segmentation_unet.py
COMPONENTS = ("unet", "scheduler", "segmentation_model")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")

_LARGEST_FILE = 1_000_000  # bytes
_DEEPEST = 8
_MOST_ENTRIES = 20_000
_LONGEST_TEXT = 20_000
_LARGEST_COUNT = 100_000  # of timesteps, pixels
_MOST_LEVELS = 64
_LARGEST = {"layers_per_block": 64, "num_res_units": 64, "channels": 8192, "block_out_channels": 8192}
_LEAST = {"layers_per_block": 1, "block_out_channels": 1, "num_res_units": 0, "channels": 1, "strides": 1}
_LEAST |= {"num_train_timesteps": 1}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MODULE = re.compile(rf"{_NAME.pattern}(\.{_NAME.pattern})*")


class UnsafeCheckpointError(ValueError):
    """A repository asks for something that must not be done on its word."""


def read_model_index(file: str | Path) -> dict[str, Any]:
    """Read a model index and check all that it says.

    Args:
        file: path of a `model_index.json`.

    Raises:
        UnsafeCheckpointError: the file is too large or too deeply nested, a component does not stand for a class that
            can be loaded safely, or a setting has the wrong type or is out of range.
    """
    index = read_json(file)
    if not isinstance(index, dict):
        raise UnsafeCheckpointError(f"{_short(file)} must hold a JSON object, got {type(index).__name__}.")
    class_name = index.get("_class_name")
    parts = class_name if isinstance(class_name, list) else [PIPELINE_FILE, class_name]
    if len(parts) != 2 or parts[0] != PIPELINE_FILE or not _is_name(parts[1]):
        raise UnsafeCheckpointError(
            f'`_class_name` of {_short(file)} must be a class or ["{PIPELINE_FILE}", a class], got '
            f"{_shown(class_name)}. Code of the repository itself runs only by "
            "`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`: read it first."
        )
    for name, value in index.items():
        if name in COMPONENTS:
            _check_component(name, value, file)
        elif isinstance(value, list) and name != "_class_name":
            raise UnsafeCheckpointError(
                f"{_short(file)} has the component {_shown(name)}: {_shown(value)}, but the pipeline has only "
                f"{COMPONENTS}."
            )
    check_settings(index, f" of {_short(file)}")
    return index


def read_json(file: str | Path) -> Any:
    """Read a JSON file of bounded size.

    Raises:
        UnsafeCheckpointError: the file is no JSON, too large, too deeply nested, or has NaN for a number.
    """
    size = Path(file).stat().st_size
    if size > _LARGEST_FILE:
        raise UnsafeCheckpointError(f"{_short(file)} must have at most {_LARGEST_FILE} bytes, got {size}.")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # of numbers with too many digits, and of nesting without end, too
        raise UnsafeCheckpointError(f"{_short(file)} cannot be read as JSON: {str(error)[:200]}") from None
    _check_extent(content, file)
    return content


def check_folder(folder: str | Path) -> None:
    """Refuse the folder of a pipeline that has weights or shards only as pickles, or components without end.

    Raises:
        UnsafeCheckpointError: naming the file.
    """
    for name in COMPONENTS:
        component = Path(folder) / name
        files = [path for path in component.glob("*") if path.is_file()] if component.is_dir() else []
        for path in files:
            if path.suffix == ".json" and ".safetensors." in path.name:  # of a variant: ....index.fp16.json
                _check_shards(read_json(path), path)
            elif path.suffix == ".json" and ".index." not in path.name:
                content = read_json(path)
                _check_counts(content, path)
                _check_numbers(content, path)
        pickles = sorted(path.name for path in files if path.suffix in PICKLES)
        alone = [
            pickle_name
            for pickle_name in pickles
            if not (component / pickle_name).with_suffix(".safetensors").is_file()
        ]
        if alone:  # the same name: another variant's safetensors do not keep diffusers from this one
            raise UnsafeCheckpointError(
                f"`{name}` has weights only as {alone[0]}, and files that are unpickled can run any code. Ask for "
                "weights as .safetensors, convert them where nothing can be harmed, or delete what is not needed."
            )


def _check_shards(content: Any, file: str | Path) -> None:
    """An index of shards must name safetensors: diffusers unpickles what has another suffix."""
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsafeCheckpointError(
                f"{_short(file)} must name files beside it that end in .safetensors, got {_shown(name)}."
            )


def _check_component(name: str, value: Any, file: str | Path) -> None:
    """A component is [library, class] of a class that is known here, or of a file of the repository."""
    optional = name == "segmentation_model"
    if optional and value in ([None, None], None):
        return
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    if not is_pair or not _MODULE.fullmatch(value[0]) or not _is_name(value[1]):
        raise UnsafeCheckpointError(
            f"`{name}` of {_short(file)} must be [library, class], two names, got {_shown(value)}."
        )
    library, class_name = value
    base = SchedulerMixin if name == "scheduler" else ModelMixin
    if library == "diffusers":
        component_class = getattr(diffusers, class_name, None)
    elif optional and library == SEGMENTATION_FILE and class_name == OWN_SEGMENTATION:
        return
    elif library in sys.modules:  # looked up, never imported: the caller has done that
        component_class = getattr(sys.modules[library], class_name, None)
    elif "." not in library and not hasattr(diffusers.pipelines, library) and library not in sys.stdlib_module_names:
        return  # a file of the component's folder, which diffusers loads only behind `trust_remote_code`
    else:
        component_class = None
    if not (isinstance(component_class, type) and issubclass(component_class, base)):
        raise UnsafeCheckpointError(
            f"`{name}` of {_short(file)} must name a {base.__name__} of diffusers, or of a module that has been "
            f"imported before, got {_shown(value)}. If it is a class of your own, import its module first."
        )


def check_settings(settings: dict[str, Any], where: str = "") -> None:
    """Refuse settings of the pipeline that `SGRMRIPipeline.__init__` cannot use.

    Args:
        settings: settings by name; `None` stands for the default.
        where: words for the message that say where the settings are from, such as " of model_index.json".

    Raises:
        UnsafeCheckpointError: naming the setting.
    """
    limits = {
        "scale_quantile": (0, 1),
        "scale_correction": (0, 1e6),
        "guidance_strength": (0, 1e3),
        "guidance_from": (0, 1),
        "noise_of_mean": (0, 1),
        "timestep_of_mean": (0, 1),
        "deviation_of_mean": (0, 1),
    }
    for name, (least, most) in {**limits, "cg_iterations": (-1, 1000)}.items():
        if name not in settings:
            continue
        value = settings[name]
        is_number = isinstance(value, int if name == "cg_iterations" else int | float) and not isinstance(value, bool)
        if not (is_number and least < value <= most):
            raise UnsafeCheckpointError(
                f"`{name}`{where} must be a number above {least} and up to {most}, got {_shown(value)}."
            )
    if not isinstance(settings.get("is_equivariant", False), bool):
        raise UnsafeCheckpointError(
            f"`is_equivariant`{where} must be true or false, got {_shown(settings['is_equivariant'])}."
        )
    choices = ("cg", "noise_aware")
    if settings.get("consistency", "cg") not in choices:
        raise UnsafeCheckpointError(
            f"`consistency`{where} must be one of {choices}, got {_shown(settings['consistency'])}."
        )
    _check_denoising_variance(settings.get("denoising_variance"), where)
    trained_with = settings.get("trained_with")
    if trained_with is None:
        return
    levels = trained_with.get("alphas_cumprod") if isinstance(trained_with, dict) else None
    is_list = isinstance(levels, list) and len(levels) <= 100
    if (
        not isinstance(trained_with, dict)
        or not isinstance(trained_with.get("prediction_type"), str)
        or not (levels is None or (is_list and all(isinstance(level, int | float) for level in levels)))
    ):
        raise UnsafeCheckpointError(
            f"`trained_with`{where} must hold `prediction_type` and a few `alphas_cumprod`, got "
            f"{_shown(trained_with)}."
        )


def _check_denoising_variance(table: Any, where: str) -> None:
    """Refuse a table other than two lists of positive numbers, of which the first rises."""
    if table is None:
        return
    known = table if isinstance(table, dict) else {}
    columns: list[Any] = [known.get("noise_to_signal"), known.get("error")]
    is_table = all(isinstance(column, list) and 0 < len(column) <= 100 for column in columns)
    is_table = is_table and len({len(column) for column in columns}) == 1
    numbers = itertools.chain(*columns) if is_table else ()
    is_table = is_table and all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)
    if not is_table or any(low >= high for low, high in itertools.pairwise(columns[0])):
        raise UnsafeCheckpointError(
            f"`denoising_variance`{where} must hold the lists `noise_to_signal`, rising, and `error` of as "
            f"many positive numbers, got {_shown(table)}."
        )


def _check_extent(content: Any, file: str | Path) -> None:
    """Depth, number of entries and length of texts; without recursion, which is what an attack would go for."""
    level, depth, n_entries = [content], 0, 0
    while level:
        depth, n_entries = depth + 1, n_entries + len(level)
        texts = [entry for entry in level if isinstance(entry, str)]
        too_long = any(len(text) > _LONGEST_TEXT for text in texts)
        if depth > _DEEPEST or n_entries > _MOST_ENTRIES or too_long:
            raise UnsafeCheckpointError(
                f"{_short(file)} must be nested at most {_DEEPEST} deep, with at most {_MOST_ENTRIES} entries and "
                f"texts of up to {_LONGEST_TEXT} characters. This is not the configuration of a pipeline."
            )
        below = []
        for entry in level:
            if isinstance(entry, dict):
                below += [*entry, *entry.values()]
            elif isinstance(entry, list):
                below += entry
        level = below


def _check_counts(content: Any, file: str | Path) -> None:
    """No entry may ask for a network that takes forever to build, or that cannot be, whatever weights there are."""
    if not isinstance(content, dict):
        raise UnsafeCheckpointError(f"{_short(file)} must hold a JSON object, got {type(content).__name__}.")
    level = [("", content)]
    while level:
        below: list[tuple[str, Any]] = []
        for name, value in level:
            most = _LARGEST.get(name, _LARGEST_COUNT)
            if isinstance(value, int) and abs(value) > most:
                raise UnsafeCheckpointError(
                    f"{_short(file)} must have no {name or 'count'} above {most}, got {_shown(value)}."
                )
            if isinstance(value, int) and value < _LEAST.get(name, value):
                raise UnsafeCheckpointError(
                    f"{_short(file)} must have no {name} below {_LEAST[name]}, got {_shown(value)}."
                )
            if isinstance(value, list) and name in _LARGEST and len(value) > _MOST_LEVELS:
                raise UnsafeCheckpointError(
                    f"{_short(file)} must have at most {_MOST_LEVELS} {name}, got {len(value)}."
                )
            if isinstance(value, dict):
                below += value.items()
            elif isinstance(value, list):
                below += [(name, part) for part in value]
        level = below


def _check_numbers(content: dict[str, Any], file: str | Path) -> None:
    """No text may stand where the class of diffusers has a number by default."""
    component = getattr(diffusers, str(content.get("_class_name")), None)
    if not isinstance(component, type):
        return
    for name, parameter in inspect.signature(component).parameters.items():
        if isinstance(parameter.default, (int, float)) and isinstance(content.get(name), str):
            raise UnsafeCheckpointError(
                f"`{name}` of {_short(file)} must be like {parameter.default}, got {_shown(content[name])}."
            )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _constant(name: str) -> float:
    """The infinities, which diffusers writes into the configs of some schedulers (`lambda_min_clipped`); never NaN."""
    if name == "NaN":
        raise ValueError(f"{name} is no number of a configuration")
    return float(name)


def _short(file: str | Path) -> str:
    return "/".join(Path(file).parts[-2:]) if Path(file).name != "model_index.json" else "model_index.json"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
