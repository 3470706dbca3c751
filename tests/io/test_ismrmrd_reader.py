import nibabel
import numpy as np
import pytest
import torch

from sgr_diffusers.io.ismrmrd_reader import noise_whitening_matrix, read_ismrmrd
from sgr_diffusers.io.nifti import write_nifti
from sgr_diffusers.io.raw_file import read_raw
from tests.helpers.raw_files import acquisition, fft, header_xml, random_complex, write_ismrmrd

N_SLICES, N_COILS, N_Y, N_X = 3, 2, 8, 6  # N_X after the readout oversampling is removed


def images_2d(seed=0):
    """(slice, coil, y, x oversampled): nothing outside the middle half of the readout."""
    images = np.zeros((N_SLICES, N_COILS, N_Y, 2 * N_X), np.complex64)
    images[..., N_X - N_X // 2 : N_X + N_X // 2] = random_complex(N_SLICES, N_COILS, N_Y, N_X, seed=seed)
    return images


def lines_2d(kspace, steps=range(N_Y), samples=slice(None), **fields):
    for number, one in enumerate(kspace):
        for step in steps:
            position = fields.get("positions", [(10, 20, 30 + 4 * n) for n in range(len(kspace))])[number]
            rest = {key: value for key, value in fields.items() if key != "positions"}
            yield acquisition(one[:, step, samples], step, slice=number, position=position, **rest)


XML_2D = header_xml((2 * N_X, N_Y, 1), (N_X, N_Y, 1), fov=(2 * N_X * 1.5, N_Y * 2.0, 3.0))


def cropped(images):
    return images[..., N_X - N_X // 2 : N_X + N_X // 2]


def test_two_dimensions_without_oversampling(tmp_path):
    images = images_2d()
    path = write_ismrmrd(tmp_path / "a.h5", XML_2D, lines_2d(fft(images, (-2, -1))))
    raw = read_raw(path)
    np.testing.assert_allclose(raw.kspace, fft(cropped(images), (-2, -1)), atol=1e-5)
    assert raw.mask.all() and raw.mask.shape == (N_Y, N_X)
    assert (raw.slice_indices, raw.n_slices, raw.scan_id) == ((0, 1, 2), 3, "a")
    assert raw.voxel_size_mm == pytest.approx((4.0, 2.0, 1.5))  # 4 mm from slice to slice, 3 mm thick
    assert raw.orientation == ("IS", "AP", "RL")
    full = read_ismrmrd(path, [2], remove_oversampling=False)
    np.testing.assert_allclose(full.kspace, fft(images, (-2, -1))[2:], atol=1e-5)


def test_positions_become_the_mask(tmp_path):
    kspace = fft(images_2d(), (-2, -1))
    path = write_ismrmrd(tmp_path / "a.h5", XML_2D, lines_2d(kspace, steps=(0, 3, 4, 5)))
    raw = read_ismrmrd(path)
    assert torch.where(raw.mask.all(dim=1))[0].tolist() == [0, 3, 4, 5]
    assert not raw.mask[[1, 2, 6, 7]].any() and not raw.kspace[..., [1, 2, 6, 7], :].any()


def test_partial_fourier_by_the_centre_of_the_header(tmp_path):
    kspace = fft(images_2d(), (-2, -1))
    # its step 2 is the centre, row 4
    xml = header_xml((2 * N_X, N_Y, 1), (N_X, N_Y, 1), center_1=2, maximum_1=5)
    lines = [acquisition(one[:, row], row - 2, slice=n) for n, one in enumerate(kspace) for row in range(2, N_Y)]
    raw = read_ismrmrd(write_ismrmrd(tmp_path / "a.h5", xml, lines))
    assert torch.where(raw.mask.any(dim=1))[0].tolist() == [2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(raw.kspace[..., 2:, :], fft(cropped(images_2d()), (-2, -1))[..., 2:, :], atol=1e-5)


def test_asymmetric_echo(tmp_path):
    kspace = fft(images_2d(), (-2, -1))
    lines = list(lines_2d(kspace, samples=slice(2, None), center=N_X - 2))
    path = write_ismrmrd(tmp_path / "a.h5", XML_2D, lines)
    full = read_ismrmrd(path, remove_oversampling=False)
    assert torch.where(full.mask.all(dim=0))[0].tolist() == list(range(2, 2 * N_X))
    np.testing.assert_allclose(full.kspace[..., 2:], kspace[..., 2:], atol=1e-6)
    raw = read_ismrmrd(path)
    assert torch.where(raw.mask.all(dim=0))[0].tolist() == [1, 2, 3, 4, 5]
    expected = fft(cropped(images_2d()), (-2, -1))
    np.testing.assert_allclose(raw.kspace[..., 1:], expected[..., 1:], atol=0.05 * np.abs(expected).max())
    discarded = list(lines_2d(kspace, discard_pre=2))
    again = read_ismrmrd(write_ismrmrd(tmp_path / "b.h5", XML_2D, discarded))
    assert torch.equal(again.mask, raw.mask)
    torch.testing.assert_close(again.kspace, raw.kspace)


def test_reversed_readouts_averages_and_repetitions(tmp_path):
    kspace = fft(images_2d(), (-2, -1))
    lines = []
    for n, one in enumerate(kspace):
        for row in range(N_Y):
            flipped = one[:, row, ::-1]
            center = 2 * N_X - 1 - N_X
            lines.append(acquisition(1.5 * one[:, row], row, slice=n))
            lines.append(acquisition(0.5 * flipped, row, slice=n, center=center, average=1, flags=["ACQ_IS_REVERSE"]))
            lines.append(acquisition(9 * one[:, row], row, slice=n, repetition=1))
            lines.append(acquisition(5 * one[:, row], row, slice=n, contrast=1))
    path = write_ismrmrd(tmp_path / "a.h5", XML_2D, lines)
    plain = fft(cropped(images_2d()), (-2, -1))
    np.testing.assert_allclose(read_ismrmrd(path).kspace, plain, atol=1e-5)
    np.testing.assert_allclose(read_ismrmrd(path, repetition=1).kspace, 9 * plain, atol=1e-4)
    np.testing.assert_allclose(read_raw(path, echo=2).kspace, 5 * plain, atol=1e-4)
    with pytest.raises(ValueError, match=r"`echo` 3.*echoes \[1, 2\] and repetitions \[0, 1\]"):
        read_ismrmrd(path, echo=3)


def test_noise_is_whitened(tmp_path):
    rng = np.random.default_rng(3)
    mixing = np.array([[2.0, 0.0], [1.0 - 0.5j, 0.3]])
    noise = mixing @ (rng.standard_normal((N_COILS, 20000)) + 1j * rng.standard_normal((N_COILS, 20000)))
    scan = noise[:, :4000]
    whitened = noise_whitening_matrix(scan) @ noise[:, 4000:]
    covariance = whitened @ whitened.conj().T / whitened.shape[1]
    np.testing.assert_allclose(covariance, 2 * np.eye(2), atol=0.1)  # 1 in the real and 1 in the imaginary part

    kspace = fft(images_2d(), (-2, -1))
    noise_line = acquisition(scan, 0, flags=["ACQ_IS_NOISE_MEASUREMENT"])
    path = write_ismrmrd(tmp_path / "a.h5", XML_2D, [noise_line, *lines_2d(kspace)])
    plain, white = read_ismrmrd(path, prewhiten=False), read_ismrmrd(path)
    assert (plain.noise_std, white.noise_std) == (None, 1.0)
    matrix = torch.from_numpy(noise_whitening_matrix(scan))
    torch.testing.assert_close(white.kspace, torch.einsum("vc,scyx->svyx", matrix, plain.kspace), atol=1e-4, rtol=1e-4)
    noise_file = write_ismrmrd(tmp_path / "noise.h5", XML_2D, [noise_line])
    alone = write_ismrmrd(tmp_path / "b.h5", XML_2D, lines_2d(kspace))
    torch.testing.assert_close(read_ismrmrd(alone, noise=noise_file).kspace, white.kspace)
    slow = acquisition(scan, 0, flags=["ACQ_IS_NOISE_MEASUREMENT"], sample_time_us=20.0)
    slow_file = write_ismrmrd(tmp_path / "slow.h5", XML_2D, [slow])
    torch.testing.assert_close(read_ismrmrd(alone, noise=slow_file).kspace, white.kspace / 2)
    with pytest.raises(ValueError, match="holds no noise measurement"):
        read_ismrmrd(alone, noise=alone)
    silent = acquisition(0 * scan[:, :50], 0, flags=["ACQ_IS_NOISE_MEASUREMENT"])
    with pytest.raises(ValueError, match="`prewhiten=False`"):
        read_ismrmrd(write_ismrmrd(tmp_path / "c.h5", XML_2D, [silent, *lines_2d(kspace)]))


@pytest.mark.parametrize(("mode", "kept"), [("embedded", [0, 2, 3, 4, 6]), ("separate", [0, 2, 4, 6])])
def test_calibration_lines(tmp_path, mode, kept):
    kspace = fft(images_2d(), (-2, -1))
    xml = header_xml((2 * N_X, N_Y, 1), (N_X, N_Y, 1), mode=mode)
    lines = [*lines_2d(kspace, steps=(0, 2, 6))]
    lines += lines_2d(kspace, steps=(4,), flags=["ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING"])
    lines += lines_2d(kspace, steps=(3,), flags=["ACQ_IS_PARALLEL_CALIBRATION"])
    lines += lines_2d(9 * kspace, steps=(5,), flags=["ACQ_IS_NAVIGATION_DATA"])
    raw = read_ismrmrd(write_ismrmrd(tmp_path / "a.h5", xml, lines))
    assert torch.where(raw.mask.any(dim=1))[0].tolist() == kept


def test_lines_of_another_encoding_space_are_left_out(tmp_path):
    kspace = fft(images_2d(), (-2, -1))
    lines = [*lines_2d(kspace), *lines_2d(9 * kspace[..., :4], steps=(1,), encoding_space_ref=1)]
    encoding = XML_2D[XML_2D.index("<encoding>") : XML_2D.index("</ismrmrdHeader>")]
    raw = read_ismrmrd(write_ismrmrd(tmp_path / "a.h5", XML_2D.replace(encoding, 2 * encoding), lines))
    np.testing.assert_allclose(raw.kspace, fft(cropped(images_2d()), (-2, -1)), atol=1e-5)


def test_three_dimensions(tmp_path):
    n_x, n_y, n_z = 6, 8, 4
    images = np.zeros((N_COILS, 2 * n_x, n_y, n_z), np.complex64)
    images[:, n_x - n_x // 2 : n_x + n_x // 2] = random_complex(N_COILS, n_x, n_y, n_z)
    kspace = fft(images, (1, 2, 3))
    sampled = np.random.default_rng(1).random((n_y, n_z)) < 0.6
    lines = [acquisition(kspace[:, :, y, z], y, z, position=(5, -7, 11)) for y, z in np.argwhere(sampled)]
    path = write_ismrmrd(tmp_path / "a.h5", header_xml((2 * n_x, n_y, n_z), (n_x, n_y, n_z)), lines)
    raw = read_raw(path)
    assert torch.equal(raw.mask, torch.from_numpy(sampled))
    middle = images[:, n_x - n_x // 2 : n_x + n_x // 2]
    expected = np.moveaxis(np.where(sampled, fft(middle, (2, 3)), 0), 1, 0)
    np.testing.assert_allclose(raw.kspace, expected, atol=1e-5)
    assert raw.voxel_size_mm == pytest.approx((1.5, 2.0, 3.0))
    assert raw.orientation == ("RL", "AP", "IS")
    # the middle of the field of view lies at the position given, left 5, anterior 7, superior 11
    np.testing.assert_allclose(raw.affine @ [n_x // 2, n_y // 2, n_z // 2, 1], [-5, 7, 11, 1])
    two = read_ismrmrd(path, slices=range(1, 6, 2))
    torch.testing.assert_close(two.kspace, raw.kspace[1::2])
    np.testing.assert_allclose(two.affine @ [1, 0, 0, 1], raw.affine @ [3, 0, 0, 1])


def test_oblique_slices_lie_in_nifti_where_they_lay_in_the_patient(tmp_path):
    c, s = np.cos(0.3), np.sin(0.3)
    directions = {"read_dir": (0, c, s), "phase_dir": (1, 0, 0), "slice_dir": (0, -s, c)}
    positions = [np.array([10, 20, 30]) + 4 * n * np.array([0, -s, c]) for n in range(N_SLICES)]
    kspace = fft(images_2d(), (-2, -1))
    path = write_ismrmrd(tmp_path / "a.h5", XML_2D, lines_2d(kspace, positions=positions, **directions))
    raw = read_ismrmrd(path)
    write_nifti(tmp_path / "a.nii.gz", raw.kspace[:, 0].abs(), raw.voxel_size_mm, affine=raw.affine)
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("S", "L", "P")
    np.testing.assert_allclose(image.header.get_zooms(), (4.0, 2.0, 1.5), rtol=1e-5)
    for n in range(N_SLICES):  # the centre of each slice, in right, anterior, superior
        centre = np.array([-1, -1, 1]) * positions[n]
        np.testing.assert_allclose((image.affine @ [n, N_Y // 2, N_X // 2, 1])[:3], centre, atol=1e-4)
    # a step along the readout of 1.5 mm goes to posterior and superior
    np.testing.assert_allclose(image.affine[:3, 2], [0, -1.5 * c, 1.5 * s], atol=1e-5)
    with pytest.raises(ValueError, match=r"`affine`.*`voxel_size_mm`"):
        write_nifti(tmp_path / "b.nii", raw.kspace[:, 0].abs(), (1.0, 1.0, 1.0), affine=raw.affine)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (header_xml((12, 8, 1), (6, 8, 1), trajectory="radial"), "radial trajectory, but must be Cartesian"),
        (
            header_xml((12, 8, 1), (6, 8, 1), center_1=0),
            "positions outside its matrix: kspace_encode_step_1 runs from 0 to 7, .*centre 0, matrix 8",
        ),
        (header_xml((4, 8, 1), (4, 8, 1), fov=(0, 1, 1)), "not positive"),
        ("<ismrmrdHeader>", "not XML"),
        ("<ismrmrdHeader/>", "without matrix sizes"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path, xml, message):
    path = write_ismrmrd(tmp_path / "a.h5", xml, lines_2d(fft(images_2d(), (-2, -1))))
    with pytest.raises(ValueError, match=rf"a\.h5.*{message}"):
        read_ismrmrd(path)


def test_acquisitions_that_cannot_be_used(tmp_path):
    kspace = fft(images_2d(), (-2, -1))
    kspace[1, 0, 3, 4] = np.nan
    path = write_ismrmrd(tmp_path / "a.h5", XML_2D, lines_2d(kspace))
    with pytest.raises(ValueError, match=r"a\.h5 has values that are not finite in the slices \[1\]"):
        read_ismrmrd(path)
    odd = [*lines_2d(kspace[:1]), acquisition(kspace[0, :, 0, 2:], 0, average=1, center=4, position=(10, 20, 30))]
    with pytest.raises(ValueError, match=r"acquisition 8 of .* other readout samples than the first: 2 to 11, not 0"):
        read_ismrmrd(write_ismrmrd(tmp_path / "b.h5", XML_2D, odd))
    for counter in ("phase", "set"):
        several = [*lines_2d(kspace[:1]), *lines_2d(kspace[:1], **{counter: 2})]
        with pytest.raises(ValueError, match=rf"several images of each slice, with the counter `{counter}` \[0, 2\]"):
            read_ismrmrd(write_ismrmrd(tmp_path / f"{counter}.h5", XML_2D, several))
    (tmp_path / "d.h5").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated"):
        read_ismrmrd(tmp_path / "d.h5")
    with pytest.raises(ValueError, match=r"`group` 'other': .* has no such group\. It holds a scan in \['dataset'\]"):
        read_ismrmrd(path, group="other")
