"""Measures what reading through `load_skmtea` costs beside bare HDF5, and prints ratios taken in one run.

    python tests/benchmarks/benchmark_data.py

Goals: a slice through the data set at most 1.2 times bare `h5py` reads of the same bytes plus the same transpose; 4
workers faster than 1; memory flat under random access over a scan; the time to the first row of a streamed set
independent of the number of scans. The files are written to a temporary folder, of full slice size (512 x 160) but
with few slices, and read once before anything is measured: the cache is warm. Ratios are medians of alternating
repetitions, so that what else the machine does falls on both sides.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import psutil
from torch.utils.data import DataLoader

from sgr_diffusers.data.load import load_skmtea
from sgr_diffusers.utils.options import OptionParser

ARRAYS = ["kspace", "coil_maps", "target"]


def write_data(root, n_scans, shape, n_coils, chunked):
    """Scans in the SKM-TEA layout, of noise; all but the first are links to it. `chunked`: a chunk a slice."""
    for folder in ("annotations/v1.0.0", "files_recon_calib-24", "segmentation_masks/raw-data-track"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    scan, labels = root / "files_recon_calib-24/MTR_000.h5", root / "segmentation_masks/raw-data-track/MTR_000.nii.gz"
    rng = np.random.default_rng(0)
    with h5py.File(scan, "w") as file:
        for key, rest in (("kspace", (2, n_coils)), ("maps", (n_coils, 1)), ("target", (2, 1))):
            chunks = (1, *shape[1:], *rest) if chunked else None
            data = file.create_dataset(key, (*shape, *rest), "complex64", chunks=chunks)
            for number in range(shape[0]):
                values = rng.standard_normal((*shape[1:], *rest, 2), dtype=np.float32)
                data[number] = values.view(np.complex64)[..., 0]
        file["masks/poisson_8.0x"] = (rng.random((shape[1] * 13 // 16, shape[2] // 2)) < 0.125).astype(np.uint8)
    tissue = np.zeros(shape, np.uint8)
    for label in range(1, 7):  # blocks: labels of tissue are smooth, and so is what they compress to
        tissue[:, 30 * label : 30 * label + 25, 20 * label : 20 * label + 15] = label
    nibabel.save(nibabel.Nifti1Image(tissue, np.eye(4)), labels)
    images = []
    for number in range(n_scans):
        scan_id = f"MTR_{number:03d}"
        for file in (scan, labels):
            link = file.with_name(file.name.replace("MTR_000", scan_id))
            if not link.exists():
                os.link(file, link)
        entry = {"scan_id": scan_id, "subject_id": number, "matrix_shape": shape}
        images.append({**entry, "voxel_spacing": [0.3125, 0.3125, 0.8], "orientation": ["SI", "AP", "LR"]})
    (root / "annotations/v1.0.0/train.json").write_text(json.dumps({"images": images}))


def bare(file, number):
    """The same bytes by h5py alone, coils first in memory."""
    everything = slice(None)
    kspace = np.ascontiguousarray(np.moveaxis(file["kspace"][number, :, :, 0, :], -1, 0))
    maps = np.ascontiguousarray(np.moveaxis(file["maps"][number, everything, everything, everything, 0], -1, 0))
    return kspace, maps, file["target"][number, :, :, 0, 0]


def seconds(run, numbers):
    """Seconds for one call with each of the numbers."""
    start = time.perf_counter()
    for number in numbers:
        run(number)
    return (time.perf_counter() - start) / len(numbers)


def ratio(one, other, numbers, repetitions):
    """Median over alternating repetitions of the times of two calls, and of the first over the second."""
    times = [(seconds(one, numbers), seconds(other, numbers)) for _ in range(repetitions)]
    return statistics.median(a / b for a, b in times), statistics.median(b for _, b in times)


def overhead(root, cache, repetitions, n_slices):
    """Prints a slice through the data set over bare reads, in every format."""
    plain = load_skmtea(root, "train", cache_dir=cache)
    masked = load_skmtea(root, "train", acceleration=8, cache_dir=cache)
    numbers = list(np.random.default_rng(0).permutation(n_slices))
    with h5py.File(root / "files_recon_calib-24/MTR_000.h5") as file:
        for label, dataset in (
            ("k-space, maps and target as stored", plain.select_columns(ARRAYS)),
            ("the same, undersampled by a stored mask", masked.select_columns(ARRAYS)),
            ("all columns (beside bare reads of three)", masked),
            ("k-space, maps and target in the numpy format", plain.select_columns(ARRAYS).with_format("numpy")),
            ("k-space, maps and target as torch tensors", plain.select_columns(ARRAYS).with_format("torch")),
        ):
            for number in numbers:
                dataset[int(number)], bare(file, number)
            share, base = ratio(
                lambda n, dataset=dataset: dataset[int(n)], lambda n: bare(file, n), numbers, repetitions
            )
            print(f"  {label:46} {share:5.2f} x bare h5py ({1e3 * base:.1f} ms a slice)  goal <= 1.2")


def workers(root, cache, repetitions):
    """Prints the time of an epoch with 1 worker over that with 4, both started before, and what it costs in CPU time.

    An epoch as the training of a reconstruction network reads it: k-space undersampled by a stored mask, maps, mask,
    target and labels, decoded, transposed, stacked to tensors in batches of 4, and copied once by the process that
    receives them, as on the way to a device. On a busy machine the times say little, but CPU time does: workers help
    as long as four need no more of it than one, and the receiving process needs less than they do.
    """
    dataset = load_skmtea(root, "train", acceleration=8, cache_dir=cache)
    dataset = dataset.select_columns([*ARRAYS, "mask", "labels"]).select(list(range(len(dataset))) * 3)

    def loader(n_workers):
        """A loader, and the processes of its workers."""
        before = set(psutil.Process().children())
        made = DataLoader(
            dataset, batch_size=4, num_workers=n_workers, persistent_workers=True, multiprocessing_context="fork"
        )
        iter(made)
        return made, [one for one in psutil.Process().children() if one not in before]

    def cpu(processes):
        return sum(sum(one.cpu_times()[:2]) for one in processes)

    def epoch(made, processes):
        """Seconds, CPU seconds of the workers, CPU seconds of this process."""
        start = time.perf_counter(), cpu(processes), time.process_time()
        for batch in made:
            for tensor in batch.values():
                tensor.clone()
        return time.perf_counter() - start[0], cpu(processes) - start[1], time.process_time() - start[2]

    one, four = loader(1), loader(4)
    epoch(*one), epoch(*four)
    times = [(epoch(*one), epoch(*four)) for _ in range(repetitions)]
    cpus = len(os.sched_getaffinity(0))
    share = statistics.median(a[0] / b[0] for a, b in times)
    print(f"  4 workers are {share:.2f} times as fast as 1, on {cpus} CPUs  goal > 1 (needs 2 free CPUs)")
    work = [sum(part[column] for part in side) for side in zip(*times, strict=True) for column in (1, 2)]
    per_slice = 1e3 / (repetitions * len(dataset))
    print(
        f"  CPU time a slice: 1 worker {work[0] * per_slice:.1f} ms, 4 workers {work[2] * per_slice:.1f} ms, the "
        f"process that receives {work[1] * per_slice:.1f} and {work[3] * per_slice:.1f} ms"
    )


def memory(root, cache, n_rows):
    """Prints the memory of the process after random rows of all scans, over that after the first few."""
    dataset = load_skmtea(root, "train", acceleration=8, cache_dir=cache)
    order = np.random.default_rng(0).integers(0, len(dataset), n_rows)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    marks = []
    for count, index in enumerate(order):
        dataset[int(index)]
        if count in (n_rows // 5, n_rows - 1):
            marks.append(resident())
    row = dataset[0]
    size = sum(row[name].nbytes for name in ("kspace", "coil_maps", "target", "mask", "labels")) / 1e6
    grown = marks[1] - marks[0]
    print(f"  {grown:+.1f} MB from random row {n_rows // 5} to row {n_rows} of {size:.1f} MB each  goal: flat")


def first_row(root, n_scans, repetitions):
    """Prints the time to the first row of a streamed set of many scans over that of one of a single scan."""

    def time_to_first():
        start = time.perf_counter()
        next(iter(load_skmtea(root, "train", acceleration=8, streaming=True)))
        return time.perf_counter() - start

    times = {}
    for count in (1, n_scans) * repetitions:
        annotations = root / "annotations/v1.0.0/train.json"
        content = annotations.read_text()
        annotations.write_text(json.dumps({"images": json.loads(content)["images"][:count]}))
        times.setdefault(count, []).append(time_to_first())
        annotations.write_text(content)
    share = statistics.median(many / one for one, many in zip(times[1], times[n_scans], strict=True))
    print(f"  {n_scans} scans take {share:.2f} times as long to the first row as 1 scan  goal: about 1")


def main():
    """Measure and print."""
    parser = OptionParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-slices", type=int, default=8, help="of a scan")
    parser.add_argument("--n-coils", type=int, default=8, help="receive coils")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 160], help="of a slice")
    parser.add_argument("--n-scans", type=int, default=100, help="of the streamed set")
    parser.add_argument("--repetitions", type=int, default=7, help="of each measurement")
    args = parser.parse_args()
    shape = (args.n_slices, *args.size)
    with tempfile.TemporaryDirectory() as folder:
        for chunked in (False, True):
            root = Path(folder, str(chunked))
            write_data(root, 1, shape, args.n_coils, chunked)
            print(f"a slice through the data set, {'a chunk a slice' if chunked else 'contiguous'}:")
            overhead(root, Path(folder, "cache"), args.repetitions, args.n_slices)
        root = Path(folder, "many")
        write_data(root, args.n_scans, shape, args.n_coils, chunked=False)
        print("time to the first row of a stream:")
        first_row(root, args.n_scans, args.repetitions)
        few = Path(folder, "few")
        write_data(few, 8, shape, args.n_coils, chunked=False)
        print("workers of a DataLoader:")
        workers(few, Path(folder, "cache"), max(args.repetitions // 3, 1))
        print("memory under random access:")
        memory(few, Path(folder, "cache"), 100)


if __name__ == "__main__":
    main()
