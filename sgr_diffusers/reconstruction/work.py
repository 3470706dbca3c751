"""Keeps the parts of a reconstruction on disk until all of them are made, so that a run that was killed goes on.

Beside the output folder lies a hidden folder with a file for each part: a few slices that are reconstructed together.
Any number of processes share the parts by claims. In the end the parts become one volume whose arrays stay on disk.
"""

import json
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.claims import CLAIMS_FOLDER, Part, exclusive, hand_out, remove_claims
from ..utils.differences import difference
from ..utils.files import RECORD_FILE, REQUEST_FILE, parts_folder, recover_all, remove_folder, whole_file, write_json
from .volume import VolumeReconstruction

__all__ = ["Parts"]

_OF_SLICES = {
    "magnitudes", "segmentations", "zero_filled", "fully_sampled", "reference", "standard_deviation", "numbers"
}  # fmt: skip
_PLAIN = {"classes", "labels", "targets", "voxel_size_mm", "label"}


class Parts:
    """Parts of the reconstruction that is to become a folder.

    Args:
        output: folder to make in the end.

    Attributes:
        folder: folder of the parts, beside `output`.
    """

    def __init__(self, output: Path):
        """Choose the folder; nothing is made yet."""
        self.output = output
        self.folder = parts_folder(output)

    @property
    def are_begun(self) -> bool:
        """Whether there is a run that can be gone on with."""
        return (self.folder / REQUEST_FILE).exists()

    def open(self, request: Mapping[str, Any], overwrite: bool) -> str:
        """Begin a folder, or go on in one that was begun with the same request.

        Args:
            request: all that the parts depend on, in plain values.
            overwrite: whether a folder of another request is deleted.

        Returns:
            Token of the run, which the record of the output folder keeps.

        Raises:
            FileExistsError: the folder was begun with another request; the differences are listed.
        """
        request = json.loads(json.dumps(request, default=str))
        with exclusive(self.folder, REQUEST_FILE):
            path = self.folder / REQUEST_FILE
            if path.is_file():
                known = json.loads(path.read_text())
                differences = difference(known["request"], request)
                if differences and not overwrite:
                    raise FileExistsError(
                        f"`output` {self.output}: {self.folder} holds parts of an unfinished run with other settings "
                        f"({'; '.join(differences)}). Finish it with these, choose another folder, or delete the "
                        "parts by --overwrite."
                    )
                if not differences:
                    recover_all(self.folder)
                    return str(known["token"])
                for file in self.folder.glob("*.npz"):
                    file.unlink()
            token = secrets.token_hex(8)
            write_json(path, {"token": token, "request": request})
            return token

    def hand_out(self, units: Sequence[tuple[int, ...]], part: Part | None = None) -> Generator[tuple[int, ...]]:
        """Give the numbers of the slices of each part that is to be made, see `claims.hand_out`.

        Args:
            units: numbers of the slices of every part.
            part: which of them to begin with.
        """
        return hand_out(units, self.folder, _name, self.is_done, part)

    def is_done(self, unit: tuple[int, ...]) -> bool:
        """Whether a part is made, or the folder gone because another process has finished the run."""
        return self._file(unit).exists() or not self.are_begun

    def save(self, unit: tuple[int, ...], volume: VolumeReconstruction, suspicions: Sequence[str]) -> None:
        """Write a part."""
        values = {entry.name: getattr(volume, entry.name) for entry in fields(volume)}
        plain = {name: values.pop(name) for name in _PLAIN}
        arrays = {name: np.asarray(value) for name, value in values.items() if value is not None}
        with whole_file(self._file(unit)) as partial:
            arrays["plain"] = np.asarray(json.dumps({**plain, "suspicions": list(suspicions)}))
            np.savez(partial, allow_pickle=False, **arrays)

    @contextmanager
    def finish(self, units: Sequence[tuple[int, ...]]) -> Iterator[tuple[VolumeReconstruction, list[str]] | None]:
        """Give the volume of all parts and the texts of all suspicions, and remove the parts at the end.

        Yields:
            `None` where another process has finished the run.
        """
        with exclusive(self.folder, RECORD_FILE):
            is_open = self.are_begun
            if is_open:
                yield self._join(units)
                remove_folder(self.folder)
            else:
                yield None
        if not is_open:
            self.leave()

    def leave(self) -> None:
        """Remove the folder if no part is made and no other process is at work."""
        remove_claims(self.folder)
        if not any(self.folder.glob("*.npz")) and not (self.folder / CLAIMS_FOLDER).exists():
            (self.folder / REQUEST_FILE).unlink(missing_ok=True)
            if self.folder.exists() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _file(self, unit: tuple[int, ...]) -> Path:
        return self.folder / f"{_name(unit)}.npz"

    def _join(self, units: Sequence[tuple[int, ...]]) -> tuple[VolumeReconstruction, list[str]]:
        """Join the parts to one volume; arrays of slices are mapped from files, so that memory holds one part."""
        volumes: dict[str, np.ndarray] = {}
        suspicions: dict[str, None] = {}
        misfit, noise, energy, start = 0.0, 0.0, 0.0, 0
        n_slices = sum(map(len, units))
        for unit in units:
            with np.load(self._file(unit)) as file:
                plain = json.loads(str(file["plain"]))
                suspicions |= dict.fromkeys(plain.pop("suspicions"))
                for name in _OF_SLICES & set(file.files):
                    part = file[name]
                    if name not in volumes:
                        path, shape = self.folder / f"{name}.npy", (n_slices, *part.shape[1:])
                        volumes[name] = np.lib.format.open_memmap(path, "w+", part.dtype, shape)
                    volumes[name][start : start + len(unit)] = part
                others = {name: file[name] for name in set(file.files) - _OF_SLICES - {"plain"}}
            part_energy = float(others["energy"])
            misfit = misfit + np.square(others["data_residual"]) * part_energy
            noise += float(others["noise_residual"]) ** 2 * part_energy
            energy += part_energy
            start += len(unit)
        numbers = tuple(volumes.pop("numbers").tolist())
        size = plain["voxel_size_mm"]
        plain |= {"voxel_size_mm": None if size is None else tuple(size)}
        plain |= {name: tuple(plain[name]) for name in ("classes", "labels", "targets")}
        residuals = {"data_residual": np.sqrt(misfit / energy), "noise_residual": (noise / energy) ** 0.5}
        missing = {entry.name: None for entry in fields(VolumeReconstruction)}
        values = missing | volumes | others | plain | residuals | {"numbers": numbers, "energy": energy}
        return VolumeReconstruction(**values), list(suspicions)


def _name(unit: tuple[int, ...]) -> str:
    return f"slices-{unit[0]:05d}-{unit[-1]:05d}-{len(unit)}"
