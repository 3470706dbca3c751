"""A results folder made by hand, for the tests of everything that reads one."""

import json
from pathlib import Path

import numpy as np

from sgr_diffusers.evaluation.identity import CONFIG
from sgr_diffusers.evaluation.plan import EvaluationPlan, Unit
from sgr_diffusers.evaluation.store import pack_labels, pack_magnitude, write_shard
from sgr_diffusers.utils.weights import weights_hash

SIZE = (4, 6)


def quality_record(pipe, **entries):
    """A record as the quality benchmark leaves it of a pipeline."""
    record = {
        "command": "python benchmark",
        "weights": "-".join(weights_hash(network) for network in (pipe.unet, pipe.segmentation_model)),
        "split": "test",
        "scans": ["a"],
        "steps": 7,
        "seed": 0,
        "dice": {"meniscus": 0.4321},
        "psnr_4x": {"zero_filled": 20.0, "cg_sense": 30.0, "unguided": 31.5},
    }
    return record | entries


def labels(**cells):
    """Label map in which the flat pixels `one=[...]` have label 1 and `two=[...]` label 2."""
    found = np.zeros(SIZE, np.uint8)
    for value, name in enumerate(("one", "two"), start=1):
        found.flat[list(cells.get(name, []))] = value
    return found


class HandMade:
    """Collects units of an evaluation with the classes "one" and "two" and writes them."""

    def __init__(self, folder: Path, plan: EvaluationPlan | None = None, data="by hand", second=False):
        self.folder, self.plan, self.data, self.second = Path(folder), plan or EvaluationPlan((4.0,)), data, second
        self.slices, self.examples, self.finding_slices = {}, [], {}

    def _add(self, unit, row):
        fixed = {"height": SIZE[0], "width": SIZE[1], "peak": 2.0, "seconds": 4.0, "n_threads": 1, "images": []}
        spent = {f"seconds_{name}": 0.5 for name in ("unet_forward", "unet_backward", "segmentation", "physics")}
        write_shard(self.folder, unit, {**fixed, **spent, **row}, {"torch": "0"})

    def reference(self, scan, index, fully_sampled, manual=None, findings=(), example=False, **more):
        self.slices.setdefault(scan, []).append(index)
        row = {"fully_sampled": pack_labels(fully_sampled), "findings": json.dumps(list(findings))}
        row["voxel_size_mm"] = [1.0, 1.0, 1.0]
        row["manual"] = None if manual is None else pack_labels(manual)
        row |= {name: pack_labels(value) for name, value in more.items()}
        if example:
            self.examples.append([scan, index])
            row["target_magnitude"] = pack_magnitude(np.linspace(0, 2, 24).reshape(SIZE), 2.0)
        self._add(Unit("reference", scan, index), row)

    def _image(self, number, target, sample, found, error, second):
        return {
            "class_number": number,
            "target": target,
            "sample": sample,
            "labels": pack_labels(found),
            "second_labels": None if second is None else pack_labels(second),
            "magnitude": pack_magnitude(np.full(SIZE, 1.0), 2.0),
            "ssim": 0.5 + error,
            "squared_error": 24 * error,
            "squared_error_noise_free": 6 * error,
            "residual": 0.0,
        }

    def guided(self, scan, index, bounds, acceleration=4.0, strength=None, error=0.01, cost=(8, 4), second=None):
        """`bounds`: for each class (lower, upper) label maps."""
        images = []
        for number, pair in enumerate(bounds, start=1):
            for place, target in enumerate(("lower", "upper")):
                other = None if second is None else second[number - 1][place]
                images.append(self._image(number, target, 0, pair[place], error, other))
        row = {"images": images, "strength_used": strength or 0.005, "n_forward": cost[0], "n_backward": cost[1]}
        row["zero_filled"] = pack_magnitude(np.full(SIZE, 0.5), 2.0)
        self._add(Unit("SGR", scan, index, acceleration, strength), row)

    def samples(self, scan, index, maps, acceleration=4.0, first=0, error=0.02, second=None):
        others = second or [None] * len(maps)
        images = [
            self._image(0, "sample", first + k, found, error, other)
            for k, (found, other) in enumerate(zip(maps, others, strict=True))
        ]
        row = {"images": images, "n_forward": len(maps), "n_backward": 0}
        self._add(Unit("RR", scan, index, acceleration, None, first, len(maps)), row)

    def finish(self):
        content = {
            "identity": {"classes": ["one", "two"], "settings": {"guidance_strength": 0.005, "eta": 1.0}},
            "data": self.data,
            "slices": self.slices,
            "finding_slices": self.finding_slices,
            "fingerprint": {},
            "plans": [self.plan.to_json()],
            "examples": self.examples,
            "runs": [{"command": "by hand", "machine": "none"}],
        }
        (self.folder / CONFIG).write_text(json.dumps(content))
        return self.folder
