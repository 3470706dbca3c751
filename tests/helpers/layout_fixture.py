"""A tiny random data set in the SKM-TEA layout, and one of full size without content, for tests of what reads them."""

import json
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np

TINY_SHAPE = (6, 24, 16)  # slices, y, x


def write_tiny_skm_tea(
    root: Path, n_scans=(("train", 2), ("val", 1), ("test", 1)), shape=TINY_SHAPE, seed=0, class_names=None
) -> Path:
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
        content = {"images": images} | ({} if class_names is None else {"segmentation_classes": class_names})
        (root / "annotations/v1.0.0" / f"{split}.json").write_text(json.dumps(content))
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


def write_look_alike(root: Path, n_scans=None, slice_size=None) -> Path:
    """As many scans as SKM-TEA has, of its size, in a few MB: HDF5 keeps no space for what is never written.

    `n_scans` by split and `slice_size` (y, x) make it smaller. Scans have 8 or 16 coils, and background as labels.
    """
    for folder in ("annotations/v1.0.0", "files_recon_calib-24", "segmentation_masks/raw-data-track"):
        (root / folder).mkdir(parents=True)
    number, compressed = 0, {}
    for split, count in (n_scans or {"train": 86, "val": 33, "test": 36}).items():
        images = []
        for _ in range(count):
            number += 1
            scan_id, n_coils = f"MTR_{number:03d}", 8 if number % 3 else 16
            n_y, n_x = slice_size or (512, {7: 168, 50: 152, 90: 156, 130: 144}.get(number, 160))
            shape = (512, n_y, n_x)
            images.append({"scan_id": scan_id, "subject_id": number, "matrix_shape": shape})
            images[-1] |= {"voxel_spacing": [0.3125, 0.3125, 0.8], "orientation": ["SI", "AP", "LR"]}
            with h5py.File(root / "files_recon_calib-24" / f"{scan_id}.h5", "w") as file:
                file.create_dataset("kspace", (*shape, 2, n_coils), "complex64")
                file.create_dataset("maps", (*shape, n_coils, 1), "complex64")
                file.create_dataset("target", (*shape, 2, 1), "complex64")
                for acceleration in (4, 6, 8, 10, 12, 16):
                    mask_shape = (n_y * 13 // 16, n_x // 2)
                    file.create_dataset(f"masks/poisson_{acceleration}.0x", mask_shape, "uint8")
            if shape not in compressed:
                header = nibabel.Nifti1Header()
                header.set_data_dtype(np.uint8)
                header.set_data_shape(shape)
                header["magic"], header["vox_offset"] = b"n+1", 352
                pack = zlib.compressobj(1, wbits=31)
                body = pack.compress(header.binaryblock + bytes(4)) + pack.compress(bytes(int(np.prod(shape))))
                compressed[shape] = body + pack.flush()
            (root / "segmentation_masks/raw-data-track" / f"{scan_id}.nii.gz").write_bytes(compressed[shape])
        (root / "annotations/v1.0.0" / f"{split}.json").write_text(json.dumps({"images": images}))
    return root
