"""Our prior, operator and pipeline in deepinv's classes, held against the real library."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
import torch

from sgr_diffusers import SenseOperator
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.pipeline_parts import SIZE, build, call, draw_problem
from tests.helpers.tiny_pipeline import save_tiny_pipeline
from tests.helpers.torchvision_stub import torchvision_or_stub


@pytest.fixture(scope="module")
def deepinv():
    if importlib.util.find_spec("deepinv") is None:
        pytest.skip("deepinv is not installed; `make test` installs it")
    with torchvision_or_stub("deepinv", "sgr_diffusers.interop.deepinv"):
        yield importlib.import_module("deepinv")


@pytest.fixture(scope="module")
def ours(deepinv):
    import sgr_diffusers.interop.deepinv as module

    return module


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_operator(n_batch):
    problem = draw_problem(n_slices=n_batch)
    mask = torch.stack([problem["mask"].roll(k, 0) for k in range(n_batch)])
    return SenseOperator(problem["coil_maps"], mask)


def test_the_operators_are_the_same_and_each_others_adjoint(ours):
    operator = draw_operator(2)
    physics = ours.to_physics(operator)
    x, y = draw(2, 2, *SIZE), draw(2, 2, operator.n_coils, *SIZE, seed=1)
    image, kspace = torch.complex(x[:, 0], x[:, 1]), torch.complex(y[:, 0], y[:, 1])
    torch.testing.assert_close(physics.A(x), ours.from_kspace(operator.forward(image)))
    torch.testing.assert_close(ours.to_kspace(physics.A(x)), operator.forward(image))
    adjoint = operator.adjoint(kspace)
    torch.testing.assert_close(physics.A_adjoint(y), torch.stack([adjoint.real, adjoint.imag], 1))
    # <A x, y> by one library is <x, A^H y> by the other
    torch.testing.assert_close(torch.vdot(operator.forward(image).ravel(), kspace.ravel()).real,
                               (x * physics.A_adjoint(y)).sum(), rtol=1e-4, atol=1e-3)  # fmt: skip
    back = ours.from_physics(physics)
    assert torch.equal(back.coil_maps, operator.coil_maps) and torch.equal(back.mask, operator.mask)
    shared = ours.to_physics(SenseOperator(operator.coil_maps[0], operator.mask[0]))
    torch.testing.assert_close(shared.A(x[:1]), physics.A(x)[:1])


def test_the_denoiser_is_the_prior_at_its_noise_levels(ours):
    pipe = build()
    x = draw(2, 2, *SIZE)
    for t in (50, 700):
        alpha = pipe.scheduler.alphas_cumprod[t] ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        output = pipe.unet(alpha * x, t).sample
        expected = (alpha * x - sigma * output) / alpha
        if pipe.scheduler.config.prediction_type == "v_prediction":
            expected = alpha * alpha * x - sigma * output
        result = ours.PriorDenoiser(pipe)(x, float(sigma / alpha))
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    denoiser = ours.PriorDenoiser(pipe)
    each = [denoiser(one[None], level) for one, level in zip(x, (0.1, 3.0), strict=True)]
    torch.testing.assert_close(denoiser(x, torch.tensor([0.1, 3.0])), torch.cat(each))
    # images u = x / (2 c) + 1/2, with noise of sigma / (2 c)
    shifted = ours.PriorDenoiser(pipe, limit=2.0)(x / 4 + 0.5, 0.1 / 4)
    torch.testing.assert_close((shifted - 0.5) * 4, denoiser(x, 0.1), rtol=1e-4, atol=1e-4)
    x.requires_grad_()
    denoiser(x, 0.3).square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()


@pytest.mark.filterwarnings("ignore:non_blocking_transfers=True can only be used")
def test_the_pipeline_runs_in_the_loop_of_tests(deepinv, ours):
    problem, pipe = draw_problem(n_slices=2), build()
    physics = ours.to_physics(SenseOperator(problem["coil_maps"], problem["mask"]))
    y = ours.from_kspace(problem["kspace"])
    model = ours.SGRReconstructor(pipe, num_inference_steps=4)
    images = call(pipe, problem, target="none", num_inference_steps=4).images[:, 0, 0]
    expected = torch.stack([images.real, images.imag], 1)
    torch.testing.assert_close(model(y, physics), expected)
    data = [{"x": image, "y": kspace} for image, kspace in zip(expected, y, strict=True)]
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    scores = deepinv.test(model, loader, physics, metrics=deepinv.metric.MSE(), verbose=False, show_progress_bar=False,
                          rescale_mode=None)  # fmt: skip
    assert scores["MSE"] < 1e-10 < scores["MSE no learning"]


@pytest.mark.parametrize(("name", "loose", "tight"), [("DPS", 0.0, 30.0), ("DiffPIR", 1e6, 1.0)])
def test_samplers_of_deepinv_take_the_prior(deepinv, name, loose, tight):
    """The weight of the data brings the image nearer to them, for an untrained prior, too."""
    from benchmark_deepinv import sample

    problem, pipe = draw_problem(n_slices=1), build()
    operator = SenseOperator(problem["coil_maps"], problem["mask"])
    kspace = problem["kspace"] / operator.adjoint(problem["kspace"]).abs().max()
    residuals = []
    for weight in (loose, tight):
        image = sample(name, pipe, operator, kspace, noise_std=0.01, n_steps=6, seed=0, weight=weight)
        assert image.shape == (1, *SIZE) and torch.isfinite(image.abs()).all()
        residuals.append((operator.forward(image) - kspace).norm() / kspace.norm())
    assert residuals[1] < 0.9 * residuals[0]
    assert torch.equal(image, sample(name, pipe, operator, kspace, 0.01, n_steps=6, seed=0, weight=tight))


def test_the_table_of_samplers_is_tuned_on_other_scans_and_written(deepinv, tmp_path, monkeypatch, capsys):
    import benchmark_deepinv

    write_tiny_skm_tea(tmp_path / "data", n_scans=(("val", 1), ("test", 2)))
    model = save_tiny_pipeline(tmp_path / "model")
    options = "--steps 2 --accelerations 4 --weights 1 30 --lambdas 7 --num-threads 1"
    paths = ["--data-dir", str(tmp_path / "data"), "--model", str(model), "--output", str(tmp_path / "table.csv")]
    monkeypatch.setattr("sys.argv", ["benchmark_deepinv.py", *options.split(), *paths])
    benchmark_deepinv.main()
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table["sampler"]) == ["pipeline", "DPS", "DiffPIR"] and (table["n_slices"] == 2).all()
    assert np.isfinite(table[["psnr", "ssim"]]).all(axis=None)
    assert list(table["n_weights"]) == [0, 2, 1] and table["weight"][1] in (1, 30)
    assert capsys.readouterr().out.count("4x ") == 3


def test_what_does_not_fit_is_refused(deepinv, ours):
    with pytest.raises(TypeError, match="must be deepinv's MultiCoilMRI, got MRI"):
        ours.from_physics(deepinv.physics.MRI(img_size=(1, 2, *SIZE)))
    volume = deepinv.physics.MultiCoilMRI(img_size=(1, 2, 4, *SIZE), three_d=True)
    with pytest.raises(ValueError, match="two-dimensional"):
        ours.from_physics(volume)
    mask = torch.ones(1, 2, *SIZE)
    mask[:, 1, 0] = 0
    with pytest.raises(ValueError, match="the same for real and imaginary"):
        ours.from_physics(deepinv.physics.MultiCoilMRI(mask=mask, img_size=(1, 2, *SIZE)))


def test_a_missing_library_is_named(monkeypatch):
    from sgr_diffusers.utils import late_import

    with pytest.raises(ValueError, match=r"pip install 'sgr-diffusers\[deepinv\]'"):
        late_import.require("no_such_library", "deepinv")
