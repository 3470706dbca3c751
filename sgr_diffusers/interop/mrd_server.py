"""A module for MRD servers (python-ismrmrd-server, OpenRecon): raw data in, bounds out as series of images.

The server finds it by the name of its configuration: a file `sgr.py` beside the server with the line
`from sgr_diffusers.interop.mrd_server import process`. The whole measurement is received before anything is computed,
and all images are made before the first is sent: a stream that is cut short gives none.
"""

import dataclasses
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..io.ismrmrd_writer import ismrmrd_images
from ..reconstruction.results import volume_table
from ..reconstruction.settings import SamplingSettings
from ..reconstruction.source import read_scan
from ..reconstruction.volume import VolumeReconstruction, load_pipeline, reconstruct_volume

__all__ = ["process"]

_LAST = ("ACQ_LAST_IN_MEASUREMENT", "ACQ_LAST_IN_REPETITION", "ACQ_LAST_IN_SLICE")
_OF_THE_SERVER = ("config", "customconfig")
_LARGEST_VALUE = 4095  # of 12 bits, as scanners have them
_logger = logging.getLogger(__name__)


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Receive a measurement, reconstruct it, and send images and segmentations back.

    Args:
        connection: connection of the server: messages to iterate over, `send_image`, `send_logging` and `send_close`.
        config: configuration, a mapping or its JSON text, `{"parameters": {"model": "general", "target": "both"}}`:
            "model", "device", "dtype" as of `load_pipeline`, "mask" as of `read_raw`, and settings of
            `SamplingSettings`; other text for the defaults.
        metadata: MRD header, as text or as `ismrmrd.xsd.ismrmrdHeader`.

    Raises:
        ValueError, TypeError, OSError: a parameter or the measurement cannot be used, or the stream was cut short. The
            client is told by a message of the log, and gets no image.
    """
    try:
        images = _reconstruct(connection, _parameters(config), metadata)
        connection.send_image(images)
    except Exception as error:
        with suppress(OSError):  # the client may be gone
            connection.send_logging("ERROR", str(error))
        with suppress(ValueError):  # what is still on its way: else the client could not send it, nor read the reason
            for _ in _messages(connection):
                pass
        raise
    finally:
        with suppress(OSError):
            connection.send_close()


def _parameters(config: Any) -> dict[str, Any]:
    """Return the parameters of the configuration: a mapping, its JSON text, or another text for no parameters."""
    if not isinstance(config, Mapping):
        try:
            config = json.loads(config)
        except (TypeError, ValueError):  # the name of the module, or the XML of a Gadgetron
            return {}
    parameters = config.get("parameters", {}) if isinstance(config, Mapping) else {}
    settings = {entry.name: entry for entry in dataclasses.fields(SamplingSettings)}
    known = sorted({*settings, "model", "device", "dtype", "mask"})
    given = {name: value for name, value in parameters.items() if name not in _OF_THE_SERVER}
    if not set(given) <= set(known):
        raise ValueError(f"`parameters` may hold {known}, got {sorted(set(given) - set(known))} among them.")
    return {name: _value(settings[name], value) if name in settings else value for name, value in given.items()}


def _value(setting: dataclasses.Field, value: Any) -> Any:
    """Return the value of a setting; scanners also send numbers and flags as text."""
    rule = setting.metadata["rule"]
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    if rule is None:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"`{setting.name}` must be true or false, got {value!r}.")
        return value.lower() == "true"
    with suppress(ValueError):  # what is no number is refused by its rule
        return tuple(map(rule.parse, value.split())) if setting.metadata["several"] else rule.parse(value)
    return value


def _reconstruct(connection: Any, parameters: dict[str, Any], metadata: Any) -> list[Any]:
    model = parameters.pop("model", "general")
    machine = {name: parameters.pop(name) for name in ("device", "dtype") if name in parameters}
    mask = parameters.pop("mask", None)
    settings = SamplingSettings(**parameters)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measurement.h5"
        _receive(connection, metadata, file)
        scan = read_scan(file, mask=mask, needs_size=settings.target != "none")
    volume = reconstruct_volume(load_pipeline(model, **machine), scan, settings)
    return list(_series(volume, scan.orientation, scan.affine))


def _receive(connection: Any, metadata: Any, file: Path) -> None:
    """Write the measurement into a file.

    Raises:
        ValueError: the stream holds something else, or was cut short.
    """
    with warnings.catch_warnings():  # its import changes the filters of everybody
        import ismrmrd
    last = None
    with ismrmrd.Dataset(str(file)) as dataset:
        dataset.write_xml_header(metadata if isinstance(metadata, str | bytes) else metadata.toXML())
        for item in _messages(connection):
            if isinstance(item, ismrmrd.Acquisition):
                last = item
                dataset.append_acquisition(item)
            elif not isinstance(item, ismrmrd.Waveform):
                raise ValueError(f"the stream must hold raw data, got {type(item).__name__}. Send acquisitions.")
    if last is None or not any(last.is_flag_set(getattr(ismrmrd, flag)) for flag in _LAST):
        raise ValueError(
            f"the stream was cut short: its last acquisition must have one of the flags {_LAST}, but "
            + ("there is none." if last is None else f"that of line {last.idx.kspace_encode_step_1} has not.")
        )


def _messages(connection: Any) -> Iterator[Any]:
    try:
        for item in connection:
            if item is None:  # the server's sign of the end
                return
            yield item
    except Exception as error:  # whatever half a message makes of a server
        raise ValueError(f"the stream was cut short: {type(error).__name__}: {error}") from error


def _series(volume: VolumeReconstruction, orientation: Any, affine: Any) -> Iterator[Any]:
    """Images of all reconstructions and of their segmentations, a series each, with one scale of intensities."""
    rows = volume_table(volume)
    scale = _LARGEST_VALUE / (float(volume.magnitudes.max()) or 1.0)
    number = 0
    for class_number in range(volume.magnitudes.shape[1]):
        for target_number, target in enumerate(volume.targets):
            name = "unguided" if target == "none" else f"{volume.classes[class_number]}_{target}"
            meta: dict[str, Any] = {"ImageProcessingHistory": ["SGR", name], "Keep_image_geometry": 1}
            for row in rows if target == "none" else rows[class_number : class_number + 1]:
                kind = "unguided" if target == "none" else target
                meta[f"SGR_volume_mm3_{row['class']}"] = row.get(f"{kind}_mm3")
            magnitude = volume.magnitudes[:, class_number, target_number] * scale
            parts = {"Image": np.rint(magnitude)}
            if volume.labels:
                parts["Segmentation"] = volume.segmentations[:, class_number, target_number]
            for role, array in parts.items():
                number += 1
                more: dict[str, Any] = {"DataRole": role, "SequenceDescriptionAdditional": f"SGR_{name}_{role}"}
                more |= {"SGR_scale": scale} if role == "Image" else {"SGR_classes": list(volume.classes)}
                for image in ismrmrd_images(array.astype(np.uint16), volume.voxel_size_mm, orientation, affine):
                    image.image_series_index = number
                    image.attribute_string = _meta_text(meta | more)
                    yield image


def _meta_text(meta: dict[str, Any]) -> str:
    with warnings.catch_warnings():
        import ismrmrd
    return ismrmrd.Meta(meta).serialize()
