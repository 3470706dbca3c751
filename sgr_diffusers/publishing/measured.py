"""Checks that a pipeline loads, and that the numbers recorded in its folder were measured with its weights."""

from pathlib import Path
from typing import Any

from ..hub.model_index import read_json
from ..utils.files import RECORD_FILE

__all__ = ["QUALITY_FILE", "check_measured", "names_its_weights"]

QUALITY_FILE = "quality.json"


def check_measured(folder: Path) -> None:
    """Load a pipeline and hold the records of its evaluation against its weights.

    Args:
        folder: folder of the pipeline; its numbers are those of `evaluation/settings.json` and
            `evaluation/quality.json`.

    Raises:
        ValueError: the pipeline does not load; a table or figure has no record of what it is of, or is of other
            weights.
    """
    from ..reconstruction.volume import load_pipeline
    from ..utils.weights import weights_hash

    claims = _claims(folder / "evaluation")
    # The hash is of weights as they are loaded.
    for dtype in dict.fromkeys(dtype for _, dtype in claims.values()) or ["float32"]:
        pipe = load_pipeline(folder, "cpu", dtype)
        hashes = [weights_hash(network) for network in (pipe.unet, pipe.segmentation_model)]
        for name, (claimed, of_dtype) in claims.items():
            if of_dtype == dtype and claimed.split("-")[:2] != hashes:  # a second segmentation model may follow
                raise ValueError(
                    f"evaluation/{name} is of other weights than those of the pipeline: {claimed} there, "
                    f"{'-'.join(hashes)} here. Evaluate this pipeline (sgr evaluate DATA_DIR --model DIR), or remove "
                    "the folder `evaluation`."
                )


def names_its_weights(quality: Any) -> bool:
    """Return whether the record of a quality benchmark says of which weights and scans it is; older ones do not."""
    return isinstance(quality, dict) and all(isinstance(quality.get(name), str) for name in ("weights", "split"))


def _claims(evaluation: Path) -> dict[str, tuple[str, str]]:
    """File -> hash of the weights that its numbers are of, and the data type in which that was taken."""
    claims = {}
    record, quality = evaluation / RECORD_FILE, evaluation / QUALITY_FILE
    figures = sorted(evaluation.glob("figure*.png"))
    numbers = [path.name for path in (evaluation / "table1.csv", *figures) if path.is_file()]
    if record.is_file():
        content = read_json(record)
        try:
            claims[RECORD_FILE] = (str(content["identity"]["weights"]), str(content["identity"]["settings"]["dtype"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"evaluation/{RECORD_FILE} is no record of `sgr report`: {error!r}.") from error
    elif numbers:
        raise ValueError(
            f"evaluation/{numbers[0]} cannot be published without {RECORD_FILE}, the record of `sgr report` that says "
            "of which weights it is. Take the folder of the report: --report DIR."
        )
    if quality.is_file() and names_its_weights(content := read_json(quality)):
        claims[QUALITY_FILE] = (content["weights"], "float32")
    return claims
