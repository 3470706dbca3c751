"""Writer of NIfTI files, which say as much of voxel size and place in the patient as is known."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from ..utils.files import whole_file

__all__ = ["check_orientation", "volume_affine", "write_nifti"]

# Direction in which an axis runs -> world axis (R, A, S) it lies on, and its sign there. "SI" runs from superior
# to inferior.
_DIRECTIONS = {"LR": (0, 1), "RL": (0, -1), "PA": (1, 1), "AP": (1, -1), "IS": (2, 1), "SI": (2, -1)}


def write_nifti(
    path: str | os.PathLike,
    volume: Shaped[np.ndarray | Tensor, "a b c"],
    voxel_size_mm: tuple[int | float, int | float, int | float] | None,
    orientation: tuple[str, str, str] | None = None,
    affine: Float[np.ndarray, "4 4"] | None = None,
) -> None:
    """Write a volume as NIfTI-1 under its name only when it is complete.

    The codes of its coordinates say what is known: 1 (scanner) with `affine`, 2 (aligned: directions, but no place;
    the origin is in the middle) with `orientation` alone, 0 (unknown) without either.

    Args:
        path: path that ends in `.nii` or `.nii.gz`. A file of that name is replaced.
        volume: volume, uint8, float32 or complex64, `(a, b, c)` in the order of `voxel_size_mm` and `orientation`.
        voxel_size_mm: size of a voxel along the three axes; `None` where it is not known (1 without a unit).
        orientation: direction in which each axis runs: "SI" or "IS", "AP" or "PA", "LR" or "RL", each pair once;
            `None` where it is not known.
        affine: matrix from places in the volume to mm in the world axes right, anterior, superior, where it is known:
            it takes the place of `orientation`. Its columns must be as long as `voxel_size_mm` says.

    Raises:
        TypeError: `volume` has another dtype.
        ValueError: `volume` is not 3-D, `voxel_size_mm` is not positive, or `orientation` or the ending is unknown, or
            `affine` and `voxel_size_mm` contradict each other.
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"`path` must end in .nii or .nii.gz, got {path.name}.")
    array = volume.detach().cpu().resolve_conj().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    if array.dtype not in (np.uint8, np.float32, np.complex64):
        raise TypeError(f"`volume` must be uint8, float32 or complex64, got {array.dtype}. Convert it first.")
    if array.ndim != 3:
        raise ValueError(f"`volume` must have three axes, got shape {array.shape}.")
    size = (1.0, 1.0, 1.0) if voxel_size_mm is None else tuple(voxel_size_mm)
    code = "unknown" if affine is None and orientation is None else "aligned" if affine is None else "scanner"
    world = volume_affine(array.shape, size, orientation, affine)
    image = nibabel.Nifti1Image(array, None if code == "unknown" else world)
    image.header.set_zooms(size)
    image.header.set_xyzt_units("unknown" if voxel_size_mm is None else "mm")
    image.set_sform(None if code == "unknown" else world, code=code)
    image.set_qform(None if code == "unknown" else world, code=code)
    with whole_file(path) as partial:
        nibabel.save(image, partial)


def check_orientation(orientation: tuple[str, ...]) -> None:
    """Check that an orientation names three axes of the patient.

    Raises:
        ValueError: it does not.
    """
    pairs = sorted("".join(sorted(str(direction))) for direction in orientation)
    if pairs != ["AP", "IS", "LR"]:
        raise ValueError(
            "`orientation` must hold one each of SI or IS, AP or PA, LR or RL, such as ('SI', 'AP', 'LR'), "
            f"got {orientation}."
        )


def volume_affine(
    shape: tuple[int, ...],
    voxel_size_mm: tuple[float, ...],
    orientation: tuple[str, ...] | None,
    known: Float[np.ndarray, "4 4"] | None = None,
) -> Float[np.ndarray, "4 4"]:
    """Return the matrix from voxel indices to mm in the world axes of NIfTI: right, anterior, superior.

    Args:
        shape: shape of the volume.
        voxel_size_mm: edge lengths of a voxel along its axes.
        orientation: direction in which each axis runs; the origin comes to the middle. `None`: unknown, and the
            lengths alone are on the diagonal.
        known: affine to return once it is found to fit `voxel_size_mm`.

    Raises:
        ValueError: `voxel_size_mm` or `orientation` cannot be, or `known` contradicts `voxel_size_mm`.
    """
    if len(voxel_size_mm) != 3 or not all(0 < size < float("inf") for size in voxel_size_mm):
        raise ValueError(f"`voxel_size_mm` must be three positive lengths, got {voxel_size_mm}.")
    if orientation is not None:
        check_orientation(orientation)
    if known is not None:
        lengths = np.linalg.norm(known[:3, :3], axis=0)
        if not np.allclose(lengths, voxel_size_mm, rtol=1e-3):
            raise ValueError(
                f"`affine` has columns of {lengths.tolist()} mm, but `voxel_size_mm` is {voxel_size_mm}. "
                "Pass one that fits, or `affine=None`."
            )
        return np.asarray(known, dtype=float)
    if orientation is None:
        return np.diag([*voxel_size_mm, 1.0])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (direction, size) in enumerate(zip(orientation, voxel_size_mm, strict=True)):
        world, sign = _DIRECTIONS[direction]
        affine[world, axis] = sign * size
        affine[world, 3] = -sign * size * (shape[axis] - 1) / 2
    return affine
