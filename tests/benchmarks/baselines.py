"""Reconstructs without a prior, for `benchmark_real.py`: zero-filled, CG-SENSE and L1-wavelet by sigpy and by BART.

Each has one parameter, which is tuned on the reference of every case: the baselines are as good as they can be.
Results are kept in a folder, by a hash of the measurement and of the settings.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from real_cases import Case

from sgr_diffusers.io.arrays import read_cfl
from sgr_diffusers.mri.operators import SenseOperator
from sgr_diffusers.mri.solvers import conjugate_gradient

SETTINGS = {
    "version": 3,
    "cg_most_iterations": 60,
    "sigpy_iterations": 100,
    "bart_iterations": 50,
    "sigpy": "L1WaveletRecon, db4",
    "bart": "pics -R W:6:0:lambda",
    "lambda_start": 1e-2,
    "lambda_factors": [10**0.25, 10**0.125],
}
Solver = Callable[[float], torch.Tensor]


def nrmse(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Error of a complex image relative to the norm of the reference."""
    return float(torch.linalg.norm(image - reference) / torch.linalg.norm(reference))


def tune(solve: Solver, reference: torch.Tensor, known: dict[float, torch.Tensor]) -> float:
    """Find the lambda of least error on a logarithmic grid, by descent with a wide step and then a narrow one.

    Args:
        solve: reconstruction for a lambda.
        reference: image to compare with.
        known: reconstructions of the lambdas that were tried, which is added to.
    """
    best = SETTINGS["lambda_start"]

    def error(value: float) -> float:
        if value not in known:
            known[value] = solve(value)
        return nrmse(known[value], reference)

    for factor in SETTINGS["lambda_factors"]:
        for direction in (factor, 1 / factor):
            while 1e-6 < best < 1e2 and error(float(f"{best * direction:.4g}")) < error(best):
                best = float(f"{best * direction:.4g}")
    return best


def l1_wavelet(case: Case, scale: float) -> Solver:
    """L1-wavelet reconstruction by sigpy, of k-space divided by `scale`."""
    from sigpy.mri.app import L1WaveletRecon

    kspace, maps = (case.kspace / scale).numpy(), case.scan.coil_maps.numpy()
    weights = case.mask.numpy().astype(np.float32)

    def solve(value: float) -> torch.Tensor:
        # No eigenvalue of the normal operator is above 1: the maps have unit sum of squares.
        settings = {"alpha": 1, "max_iter": SETTINGS["sigpy_iterations"], "show_pbar": False}
        return torch.from_numpy(L1WaveletRecon(kspace, maps, value, weights=weights, **settings).run()) * scale

    return solve


def l1_wavelet_bart(case: Case, scale: float) -> Solver:
    """L1-wavelet reconstruction by BART, of k-space divided by `scale`."""

    def solve(value: float) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            arrays = {"kspace": case.kspace / scale, "maps": case.scan.coil_maps, "pattern": case.mask[None]}
            for name, array in arrays.items():
                dims = [1, *array.shape[1:], len(array)]  # y and x are BART's phase encoding dimensions 1 and 2
                columns = np.asarray(array.permute(1, 2, 0), np.complex64).ravel(order="F")
                Path(folder, f"{name}.hdr").write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n")
                Path(folder, f"{name}.cfl").write_bytes(columns.tobytes())
            options = ["-w", "1", "-i", str(SETTINGS["bart_iterations"]), "-R", f"W:6:0:{value}", "-p", "pattern"]
            command = ["bart", "pics", *options, "kspace", "maps", "image"]
            environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
            subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
            image = read_cfl(Path(folder, "image"))
        return torch.from_numpy(np.ascontiguousarray(image.reshape(case.mask.shape))) * scale

    return solve


def cg_iterates(operator: SenseOperator, adjoint: torch.Tensor, references: list[torch.Tensor]) -> list[torch.Tensor]:
    """CG-SENSE after 1, 2, 3, ... iterations, until none of the last three was nearer to any reference."""
    images, errors, zero = [], [], torch.zeros_like(adjoint)
    for count in range(1, SETTINGS["cg_most_iterations"] + 1):
        images.append(conjugate_gradient(operator.normal, adjoint, zero, max_iterations=count).solution)
        errors.append([nrmse(images[-1], reference) for reference in references])
        if count > 3 and (np.min(errors[-3:], axis=0) > np.min(errors[:-3], axis=0)).all():
            break
    return images


def compute(case: Case) -> dict[str, dict[str, tuple[torch.Tensor, float]]]:
    """Image and tuned parameter of each method, for each reference of a case."""
    operator = case.operator
    adjoint = operator.adjoint(case.kspace)
    scale = float(torch.quantile(adjoint.abs(), 0.99))
    iterates = cg_iterates(operator, adjoint, list(case.references.values()))
    solvers = {"l1_wavelet": l1_wavelet(case, scale)}
    if shutil.which("bart"):
        solvers["l1_wavelet_bart"] = l1_wavelet_bart(case, scale)
    known = {method: {} for method in solvers}
    results = {}
    for name, reference in case.references.items():
        best = int(np.argmin([nrmse(image, reference) for image in iterates]))
        results[name] = {"zero_filled": (adjoint, float("nan")), "cg_sense": (iterates[best], best + 1.0)}
        for method, solve in solvers.items():
            value = tune(solve, reference, known[method])
            results[name][method] = (known[method][value], value)
    return results


def cached(case: Case, folder: Path) -> dict[str, dict[str, tuple[torch.Tensor, float]]]:
    """As `compute`, from `folder` where the same measurement was reconstructed by the same settings before."""
    digest = hashlib.sha256(json.dumps([SETTINGS, shutil.which("bart") is not None, list(case.references)]).encode())
    for array in (case.kspace, case.mask, case.scan.coil_maps, *case.references.values()):
        digest.update(array.contiguous().numpy().tobytes())
    path = folder / f"{case.name}_{digest.hexdigest()[:16]}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save(compute(case), part)
        part.replace(path)
    return torch.load(path, weights_only=True)
