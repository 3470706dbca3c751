"""A tiny random data set in the SKM-TEA layout, for the tests of everything that reads one."""

import json
from pathlib import Path

import h5py
import nibabel
import numpy as np

TINY_SHAPE = (6, 24, 16)  # slices, y, x


def write_tiny_skm_tea(root: Path, n_scans=(("train", 2), ("val", 1), ("test", 1)), shape=TINY_SHAPE, seed=0) -> Path:
    """Random images and labels; tissue classes in slices 2 and 3 of each scan, file labels 1..6 in bright blocks."""
    rng = np.random.default_rng(seed)
    for folder in ("annotations/v1.0.0", "files_recon_calib-24", "segmentation_masks/raw-data-track"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in n_scans:
        images = []
        for _ in range(count):
            number += 1
            scan_id = f"MTR_{number:03d}"
            _write_scan(root, scan_id, shape, rng)
            images.append(
                {
                    "id": number,
                    "file_name": f"{scan_id}.h5",
                    "scan_id": scan_id,
                    "subject_id": number,
                    "timepoint": 0,
                    "voxel_spacing": [2.5, 1.6, 1.5],
                    "matrix_shape": list(shape),
                    "orientation": ["SI", "AP", "LR"],
                }
            )
        (root / "annotations/v1.0.0" / f"{split}.json").write_text(json.dumps({"images": images}))
    return root


def _write_scan(root: Path, scan_id: str, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    _, n_y, n_x = shape
    labels = np.zeros(shape, dtype=np.uint8)
    for label in range(1, 7):
        row, column = divmod(label - 1, 3)
        labels[2:4, 4 + 8 * row : 9 + 8 * row, 1 + 5 * column : 5 + 5 * column] = label
    noise = rng.standard_normal((*shape, 2, 2)).astype(np.float32)
    image = (0.5 + labels / 6)[..., None] + 0.05 * (noise[..., 0] + 1j * noise[..., 1])
    image = (image * 300).astype(np.complex64)  # (slice, y, x, echo), in some scanner unit
    maps = np.full((*shape, 2), 2**-0.5, dtype=np.complex64)
    axes = (1, 2)
    coil_images = maps[..., None, :] * image[..., None]
    kspace = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(coil_images, axes=axes), axes=axes, norm="ortho"), axes=axes
    ).astype(np.complex64)
    with h5py.File(root / "files_recon_calib-24" / f"{scan_id}.h5", "w") as file:
        file["kspace"] = kspace
        file["maps"] = maps[..., None]
        file["target"] = image[..., None]
        for acceleration in (4, 8, 12, 16):
            mask = rng.random((n_y - 6, n_x - 5)) < 1 / acceleration
            file[f"masks/poisson_{acceleration}.0x"] = mask.astype(np.uint8)
    path = root / "segmentation_masks/raw-data-track" / f"{scan_id}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([2.5, 1.6, 1.5, 1])), path)
