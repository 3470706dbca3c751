"""The pipeline against a slow transcription of the method: one image at a time, float64, loops, nothing shared."""

import copy
import math

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from sgr_diffusers import SenseOperator, SGRMRIPipeline, create_scheduler
from sgr_diffusers.pipeline.preparation import image_generators

SIZE = (16, 12)
STEPS = 4
N_CLASSES = 2
CG_ITERATIONS = 3


# --- the reference -------------------------------------------------------------------------------------------------


def forward_operator(image, maps, mask):
    """A x = M F (S x), coil by coil."""
    coils = []
    for coil_map in maps:
        shifted = torch.fft.ifftshift(coil_map * image)
        coils.append(mask * torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho")))
    return torch.stack(coils)


def adjoint_operator(kspace, maps, mask):
    """A^H y = sum over coils of conj(S_c) F^H (M y_c)."""
    image = torch.zeros_like(maps[0])
    for coil_map, coil_kspace in zip(maps, kspace, strict=True):
        coil_image = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(mask * coil_kspace), norm="ortho"))
        image = image + coil_map.conj() * coil_image
    return image


def conjugate_gradients(start, kspace, maps, mask, n_iterations):
    def normal(image):
        return adjoint_operator(forward_operator(image, maps, mask), maps, mask)

    def inner(a, b):
        return (a.conj() * b).sum().real

    x = start
    r = adjoint_operator(kspace, maps, mask) - normal(x)
    p = r
    for _ in range(n_iterations):
        a_p = normal(p)
        length = inner(r, r) / inner(p, a_p)
        x, r_next = x + length * p, r - length * a_p
        p = r_next + inner(r_next, r_next) / inner(r, r) * p
        r = r_next
    return x


def reference_step(x_t, t, t_next, z, abar_of, prediction_type, unet, segmenter, data, c, is_upper, b, eta):
    """x_t -> x_{t-1} of one image, x as (2, y, x); also whether gamma limited the push."""
    abar, abar_next = abar_of(t), abar_of(t_next)
    x = x_t.clone().requires_grad_()
    output = unet(x[None], t).sample[0, :2]
    if prediction_type == "epsilon":
        eps = output
        x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
    elif prediction_type == "v_prediction":
        x0 = math.sqrt(abar) * x - math.sqrt(1 - abar) * output
        eps = math.sqrt(abar) * output + math.sqrt(1 - abar) * x
    else:
        x0 = output
        eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
    image = conjugate_gradients(torch.complex(x0[0], x0[1]), *data, CG_ITERATIONS)
    push, is_limited = torch.zeros_like(x_t), False
    if b > 0:
        p = segmenter(image.abs()[None, None])[0].softmax(dim=0)
        is_class = p.argmax(dim=0) == c
        loss = -torch.log(1 - p[c][~is_class]).sum() if is_upper else -torch.log(p[c][is_class]).sum()
        if loss != 0:
            g = torch.autograd.grad(loss, x)[0]
            is_limited = bool(g.norm() > b * eps.norm())
            gamma = b * eps.norm() / g.norm() if is_limited else 1.0
            push = gamma * g
    sigma = eta * math.sqrt((1 - abar_next) / (1 - abar)) * math.sqrt(1 - abar / abar_next)
    x0_dc = torch.stack([image.real, image.imag])
    result = math.sqrt(abar_next) * x0_dc + math.sqrt(1 - abar_next - sigma**2) * (eps + push) + sigma * z
    return result.detach(), is_limited


def reference_last_image(x_t, t, abar_of, prediction_type, unet, data):
    """The last step: the prior's image, its measured coil k-space entries replaced, coils combined."""
    kspace, maps, mask = data
    abar = abar_of(t)
    output = unet(x_t[None], t).sample[0, :2]
    if prediction_type == "epsilon":
        x0 = (x_t - math.sqrt(1 - abar) * output) / math.sqrt(abar)
    elif prediction_type == "v_prediction":
        x0 = math.sqrt(abar) * x_t - math.sqrt(1 - abar) * output
    else:
        x0 = output
    everywhere = torch.ones_like(mask)
    full = forward_operator(torch.complex(x0[0], x0[1]), maps, everywhere)
    image = adjoint_operator(torch.where(mask > 0, kspace, full), maps, everywhere)
    return image / maps.abs().square().sum(dim=0)


# --- the components ------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Logits from two convolutions, with a non-linearity between them."""

    class_names = ("first", "second")

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, N_CLASSES + 1, 3, padding=1)

    def forward(self, magnitude):
        return 4 * self.second(torch.tanh(2 * self.first(magnitude)))


def build(prediction_type, out_channels=2):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        unet = UNet2DModel(
            sample_size=SIZE,
            in_channels=2,
            out_channels=out_channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
        )
        segmenter = Segmenter()
    pipe = SGRMRIPipeline(unet.eval(), create_scheduler(prediction_type), segmenter.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_problem(n_slices=2, n_coils=3):
    """Data in the pipeline's own scale: the 0.99 quantile of abs(A^H y) is 1 for every slice."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.complex64, generator=generator)

    maps = draw(n_slices, n_coils, *SIZE)
    maps = 1.2 * maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    mask = torch.rand(n_slices, *SIZE, generator=generator) < 0.4
    operator = SenseOperator(maps, mask)
    kspace = operator.forward(draw(n_slices, *SIZE))
    scale = torch.quantile(operator.adjoint(kspace).abs().flatten(1), 0.99, dim=1)
    return kspace / scale[:, None, None, None], mask, maps


CASES = [
    ("epsilon", 2, 0.0, 0.05),
    ("epsilon", 4, 1.0, 0.05),
    ("v_prediction", 2, 1.0, 0.05),
    ("v_prediction", 2, 0.0, 1e6),
    ("sample", 2, 1.0, 0.05),
    ("sample", 2, 0.5, 0.0),
]


@pytest.mark.parametrize(("prediction_type", "out_channels", "eta", "strength"), CASES)
def test_every_step_and_the_result_agree(prediction_type, out_channels, eta, strength):
    pipe = build(prediction_type, out_channels)
    kspace, mask, maps = draw_problem()
    n_slices, n_branches = len(kspace), 2 * N_CLASSES
    trace = []
    out = pipe(
        kspace,
        mask,
        coil_maps=maps,
        num_inference_steps=STEPS,
        eta=eta,
        guidance_strength=strength,
        cg_iterations=CG_ITERATIONS,
        generator=torch.Generator().manual_seed(11),
        callback_on_step_end=lambda pipe, i, t, tensors: trace.append(tensors["latents"].double()),
    )
    assert (out.classes, out.targets) == (("first", "second"), ("lower", "upper"))

    # The noise as documented: one stream a slice, seeded by a draw, shared by its branches: x_T, then each step's.
    streams = image_generators(torch.Generator().manual_seed(11), n_slices, 1, 1, torch.device("cpu"))
    noise = [[torch.randn(1, 2, *SIZE, generator=stream)[0].double() for _ in range(STEPS)] for stream in streams]

    unet, segmenter = copy.deepcopy(pipe.unet).double(), copy.deepcopy(pipe.segmentation_model).double()
    abars = pipe.scheduler.alphas_cumprod.double()
    times = [750, 500, 250, 0]
    assert pipe.scheduler.timesteps.tolist() == times

    def abar_of(t):
        return float(abars[t]) if t >= 0 else 1.0

    n_limited = 0
    for s in range(n_slices):
        data = (kspace[s].to(torch.complex128), maps[s].to(torch.complex128), mask[s].double())
        for k, (c, is_upper) in enumerate((c, up) for c in (1, 2) for up in (False, True)):
            flat = s * n_branches + k
            for i, t in enumerate(times[:-1]):
                z = noise[s][i + 1]
                before = trace[i - 1][flat] if i else noise[s][0]
                networks = (prediction_type, unet, segmenter)
                expected, is_limited = reference_step(
                    before, t, times[i + 1], z, abar_of, *networks, data, c, is_upper, strength, eta
                )
                n_limited += is_limited
                error = (trace[i][flat] - expected).norm() / expected.norm()
                assert error < 1e-5, f"slice {s}, class {c}, upper {is_upper}, step {i}: {error:.1e}"
            image = out.images[s, c - 1, int(is_upper)].to(torch.complex128)
            expected = reference_last_image(trace[-2][flat], times[-1], abar_of, prediction_type, unet, data)
            error = (image - expected).norm() / expected.norm()
            assert error < 1e-5, f"slice {s}, class {c}, upper {is_upper}, end: {error:.1e}"
            labels = segmenter(expected.abs()[None, None])[0].argmax(dim=0)
            assert (labels != out.segmentations[s, c - 1, int(is_upper)]).float().mean() < 0.02
            residual = forward_operator(expected, data[1], data[2]) - data[0]
            assert out.data_residual[s, c - 1, int(is_upper)].item() == pytest.approx(
                (residual.norm() / data[0].norm()).item(), rel=1e-4
            )
    n_steps = n_slices * n_branches * (STEPS - 1)
    if strength == 0.05:
        assert n_limited > n_steps / 4  # gamma < 1 is tested here ...
    else:
        assert n_limited == 0  # ... and gamma = 1, or no push, here
