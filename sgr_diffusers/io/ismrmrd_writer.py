"""Images in the ISMRMRD format, as reconstruction pipelines exchange them, in files and streams."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from .nifti import volume_affine
from .orientation import LPS_TO_RAS

__all__ = ["ismrmrd_images", "write_ismrmrd_images"]


def write_ismrmrd_images(
    path: str | os.PathLike,
    images: Shaped[np.ndarray | Tensor, "slice y x"],
    voxel_size_mm: tuple[float | int, float | int, float | int] | None,
    orientation: tuple[str, str, str] | None = None,
    affine: Float[np.ndarray, "4 4"] | None = None,
    series: str = "image_0",
    group: str = "dataset",
) -> None:
    """Append images to an ISMRMRD file, one for each slice: columns along the readout, rows along the phase encoding.

    Args:
        path: file to make, or to append to.
        images: this and the next three are as for `ismrmrd_images`.
        voxel_size_mm: edge lengths (slice, y, x) of a voxel.
        orientation: direction in which each axis runs.
        affine: affine as in `RawSlices.affine`.
        series: name of the group of images.
        group: HDF5 group of the scan.

    Raises:
        TypeError, ValueError: as `ismrmrd_images` says.
    """
    with warnings.catch_warnings():
        import ismrmrd
    ready = list(ismrmrd_images(images, voxel_size_mm, orientation, affine))
    with ismrmrd.Dataset(str(path), group) as dataset:
        for image in ready:
            dataset.append_image(series, image)


def ismrmrd_images(
    images: Shaped[np.ndarray | Tensor, "slice y x"],
    voxel_size_mm: tuple[float | int, float | int, float | int] | None,
    orientation: tuple[str, str, str] | None = None,
    affine: Float[np.ndarray, "4 4"] | None = None,
) -> Iterator[Any]:
    """Make an `ismrmrd.Image` of each slice: columns along the readout, rows along the phase encoding.

    Args:
        images: images, complex64, float32 or uint16.
        voxel_size_mm: edge lengths (slice, y, x) of a voxel; `None` where they are not known: the field of view is 0.
        orientation: direction in which each axis runs, as for `write_nifti`, with the origin in the middle; `None`
            where it is not known: directions are 0.
        affine: affine as in `RawSlices.affine`, where it is known: it takes the place of `orientation`.

    Raises:
        TypeError: the images have another dtype.
        ValueError: `voxel_size_mm` is not positive, `orientation` is unknown, or `affine` and `voxel_size_mm`
            contradict each other.
    """
    array = images.detach().cpu().resolve_conj().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype not in (np.complex64, np.float32, np.uint16):
        raise TypeError(f"`images` must be complex64, float32 or uint16, got {array.dtype}. Convert them first.")
    is_known = orientation is not None or affine is not None
    size = (1.0, 1.0, 1.0) if voxel_size_mm is None else tuple(voxel_size_mm)
    affine = volume_affine(array.shape, size, orientation, affine)
    with warnings.catch_warnings():
        import ismrmrd
    _, n_y, n_x = array.shape
    axes = [LPS_TO_RAS @ affine[:3, column] / np.linalg.norm(affine[:3, column]) for column in range(3)]
    kinds = {"c": ismrmrd.IMTYPE_COMPLEX, "f": ismrmrd.IMTYPE_MAGNITUDE, "u": ismrmrd.IMTYPE_MAGNITUDE}
    for number, plane in enumerate(array):
        image = ismrmrd.Image.from_array(np.ascontiguousarray(plane), transpose=False)
        if voxel_size_mm is not None:
            image.field_of_view[:] = (n_x * size[2], n_y * size[1], size[0])
        if is_known:
            image.position[:] = LPS_TO_RAS @ (affine @ [number, n_y // 2, n_x // 2, 1])[:3]
            image.slice_dir[:], image.phase_dir[:], image.read_dir[:] = axes
        image.slice, image.image_index, image.image_type = number, number + 1, kinds[plane.dtype.kind]
        yield image
