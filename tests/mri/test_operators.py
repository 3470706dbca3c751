import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgr_diffusers.mri import operators
from sgr_diffusers.mri.operators import SenseOperator, channels_to_complex, complex_to_channels, fft2c, ifft2c

few = settings(derandomize=True, max_examples=15, deadline=None)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_complex(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_operator(size, n_coils=3, batch=(), mask_batch=(), seed=0, dtype=torch.complex128):
    generator = torch.Generator().manual_seed(seed + 1)
    mask = torch.rand((*mask_batch, *size), generator=generator) < 0.5
    return SenseOperator(random_complex(*batch, n_coils, *size, seed=seed, dtype=dtype), mask)


def inner(a, b):
    return torch.sum(a.conj() * b)


@few
@given(sizes)
def test_fft2c_is_numpys_centred_orthonormal_fft(size):
    image = random_complex(2, *size)
    axes = (-2, -1)
    expected = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(image.numpy(), axes=axes), axes=axes, norm="ortho"), axes=axes
    )
    np.testing.assert_allclose(fft2c(image).numpy(), expected, atol=1e-12)


@few
@given(sizes)
def test_fft2c_is_unitary_and_constant_goes_to_the_centre(size):
    image = random_complex(*size)
    torch.testing.assert_close(ifft2c(fft2c(image)), image)
    torch.testing.assert_close(torch.linalg.norm(fft2c(image)), torch.linalg.norm(image))
    spectrum = fft2c(torch.ones(size, dtype=torch.complex128))
    assert spectrum.abs().argmax() == (size[0] // 2) * size[1] + size[1] // 2


def test_channels_hold_real_and_imaginary_part_and_go_back():
    image = random_complex(2, 3, 4, 5, dtype=torch.complex64)
    channels = complex_to_channels(image)
    assert channels.shape == (2, 3, 2, 4, 5)
    assert torch.equal(channels[:, :, 0], image.real)
    assert torch.equal(channels[:, :, 1], image.imag)
    assert torch.equal(channels_to_complex(channels), image)
    assert channels_to_complex(channels.half()).dtype == torch.complex64


@few
@given(sizes, st.integers(1, 4), st.integers(0, 100))
def test_adjointness(size, n_coils, seed):
    operator = random_operator(size, n_coils, seed=seed)
    image, kspace = random_complex(*size, seed=seed + 2), random_complex(n_coils, *size, seed=seed + 3)
    torch.testing.assert_close(inner(operator.forward(image), kspace), inner(image, operator.adjoint(kspace)))


@few
@given(sizes, st.sampled_from([((), ()), ((3,), ()), ((), (3,)), ((3,), (3,)), ((1,), (3,))]))
def test_normal_is_adjoint_of_forward_for_any_batch(size, batches):
    operator = random_operator(size, 2, *batches)
    image = random_complex(3, *size, seed=5)
    torch.testing.assert_close(operator.normal(image), operator.adjoint(operator.forward(image)))


@pytest.mark.parametrize("block_bytes", [1, 100, 5000])
def test_normal_is_the_same_however_it_is_cut_into_blocks(monkeypatch, block_bytes):
    operator = random_operator((6, 5), n_coils=5, batch=(3, 1))
    image = random_complex(3, 4, 6, 5)
    expected = operator.adjoint(operator.forward(image))
    monkeypatch.setattr(operators, "_BLOCK_BYTES", block_bytes)
    torch.testing.assert_close(operator.normal(image), expected)


def test_batch_axes_broadcast_and_match_single_samples():
    operator = random_operator((6, 5), batch=(2, 1), mask_batch=(2, 1))
    image = random_complex(2, 4, 6, 5)
    kspace = operator.forward(image)
    assert kspace.shape == (2, 4, 3, 6, 5)
    for i in range(2):
        single = operator[i][0]
        for k in range(4):
            torch.testing.assert_close(kspace[i, k], single.forward(image[i, k]))
            torch.testing.assert_close(operator.normal(image)[i, k], single.normal(image[i, k]))


def test_batch_of_n_is_bit_for_bit_n_batches_of_one():
    operator = random_operator((24, 20), n_coils=8, dtype=torch.complex64)
    image = random_complex(7, 24, 20, dtype=torch.complex64)
    together = operator.normal(image)
    assert torch.equal(together, torch.stack([operator.normal(one) for one in image]))


def test_kspace_is_exactly_zero_where_not_measured_and_such_entries_are_ignored():
    operator = random_operator((6, 5))
    image, kspace = random_complex(6, 5), random_complex(3, 6, 5)
    assert not operator.forward(image)[:, ~operator.mask].any()
    torch.testing.assert_close(operator.adjoint(kspace), operator.adjoint(kspace * operator.mask))


@pytest.mark.parametrize("size", [(6, 5), (5, 8)])
def test_gradient_of_the_data_term_is_the_adjoint_of_the_residual(size):
    operator = random_operator(size)
    image, kspace = random_complex(*size, seed=3).requires_grad_(), random_complex(3, *size, seed=4)
    kspace = kspace * operator.mask
    (0.5 * (operator.forward(image) - kspace).abs().square().sum()).backward()
    torch.testing.assert_close(image.grad, operator.adjoint(operator.forward(image.detach()) - kspace))


def test_gradient_of_normal():
    operator = random_operator((4, 3), batch=(2, 1))
    image = random_complex(3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(operator.normal, image)
    assert torch.autograd.gradgradcheck(operator.normal, image)


def test_sum_of_squares():
    maps = torch.full((4, 3, 3), 0.5 + 0.5j)
    torch.testing.assert_close(SenseOperator(maps, torch.ones(3, 3)).sum_of_squares, torch.full((3, 3), 2.0))


@pytest.mark.parametrize("selection", [[2, 0], slice(1, 3), torch.tensor([1]), 1])
@pytest.mark.parametrize("batches", [((3,), (3,)), ((3,), ()), ((), (3,)), ((1,), (3,))])
def test_selection_is_the_operator_of_the_selected_samples(selection, batches):
    operator = random_operator((6, 5), 2, *batches)
    image = random_complex(3, 6, 5)
    picked = operator[selection]
    torch.testing.assert_close(picked.normal(image[selection]), operator.normal(image)[selection])
    torch.testing.assert_close(picked.forward(image[selection]), operator.forward(image)[selection])
    assert picked.shape == (6, 5)


def test_selection_from_an_operator_without_batch_axis_is_refused():
    with pytest.raises(IndexError, match="no batch axis"):
        random_operator((6, 5))[0]


def test_to_keeps_the_operator():
    operator = random_operator((6, 5))
    image = random_complex(6, 5)
    moved = operator.to("cpu")
    torch.testing.assert_close(moved.normal(image), operator.normal(image))
    assert (moved.device, moved.n_coils, moved.dtype) == (torch.device("cpu"), 3, torch.complex128)


def test_other_devices_take_the_same_path_of_shapes():
    operator = random_operator((6, 5), batch=(2, 1)).to("meta")
    image = torch.empty(2, 4, 6, 5, dtype=torch.complex128, device="meta")
    assert operator.normal(image).shape == (2, 4, 6, 5)
    assert operator.normal(image).device.type == "meta"


@pytest.mark.parametrize(
    ("maps", "mask", "error", "message"),
    [
        (torch.ones(2, 4, 4), torch.ones(4, 4), TypeError, "complex64 or complex128"),
        (torch.ones(2, 4, 4) + 0j, torch.ones(3, 4), ValueError, "same y and x"),
        (torch.ones(2, 4, 4) + 0j, torch.full((4, 4), 0.5), ValueError, "only 0 and 1"),
        (torch.ones(2, 1, 2, 4, 4) + 0j, torch.ones(2, 4, 4), ValueError, "no batch axes or as many"),
        (torch.ones(2, 2, 4, 4) + 0j, torch.ones(3, 4, 4), ValueError, "must broadcast"),
        ((torch.ones(2, 4, 4) + 0j).requires_grad_(), torch.ones(4, 4), ValueError, "detach"),
    ],
)
def test_bad_maps_and_masks_are_named(maps, mask, error, message):
    with pytest.raises(error, match=message):
        SenseOperator(maps, mask)


def test_bad_images_and_kspace_are_named():
    operator = random_operator((6, 5))
    with pytest.raises(TypeError, match=r"`image` must be torch.complex128"):
        operator.normal(random_complex(6, 5, dtype=torch.complex64))
    with pytest.raises(ValueError, match="`image` must be"):
        operator.forward(random_complex(5, 6))
    with pytest.raises(ValueError, match="`kspace` must be"):
        operator.adjoint(random_complex(2, 6, 5))
