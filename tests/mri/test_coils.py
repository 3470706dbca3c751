import pytest
import torch

from sgr_diffusers.mri.coils import estimate_coil_maps
from sgr_diffusers.mri.masks import poisson_disc_mask
from sgr_diffusers.mri.operators import fft2c


def simulate(size, n_coils=4, noise=1e-4, seed=0):
    """Smooth coils about an elliptic body with some texture: k-space, true maps of unit norm, body."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in size), indexing="ij")
    body = (y / 0.8) ** 2 + (x / 0.7) ** 2 < 1
    image = body * (1 + 0.3 * torch.cos(9 * x) * torch.sin(7 * y + 1) + 0.2 * torch.cos(15 * x + 12 * y))
    angles = 2 * torch.pi * torch.arange(n_coils) / n_coils
    maps = torch.stack(
        [
            torch.exp(-((y - 1.2 * torch.sin(a)) ** 2 + (x - 1.2 * torch.cos(a)) ** 2) / 2)
            * torch.exp(1j * (a + x * y))
            for a in angles
        ]
    )
    maps = maps / maps.abs().square().sum(dim=0).sqrt()
    kspace = fft2c(maps * image)
    kspace += noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return kspace.to(torch.complex64), maps.to(torch.complex64), body


@pytest.mark.parametrize("size", [(40, 36), (41, 37), (40, 33)])
def test_maps_of_smooth_coils_are_found_up_to_a_phase(size):
    kspace, true, body = simulate(size)
    mask = torch.from_numpy(poisson_disc_mask(size, 2, (16, 15)).mask)
    assert_maps_are_found(kspace, true, body, mask)


def assert_maps_are_found(kspace, true, body, mask):
    maps = estimate_coil_maps(kspace * mask, mask)
    assert maps.dtype == torch.complex64
    assert maps.shape == kspace.shape
    correlation = (maps.conj() * true).sum(dim=0).abs()  # 1: the same but for a phase
    assert correlation[body].min() > 0.995
    norm = maps.abs().square().sum(dim=0)
    assert (((norm - 1).abs() < 1e-5) | (norm == 0)).all()


def box(size, rows, columns):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        box((48, 40), slice(18, 30), slice(15, 27)),  # one sample off the centre
        box((48, 40), slice(0, 48), slice(15, 25)),  # lines
        box((48, 40), slice(20, 28), slice(16, 24)),
        box((48, 40), slice(22, 38), slice(18, 34)),
    ],
)
def test_region_may_be_small_longer_than_wide_or_off_the_centre(mask):
    assert_maps_are_found(*simulate((48, 40)), mask | box((48, 40), slice(0, 48, 4), slice(0, 40, 3)))


def test_a_small_region_is_completed_by_what_is_measured_about_it():
    kspace, true, body = simulate((48, 40), n_coils=3)
    mask = torch.from_numpy(poisson_disc_mask((48, 40), 5, (8, 8)).mask)

    def mismatch(**settings):
        maps = estimate_coil_maps(kspace * mask, mask, **settings)
        return float((1 - (maps.conj() * true).sum(dim=0).abs().square())[body].mean().sqrt())

    assert mismatch() < 0.3 * mismatch(calibration_width=8)


def test_maps_of_noisy_data_are_found_and_nothing_with_signal_is_erased():
    kspace, true, body = simulate((48, 40), noise=0.03)
    for region in (8, 10, 12, 16, 24):
        mask = torch.from_numpy(poisson_disc_mask((48, 40), 3, (region, region)).mask)
        maps = estimate_coil_maps(kspace * mask, mask)
        correlation = (maps.conj() * true).sum(dim=0).abs()
        assert (maps.abs().sum(dim=0) > 0)[body].all()
        assert correlation[body].mean() > 0.99, region


def test_the_background_is_set_to_zero_where_it_holds_no_signal():
    kspace, _, body = simulate((48, 40))
    norm = estimate_coil_maps(kspace, torch.ones(48, 40)).abs().square().sum(dim=0)
    assert (norm[body] > 0).all()
    assert (norm[0, 0], norm[-1, -1]) == (0, 0)
    everywhere = estimate_coil_maps(kspace, torch.ones(48, 40), crop=0.0)
    assert (everywhere.abs().sum(dim=0) > 0).all()


def test_agrees_with_sigpy_where_that_can_be_used():
    from sigpy.mri.app import EspiritCalib

    kspace, _, body = simulate((48, 40))
    theirs = torch.from_numpy(EspiritCalib(kspace.numpy(), calib_width=24, crop=0, show_pbar=False).run())
    maps = estimate_coil_maps(kspace, torch.ones(48, 40), kernel_width=6)
    assert (maps.conj() * theirs).sum(dim=0).abs()[body].min() > 0.999


def test_strongest_coil_is_real_and_a_dead_coil_stays_zero():
    kspace, _, body = simulate((40, 36))
    kspace = kspace * torch.tensor([0.0, 1, 3, 1]).reshape(4, 1, 1)
    maps = estimate_coil_maps(kspace, torch.ones(40, 36))
    assert maps[0].abs().max() < 1e-5
    inside = maps[2][body]
    assert (inside.real >= 0).all()
    assert inside.imag.abs().max() < 1e-5


def test_unit_of_the_kspace_does_not_matter():
    kspace, _, _ = simulate((40, 36))
    maps = estimate_coil_maps(kspace, torch.ones(40, 36))
    torch.testing.assert_close(estimate_coil_maps(1e6 * kspace, torch.ones(40, 36)), maps, rtol=1e-3, atol=1e-3)


def test_batch_is_its_samples_and_numpy_is_torch():
    samples = [simulate((36, 36), seed=seed)[0] for seed in range(2)]
    mask = torch.zeros(2, 36, 36, dtype=torch.bool)
    mask[0, 10:26, 10:26] = mask[1, 8:28, 8:28] = True
    together = estimate_coil_maps(torch.stack(samples), mask)
    for one, its_mask, kspace in zip(together, mask, samples, strict=True):
        torch.testing.assert_close(one, estimate_coil_maps(kspace.numpy(), its_mask.numpy()))


def test_one_coil_gets_ones():
    assert torch.equal(estimate_coil_maps(torch.randn(1, 6, 6) + 0j, torch.zeros(6, 6)), torch.ones(1, 6, 6) + 0j)


def bad(kspace=None, mask=None, **settings):
    good, _, _ = simulate((30, 30))
    mask = torch.ones(30, 30) if mask is None else mask
    return estimate_coil_maps(good if kspace is None else kspace(good), mask, **settings)


def narrow_mask():
    mask = torch.zeros(30, 30)
    mask[12:18, 5:25] = 1
    return mask


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kspace": lambda k: k[None, None]}, ValueError, "must be .coil, y, x"),
        ({"mask": torch.ones(30, 29)}, ValueError, "must be .coil, y, x"),
        ({"mask": torch.zeros(30, 30)}, ValueError, r"region of \(0, 0\)"),
        ({"mask": narrow_mask()}, ValueError, r"region of \(6, 20\).*at least 8 x 8"),
        ({"calibration_width": 5}, ValueError, "`calibration_width` must be a whole number of at least 8, got 5"),
        ({"kernel_width": 13}, ValueError, "`kernel_width` must be a whole number from 2 to 12, .*got 13"),
        ({"kspace": lambda k: 0 * k}, ValueError, "is zero in its calibration region"),
        ({"kspace": lambda k: k / 0}, ValueError, "not finite"),
        ({"crop": "x"}, ValueError, "`crop` must be from 0 .* got 'x'"),
        ({"kspace": lambda k: k.tolist()}, TypeError, "`kspace` must be a torch tensor or numpy array, got list"),
        ({"crop": 1.5}, ValueError, "`crop` must be from 0 .* got 1.5"),
        ({"crop": 0.9999999}, ValueError, "`crop` 0.9999999 would set .* Lower it, or leave it out"),
    ],
)
def test_errors_say_what_to_do(arguments, error, message, unchecked_types):
    with pytest.raises(error, match=message):
        bad(**arguments)
