"""ISMRMRD files whose header, labels and samples contradict each other: refused, warned of, or read rightly."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from sgr_diffusers.io.ismrmrd_reader import read_ismrmrd
from sgr_diffusers.io.raw_slices import SuspectDataWarning
from tests.helpers.raw_files import acquisition, body_image, fft, header_xml, write_ismrmrd

N_Y, N_X = 48, 40
IMAGE = body_image(N_Y, N_X)
KSPACE = fft(IMAGE, (-2, -1))


@dataclass
class Scan:
    """One slice of one coil, to be spoiled."""

    kspace: np.ndarray = field(default_factory=lambda: KSPACE)
    matrix: tuple[int, int, int] = (N_X, N_Y, 1)
    steps: Any = None  # label of each line
    header: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    more: tuple = ()

    def write(self, path):
        steps = range(len(self.kspace)) if self.steps is None else self.steps
        lines = [acquisition(line[None], step, **self.fields) for line, step in zip(self.kspace, steps, strict=True)]
        xml = header_xml(self.matrix, self.header.pop("recon", self.matrix), **self.header)
        return write_ismrmrd(path, xml, [*lines, *self.more])


def lines(kspace, steps, **fields):
    return tuple(acquisition(kspace[step][None], step, **fields) for step in steps)


def oversampled():
    wide = np.zeros((N_Y, 2 * N_X), np.complex64)
    wide[:, N_X // 2 : N_X // 2 + N_X] = IMAGE
    return fft(wide, (-2, -1))


CENTRE_LINES = range(N_Y // 2 - 8, N_Y // 2 + 8)
CALIBRATION = {"flags": ["ACQ_IS_PARALLEL_CALIBRATION"]}

REFUSED = {
    "readouts longer than the matrix": (Scan(oversampled()), "80 samples with center_sample 40.* matrix of 40"),
    "oversampling removed, header of before": (
        Scan(matrix=(2 * N_X, N_Y, 1), header={"recon": (N_X, N_Y, 1)}),
        "40 samples about their centre, but a matrix of 80",
    ),
    "centre of the readout beyond its end": (Scan(fields={"center": 40}), "40 samples with center_sample 40"),
    "centre of the readout at a quarter": (Scan(fields={"center": 10}), "center_sample 10, which do not fit"),
    "all samples discarded": (Scan(fields={"discard_pre": 20, "discard_post": 20}), "discard_pre 20 and .* 20"),
    "half an echo whose centre was never set": (
        Scan(KSPACE[:, 8:28], fields={"center": 0}),
        r"should be at .* \(24, 20\), but the energy of the data peaks at \(24, 32\)",
    ),
    "line labels lost": (Scan(steps=[0] * N_Y), "48 acquisitions with the same labels.*no averages"),
    "line labels lost in pairs": (Scan(steps=[j // 2 * 2 for j in range(N_Y)]), "2 acquisitions with the same labels"),
    "lines beyond the matrix": (Scan(steps=range(1, N_Y + 1)), "runs from 1 to 48, but the header has .* matrix 48"),
    "centre of the limits beyond them": (
        Scan(header={"center_1": 99}),
        "from 0 to 47, but the header has .*centre 99",
    ),
    "centre of the limits wrong": (
        Scan(KSPACE[16:], header={"maximum_1": 31}),
        r"centre .* \(phase encoding, readout\) = \(24, 20\), but the energy of the data peaks at \(8, 20\)",
    ),
    "k-space in the order of the FFT": (Scan(np.fft.ifftshift(KSPACE)), r"energy of the data peaks at \(0, 0\)"),
    "partitions without a matrix": (
        Scan(more=lines(KSPACE, range(N_Y), step_2=1)),
        r"kspace_encode_step_2 from 0 to 1, but the matrix \(40, 48, 1\) of encodedSpace has one partition",
    ),
    "partition labels lost": (Scan(matrix=(N_X, N_Y, 2), more=lines(1j * KSPACE, range(N_Y))), "the same labels"),
    "slice labels lost": (
        Scan(more=lines(KSPACE, range(N_Y), position=(0, 0, 40))),
        "acquisitions of slice 0 .* lie 40 mm apart, but a slice is 3 mm thick",
    ),
    "coils that come and go": (
        Scan(more=(acquisition(KSPACE[:2], 5, average=1),)),
        "has 2 coils, but the first has 1",
    ),
    "all lines of another encoding space": (
        Scan(fields={"encoding_space_ref": 1}),
        r"48 belong to the encoding spaces \[1\] \(the header describes 1",
    ),
    "all lines with a flag": (
        Scan(fields={"flags": ["ACQ_IS_NAVIGATION_DATA"]}),
        "48 have the flag ACQ_IS_NAVIGATION",
    ),
    "compressed samples": (Scan(fields={"flags": ["ACQ_COMPRESSION1"]}), "compressed acquisitions .flag ACQ_COMPR"),
    "a matrix that the data cannot fill": (
        Scan(
            KSPACE[:32],
            matrix=(N_X, 20000, 4096),
            header={"center_1": 0, "center_2": 0},
            more=lines(KSPACE, [33], step_2=1),
        ),
        r"matrix \(40, 20000, 4096\) .* would take 26214 MB",
    ),
}

WARNED = {
    "centre of the readout never set": (
        Scan(fields={"center": 0}),
        "center_sample of .* is 0 in acquisitions of 40 samples.* The middle, 20, is taken",
        KSPACE,
    ),
    "calibration lines of another contrast": (
        Scan(more=lines(5 * KSPACE, CENTRE_LINES, **CALIBRATION)),
        "the 16 calibration lines of .* differ from the imaging lines",
        KSPACE,
    ),
    "embedded calibration lines of another contrast": (
        Scan(header={"mode": "embedded"}, more=lines(5 * KSPACE, CENTRE_LINES, **CALIBRATION)),
        "the 16 calibration lines of .* differ from the imaging lines",
        KSPACE,
    ),
    "calibration lines of another readout": (
        Scan(more=lines(KSPACE[:, 10:30], CENTRE_LINES, **CALIBRATION)),
        "the 16 calibration lines of .* cover other readout samples",
        KSPACE,
    ),
    "averages that differ": (
        Scan(more=lines(-0.5 * KSPACE, range(N_Y), average=1)),
        "differ from their mean by .*although the counter `average` calls them averages",
        0.25 * KSPACE,
    ),
    "averages without a label": (
        Scan(more=lines(KSPACE, range(N_Y))),
        "2 acquisitions with the same labels .* `average` does not tell them apart",
        KSPACE,
    ),
    "fields of view swapped": (
        Scan(header={"recon_fov": (120.0, 96.0, 3.0)}),
        "120 mm in x for the image .*but of 60 mm for k-space",
        KSPACE,
    ),
    "lines beyond the limits": (
        Scan(header={"maximum_1": 30}),
        "from 0 to 47, but .* 0 to 30.* limits are wrong",
        KSPACE,
    ),
    "lines missing at the end": (
        Scan(KSPACE[:36]),
        "from 0 to 35, but the header has limits 0 to 47.* may be incomplete",
        np.where(np.arange(N_Y)[:, None] < 36, KSPACE, 0),
    ),
    "partitions in the header alone": (Scan(matrix=(N_X, N_Y, 8)), "has 8 partitions .* read as 2-D slices", KSPACE),
    "slices in the header alone": (Scan(header={"n_slices": 5}), "states 5 slices .*, but the data has 1", KSPACE),
    "lines of a space that the header does not describe": (
        Scan(more=lines(KSPACE, [3], encoding_space_ref=2)),
        r"1 acquisitions of .* belong to the encoding spaces \[2\], but the header describes 1",
        KSPACE,
    ),
    "field of view in metres": (
        Scan(header={"fov": (0.08, 0.096, 0.003)}),
        "voxels of 0.003 x 0.002 x 0.002 mm .*another unit",
        KSPACE,
    ),
    "oversampling without a field of view": (
        Scan(
            oversampled(), matrix=(2 * N_X, N_Y, 1), header={"recon": (N_X, N_Y, 1), "recon_fov": (120.0, 96.0, 3.0)}
        ),
        "80 readout samples for 40 pixels, but the same field of view of 120 mm",
        oversampled(),
    ),
    "noise acquisitions that hold the object": (
        Scan(more=lines(KSPACE, CENTRE_LINES, flags=["ACQ_IS_NOISE_MEASUREMENT"])),
        "noise acquisitions of .* seem to hold signal",
        None,
    ),
}

READ = {
    "reversed readouts by the centre as stored": Scan(
        KSPACE[:, ::-1], fields={"flags": ["ACQ_IS_REVERSE"], "center": 19}
    ),
    "reversed readouts by the centre of converters": Scan(
        KSPACE[:, ::-1], fields={"flags": ["ACQ_IS_REVERSE"], "center": 20}
    ),
    "calibration lines repeated": Scan(more=lines(KSPACE, CENTRE_LINES, **CALIBRATION)),
    "a single partition": Scan(fields={"step_2": 3}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    scan, message = REFUSED[name]
    path = scan.write(tmp_path / "scan.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspectDataWarning)
        with pytest.raises(ValueError, match=rf"(?s){message}") as caught:
            read_ismrmrd(path)
    assert "scan.h5" in str(caught.value)


@pytest.mark.parametrize("name", WARNED)
def test_warned_of_and_read(tmp_path, name):
    scan, message, expected = WARNED[name]
    with pytest.warns(SuspectDataWarning, match=message):
        raw = read_ismrmrd(scan.write(tmp_path / "scan.h5"))
    if expected is not None:
        np.testing.assert_allclose(raw.kspace[0, 0], expected, atol=1e-4)
        np.testing.assert_array_equal(
            raw.mask, (expected != 0).any(axis=1, keepdims=True) | np.zeros(expected.shape, bool)
        )


@pytest.mark.parametrize("name", READ)
def test_read_without_a_word(tmp_path, name):
    raw = read_ismrmrd(READ[name].write(tmp_path / "scan.h5"))
    np.testing.assert_allclose(raw.kspace[0, 0], KSPACE, atol=1e-4)
    assert raw.mask.all()


def test_voxel_size_in_another_unit_is_unknown(tmp_path):
    path = Scan(header={"fov": (0.08, 0.096, 0.003)}).write(tmp_path / "scan.h5")
    with pytest.warns(SuspectDataWarning):
        raw = read_ismrmrd(path)
    assert raw.voxel_size_mm is None and raw.affine is None


def test_calibration_lines_between_undersampled_ones(tmp_path):
    """Of the same contrast they are measurements; of another they are left out."""
    sampled = KSPACE[::2]
    for factor, n_lines in ((1, 32), (20, 24)):
        more = lines(factor * KSPACE, [step for step in CENTRE_LINES if step % 2], **CALIBRATION)
        path = Scan(sampled, steps=range(0, N_Y, 2), more=more).write(tmp_path / f"{factor}.h5")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            raw = read_ismrmrd(path)
        assert int(raw.mask[:, 0].sum()) == n_lines
        assert ["energy of the imaging lines beside them" in str(one.message) for one in caught] == [True] * (
            factor > 1
        )


def test_trajectories_are_held_against_cartesian(tmp_path):
    angles = np.linspace(0, np.pi, N_Y, endpoint=False)
    radius = np.linspace(-0.5, 0.5, N_X)
    radial = [np.stack([radius * np.cos(a), radius * np.sin(a)], -1) for a in angles]
    spiral = [np.stack([radius * np.cos(20 * radius), radius * np.sin(20 * radius)], -1)] * N_Y
    cartesian = [np.stack([radius, np.full(N_X, j / N_Y - 0.5)], -1) for j in range(N_Y)]
    for name, trajectory in (("parallel lines", radial), ("straight line", spiral), (None, cartesian)):
        acquisitions = lines(KSPACE, range(N_Y))
        for one, points in zip(acquisitions, trajectory, strict=True):
            one.resize(N_X, 1, 2)
            one.data[:] = KSPACE[one.idx.kspace_encode_step_1]
            one.traj[:] = points
            one.center_sample = N_X // 2
        path = write_ismrmrd(tmp_path / f"{name}.h5", header_xml((N_X, N_Y, 1), (N_X, N_Y, 1)), acquisitions)
        if name is None:
            assert read_ismrmrd(path).mask.all()
        else:
            with pytest.raises(ValueError, match=f"says Cartesian, but the traject.* no.* {name}"):
                read_ismrmrd(path)
