"""Record which networks, settings and data a results folder belongs to; check whether a run may go on in it.

`config.json` of a results folder holds an identity, all of which can change a bit of a result and must be the same for
whatever is added, and the plans that were followed, which only say how far it went.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.claims import CLAIMS_FOLDER
from ..utils.differences import difference
from ..utils.files import is_partial, write_json
from .plan import EvaluationPlan
from .slices import EvaluationData

__all__ = [
    "CONFIG",
    "open_results",
    "read_config",
]

CONFIG = "config.json"


def open_results(
    output: str | os.PathLike,
    identity: Mapping[str, Any],
    plan: EvaluationPlan,
    data: EvaluationData,
    examples: list[tuple[str, int]],
    command: str,
    write: bool = True,
) -> dict[str, Any]:
    """Begin a results folder, or go on in one.

    Args:
        output: results folder.
        identity: values that must be the same for all runs in the folder; plain values.
        plan: plan that is added to those that the folder knows.
        data: data whose scans are added to those that the folder knows; of a scan that it knows the slices must be the
            same.
        examples: slices to keep images of; those of the first run stay.
        command: command line, kept for the record.
        write: whether to write to the folder; only one of several processes does.

    Returns:
        Content of `config.json`.

    Raises:
        ValueError: the folder belongs to another configuration; the differences are listed.
        FileExistsError: it is not a results folder, but holds something.
    """
    path, identity = Path(output) / CONFIG, json.loads(json.dumps(identity))
    slices = {scan_id: list(numbers) for scan_id, numbers in data.slices.items()}
    further = {scan_id: list(numbers) for scan_id, numbers in data.finding_slices.items()}
    if path.exists():
        content = read_config(output)
        both = set(slices) & set(content["slices"])
        differences = difference(content["identity"], identity)
        differences += difference(
            {"slices": {scan: content["slices"][scan] for scan in both}, "data": _part(content["fingerprint"], both)},
            {"slices": {scan: slices[scan] for scan in both}, "data": _part(data.fingerprint, both)},
        )
        if differences:
            raise ValueError(
                f"`output` {output} holds results of another configuration. {'; '.join(differences)}. Choose another "
                "folder, or the settings that it was begun with."
            )
    else:
        if Path(output).is_dir() and not all(is_partial(x) or x.name == CLAIMS_FOLDER for x in Path(output).iterdir()):
            raise FileExistsError(f"`output` {output} is no results folder, but holds files. Choose another one.")
        content = {"identity": identity, "data": data.name}
        content |= {"slices": {}, "finding_slices": {}, "fingerprint": {}, "plans": [], "runs": []}
        content["examples"] = [list(pair) for pair in examples]
    content["slices"] |= slices
    content["finding_slices"] |= further
    content["fingerprint"] |= data.fingerprint
    if plan.to_json() not in content["plans"]:
        content["plans"].append(plan.to_json())
    if write:
        run = {"command": command, "machine": f"{os.cpu_count()} cores, {platform.platform()}"}
        if run not in content["runs"]:
            content["runs"].append(run)
        write_json(path, content, indent=1)
    return content


def read_config(output: str | os.PathLike) -> dict[str, Any]:
    """Read the `config.json` of a results folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    path = Path(output) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{output} holds no {CONFIG}: not a results folder of `sgr evaluate`.")
    try:
        content = json.loads(path.read_text())
        missing = {"identity", "data", "slices", "finding_slices", "fingerprint", "plans", "examples"} - set(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). The shards beside it are of use only with it.") from error
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {sorted(missing)}.")
    return content


def _part(mapping: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: mapping[key] for key in keys}
