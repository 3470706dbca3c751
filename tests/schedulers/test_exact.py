"""Every scheduler through the whole pipeline, with a prior whose posterior is known in closed form.

The prior is Gaussian and stationary: mean m, power P(k) of each real channel. With a single coil and noise-free data
the posterior is y in the measured k-space entries and N(m(k), P(k)) in the others, independent of each other. The
network is the exact denoiser, so that what is left is the scheduler's own error.

Tolerances: the mean of 32 samples deviates from m by no more than 1.5 times the variance that chance gives; the
variance is P within 10 % at 100 steps for deterministic schedulers and within 15 % at 200 steps for those that add
fresh noise, whose errors are of first order (DDPM has 0.84 P at 100 steps, 0.94 P at 300). Schedulers for distilled
models jump to the clean image and back; their samples of a plain prior vary too little at any number of steps, which
the table of the guide says. For them the mean alone is held, and that the variance is below P.
"""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from sgr_diffusers import SGRMRIPipeline, create_scheduler
from sgr_diffusers.mri.operators import channels_to_complex, complex_to_channels, fft2c, ifft2c
from sgr_diffusers.schedulers.sampler import NoiseLevel
from sgr_diffusers.schedulers.support import NOISE_LEVEL
from tests.helpers.pipeline_parts import SIZE, build_unet, seeded

N_SAMPLES = 32
DISTILLED = {"LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"}
STOCHASTIC = {
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "SASolverScheduler",
}


def power():
    """Power per real channel of each k-space entry, symmetric, so that the channels stay independent."""
    ky, kx = (np.fft.fftshift(np.fft.fftfreq(n)) for n in SIZE)
    return torch.from_numpy(0.1 + 0.9 * np.exp(-20 * (ky[:, None] ** 2 + kx**2))).float()


def mean_image():
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE[0]), torch.linspace(-1, 1, SIZE[1]), indexing="ij")
    return 0.5 * torch.complex(torch.exp(-4 * (y**2 + x**2)), 0.5 * y)


class GaussianPrior(UNet2DModel):
    """The exact denoiser of that prior, in each prediction type."""

    def forward(self, sample, timestep, return_dict=True):
        t = float(torch.as_tensor(timestep))
        if self.prediction_type == "flow_prediction":
            alpha, sigma = 1 - t / 1000, t / 1000
        else:
            abar = self.abar.double().numpy()
            log_snr = np.interp(t, np.arange(len(abar)), np.log(abar / (1 - abar)))
            alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * log_snr)) for sign in (-1, 1))
        filter_ = alpha * power() / (alpha**2 * power() + sigma**2)
        residual = channels_to_complex(sample) - alpha * mean_image()
        x0 = complex_to_channels(mean_image() + ifft2c(filter_ * fft2c(residual)))
        eps = (sample - alpha * x0) / max(sigma, 1e-6)
        return (NoiseLevel(alpha, sigma, self.prediction_type).to_model_output(x0, eps),)


def pipeline(name, prediction_type):
    config = create_scheduler(prediction_type).config if prediction_type != "flow_prediction" else {}
    settings = {"use_flow_sigmas": True} if prediction_type == "flow_prediction" else {}
    scheduler_class = getattr(diffusers, name)
    if NOISE_LEVEL[name] == "flow":
        scheduler = scheduler_class()
    else:
        if name == "CogVideoXDDIMScheduler":
            settings["snr_shift_scale"] = 1.0  # or it has other noise levels than this prior
        scheduler = scheduler_class.from_config(config, prediction_type=prediction_type, **settings)
    prior = build_unet(GaussianPrior)
    prior.prediction_type, prior.abar = prediction_type, create_scheduler().alphas_cumprod
    pipe = SGRMRIPipeline(prior, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measurement():
    """One slice in the pipeline's own scale, and where it was measured."""
    generator = seeded(4)
    mask = torch.rand(SIZE, generator=generator) < 0.4
    noise = torch.randn(2, *SIZE, generator=generator)
    spectrum = fft2c(mean_image()) + power().sqrt() * fft2c(torch.complex(*noise))
    kspace = spectrum * mask
    return kspace / torch.quantile(ifft2c(kspace).abs(), 0.99), mask


CASES = [(name, "flow_prediction" if kind == "flow" else "v_prediction") for name, kind in NOISE_LEVEL.items()]
CASES += [("DDIMScheduler", "epsilon"), ("DDIMScheduler", "sample"), ("HeunDiscreteScheduler", "sample")]
CASES += [("DPMSolverMultistepScheduler", "flow_prediction"), ("DPMSolverSinglestepScheduler", "flow_prediction")]


@pytest.mark.parametrize(("name", "prediction_type"), CASES)
def test_posterior_of_a_gaussian_prior(name, prediction_type):
    kspace, mask = measurement()
    pipe = pipeline(name, prediction_type)
    n_samples = 8 if name == "DPMSolverSDEScheduler" else N_SAMPLES  # a Brownian tree for each image takes its time
    out = pipe(
        kspace,
        mask,
        target="none",
        num_samples=n_samples,
        num_inference_steps=50
        if name in DISTILLED
        else 200
        if name in STOCHASTIC - {"DPMSolverSDEScheduler"}
        else 100,
        eta=0.0,
        generator=seeded(1),
    )
    spectra = fft2c(out.images[0, 0])
    torch.testing.assert_close(spectra[:, mask], kspace[mask].expand(n_samples, -1), rtol=1e-4, atol=1e-4)

    error = (spectra.mean(0) - fft2c(mean_image()))[~mask].abs().square()
    chance = 2 * power()[~mask] / n_samples
    assert (error / chance).mean() < 1.5
    variance = spectra.var(0)[~mask] / (2 * power()[~mask])
    if name in DISTILLED:
        assert 0.2 < variance.mean() < 0.9
    else:
        assert abs(float(variance.mean()) - 1) < (0.15 if name in STOCHASTIC else 0.10), float(variance.mean())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_posterior_by_ddim_with_fresh_noise(eta):
    kspace, mask = measurement()
    pipe = pipeline("DDIMScheduler", "v_prediction")
    out = pipe(
        kspace, mask, target="none", num_samples=N_SAMPLES, num_inference_steps=200, eta=eta, generator=seeded(2)
    )
    variance = fft2c(out.images[0, 0]).var(0)[~mask] / (2 * power()[~mask])
    assert abs(float(variance.mean()) - 1) < (0.15 if eta else 0.10), float(variance.mean())


@pytest.mark.parametrize("noise", [1.0, 0.5])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_mean_of_two_opposite_samples_is_the_posterior_mean(name, noise):
    """Of a Gaussian prior exactly, where the mean of two independent samples has half of the prior's variance."""
    kspace, mask = measurement()
    arguments = {"target": "none", "num_inference_steps": 50, "generator": seeded(1)}
    pipe = pipeline(name, "v_prediction")
    pipe.register_to_config(noise_of_mean=noise, deviation_of_mean=noise)
    out = pipe(kspace, mask, num_samples=2, combine="mean", **arguments)
    expected = ifft2c(torch.where(mask, kspace, fft2c(mean_image())))
    error = (out.images[0, 0, 0] - expected).abs().square().mean()
    assert error < 1e-3 * power().mean()
    # the deviation in a pixel: the power of both channels in what was not measured
    variance = 2 * power()[~mask].sum() / mask.numel()
    assert out.standard_deviation.square().mean() == pytest.approx(float(variance), rel=0.25)


@pytest.mark.parametrize("method", ["replace", "least_squares"])
def test_deviation_of_a_mean_has_the_noise_of_the_measurement(method):
    kspace, mask = measurement()
    noise_std = 0.3
    noisy = kspace + mask * noise_std * torch.complex(*torch.randn(2, *SIZE, generator=seeded(5)))
    pipe = pipeline("DDIMScheduler", "v_prediction")
    arguments = {"target": "none", "num_samples": 2, "combine": "mean", "num_inference_steps": 10}
    arguments |= {"final_consistency": method}
    # by the method "cg", the level of the noise changes nothing else
    out, without = (pipe(noisy, mask, noise_std=s, generator=seeded(1), **arguments) for s in (noise_std, 1e-6))
    torch.testing.assert_close(out.images, without.images)
    of_noise = (out.standard_deviation.square() - without.standard_deviation.square()).mean()
    error = ifft2c(mask * fft2c(out.images[0, 0, 0]) - kspace).abs().square().mean()
    assert of_noise == pytest.approx(float(error), rel=0.15)


def test_saved_with_each_scheduler(tmp_path):
    for name, kind in NOISE_LEVEL.items():
        pipe = pipeline(name, "flow_prediction" if kind == "flow" else "v_prediction")
        plain = SGRMRIPipeline(build_unet(), pipe.scheduler)
        plain.set_progress_bar_config(disable=True)
        plain.save_pretrained(tmp_path / name)
        loaded = SGRMRIPipeline.from_pretrained(tmp_path / name)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded.scheduler).__name__ == name
        assert loaded.config.trained_with == plain.config.trained_with
        kspace, mask = measurement()
        outs = [p(kspace, mask, target="none", num_inference_steps=4, generator=seeded()) for p in (plain, loaded)]
        torch.testing.assert_close(outs[0].images, outs[1].images, rtol=1e-4, atol=1e-5)
