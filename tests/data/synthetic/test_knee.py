"""Synthetic knees: reproducible, in the layout they claim, of human size, with the noise and findings asked for."""

import json

import h5py
import nibabel as nib
import numpy as np
import pytest

from sgr_diffusers.data.synthetic.acquisition import ifft2c, loop_sensitivities
from sgr_diffusers.data.synthetic.anatomy import FINDINGS, Knee
from sgr_diffusers.data.synthetic.knee import SyntheticKneeConfig, SyntheticScan, write_synthetic_dataset
from sgr_diffusers.data.synthetic.rendering import KneeRenderer
from sgr_diffusers.mri.masks import pad_mask

ANNOTATIONS = "annotations/v1.0.0"
KSPACE = "files_recon_calib-24"
LABELS = "segmentation_masks/raw-data-track"
SMALL = SyntheticKneeConfig(
    matrix_shape=(3, 48, 40), voxel_size_mm=(14.0, 3.2, 3.2), n_coils=4, accelerations=(4.0,), calibration_shape=(6, 6)
)


def test_same_seed_same_slice_and_other_seed_another():
    first, again = (SyntheticScan(SMALL, "train", 3).slice(1) for _ in range(2))
    other = SyntheticScan(SMALL, "test", 3).slice(1)
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert np.abs(first["kspace"] - other["kspace"]).max() > 0.1 * np.abs(first["kspace"]).max()


def test_slice_is_what_its_kspace_and_maps_say():
    s = SyntheticScan(SMALL, "train", 0).slice(1)
    assert s["kspace"].shape == (48, 40, 2, 4) and s["kspace"].dtype == np.complex64
    np.testing.assert_allclose((np.abs(s["maps"]) ** 2).sum(-1), 1.0, atol=1e-5)
    coils = np.fft.fftshift(
        np.fft.ifft2(np.fft.ifftshift(s["kspace"][:, :, 0], axes=(0, 1)), axes=(0, 1), norm="ortho"), axes=(0, 1)
    )
    combined = (s["maps"].conj() * coils).sum(-1)
    np.testing.assert_allclose(s["target"][..., 0], combined, atol=1e-4 * np.abs(combined).max())


def test_noise_has_the_snr_asked_for():
    quiet, noisy = (
        SyntheticScan(SyntheticKneeConfig(n_coils=8, n_echoes=1, snr=snr), "train", 1) for snr in (1e6, 20.0)
    )
    difference = (noisy.slice(30)["target"] - quiet.slice(30)["target"]) / noisy.unit
    np.testing.assert_allclose(noisy.slice(30)["noise_free"], quiet.slice(30)["target"], atol=1e-4 * quiet.unit)
    # only the acquired part of k-space carries noise
    share = np.prod(noisy.config.acquired_shape) / (96 * 80)
    assert difference.real.std() == pytest.approx(np.sqrt(share) / 20.0, rel=0.03)
    assert np.quantile(np.abs(quiet.slice(30)["target"]), 0.99) / quiet.unit == pytest.approx(1.0, abs=0.35)


def test_kspace_outside_the_acquired_grid_is_zero():
    scan = SyntheticScan(SyntheticKneeConfig(n_coils=2, n_echoes=1), "val", 0)
    energy = np.abs(scan.slice(10)["kspace"]).sum((2, 3))
    rows, columns = np.nonzero(energy)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (3, 93, 2, 78)  # 90 x 76 of 96 x 80


def test_tissues_have_human_sizes():
    """Volumes of healthy knees against the range of manual labels of the Osteoarthritis Initiative (femoral 7.6-20.8,
    tibial 3.3-7.9, patellar up to 4.1 cm^3 in stacks that cut off part of the patella) and the shares of slices in
    SKM-TEA (20, 27, 7 and 9 %)."""
    config = SyntheticKneeConfig()
    volumes, present = [], []
    for seed in range(3):
        knee = Knee(np.random.default_rng(seed), finding_probability=0.0)
        renderer = KneeRenderer(knee, np.random.default_rng(seed))
        u, a, m = SyntheticScan(config, "train", 0).positions()
        a, m = np.meshgrid(a, m, indexing="ij")
        area = np.zeros((len(u), 7))
        for index, level in enumerate(u):
            for label, fraction in renderer.render(float(level), a, m)[2].items():
                area[index, label] = fraction.sum() * 1.6**2
        area = np.stack([area[:, 1], area[:, 2], area[:, 3] + area[:, 4], area[:, 5] + area[:, 6]], axis=1)
        volumes.append(area.sum(0) * 2.5)
        present.append((area > 20.0).mean(0))
    low, high = np.array([1700, 7600, 2600, 2000]), np.array([6000, 20800, 7900, 7500])
    assert (np.mean(volumes, 0) > low).all() and (np.mean(volumes, 0) < high).all(), np.mean(volumes, 0)
    np.testing.assert_allclose(np.mean(present, 0), [0.20, 0.27, 0.07, 0.09], atol=0.06)


def test_findings_have_their_frequency_and_change_the_tissue():
    knees = [Knee(np.random.default_rng(seed), finding_probability=0.25) for seed in range(160)]
    counts = {kind: sum(knee.finding(kind) is not None for knee in knees) for kind in FINDINGS}
    assert all(22 <= count <= 60 for count in counts.values()), counts  # 40 expected
    assert not Knee(np.random.default_rng(0), finding_probability=0.0).findings
    healthy, thin = Knee(np.random.default_rng(5), 0.0), Knee(np.random.default_rng(5), 0.0)
    thin.findings = [{"type": "thinning", "tissue": "femoral_cartilage", "compartment": "medial", "depth": 0.6}]
    a, m = np.meshgrid(np.arange(-60, 60, 1.0, np.float32), np.arange(-50, 50, 1.0, np.float32), indexing="ij")
    area = [KneeRenderer(knee, np.random.default_rng(0)).render(20.0, a, m)[2][2].sum() for knee in (healthy, thin)]
    assert area[1] < 0.85 * area[0]


def test_loops_see_what_is_near_them():
    a, m = np.linspace(-60, 60, 25), np.linspace(-50, 50, 21)
    fields = np.abs(loop_sensitivities(0.0, a, m, 8))
    assert fields.shape == (8, 25, 21) and np.isfinite(fields).all()
    anterior = fields[4]  # the fifth of eight loops sits at angle pi: in front of the knee
    assert anterior[0, 10] > 3 * anterior[-1, 10]
    far = np.abs(loop_sensitivities(300.0, a, m, 8))
    assert far.max() < 0.05 * fields.max()


def test_varied_scans_have_one_appearance_each():
    config = SyntheticKneeConfig(matrix_shape=(32, 64, 64), n_coils=4, n_echoes=1, snr=1e6, appearance="varied")
    scans = [SyntheticScan(config, "test", number) for number in range(6)]
    middle = [scan.slice(12) for scan in scans]
    correlations = [
        np.corrcoef(np.abs(this["target"]).ravel(), np.abs(other).ravel())[0, 1]
        for this, scan in zip(middle, scans, strict=True)
        for other in (scan.slice(13)["target"], middle[scans.index(scan) - 1]["target"])
    ]
    assert min(correlations[::2]) > 0.7 > np.median(correlations[1::2])  # next slice, other scan
    for content, scan in zip(middle, scans, strict=True):
        np.testing.assert_array_equal(content["labels"], scan.labels(12))
        combined = content["maps"].transpose(2, 0, 1).conj() * ifft2c(content["kspace"][:, :, 0].transpose(2, 0, 1))
        np.testing.assert_allclose(combined.sum(0), content["target"][..., 0], atol=1e-4 * scan.unit)
    assert set(np.unique([scan.labels(index) for scan in scans for index in (12, 20)])) == {0, 1, 2, 3, 5}
    with pytest.raises(ValueError, match="n_echoes"):
        SyntheticKneeConfig(appearance="varied")


def test_written_files_are_the_skm_tea_layout(tmp_path):
    write_synthetic_dataset(tmp_path, (1, 1, 0), SMALL, progress=False)
    entry = json.loads((tmp_path / ANNOTATIONS / "train.json").read_text())["images"][0]
    assert entry["matrix_shape"] == [3, 48, 40] and entry["voxel_spacing"] == [14.0, 3.2, 3.2]
    assert set(entry) >= {"id", "file_name", "scan_id", "subject_id", "timepoint", "orientation", "findings"}
    with h5py.File(tmp_path / KSPACE / entry["file_name"]) as file:
        assert file["kspace"].shape == (3, 48, 40, 2, 4) and file["kspace"].dtype == np.complex64
        assert file["maps"].shape == (3, 48, 40, 4, 1) and file["target"].shape == (3, 48, 40, 2, 1)
        mask = file["masks/poisson_4.0x"][()]
        assert mask.shape == (46, 38)
        assert pad_mask(mask, (48, 40))[21:27, 17:23].all()  # 6 x 6 about the centre (24, 20)
        assert mask.size / mask.sum() == pytest.approx(4.0, rel=0.1)
    labels = nib.load(tmp_path / LABELS / f"{entry['scan_id']}.nii.gz")
    assert labels.shape == (3, 48, 40) and set(np.unique(labels.dataobj)) <= set(range(7))
    assert nib.aff2axcodes(labels.affine)[:2] == ("I", "P")
    # going on after an interruption keeps what is there; another configuration is refused
    stamp = (tmp_path / KSPACE / entry["file_name"]).stat().st_mtime_ns
    write_synthetic_dataset(tmp_path, (1, 1, 0), SMALL, progress=False)
    assert (tmp_path / KSPACE / entry["file_name"]).stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="another configuration"):
        write_synthetic_dataset(
            tmp_path, (1, 0, 0), SyntheticKneeConfig(**{**SMALL.__dict__, "seed": 1}), progress=False
        )


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"is no data set, but holds files, such as model_index\.json"):
        write_synthetic_dataset(tmp_path, (1, 0, 0), SMALL, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model_index.json"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"matrix_shape": (4, 4, 4)}, "matrix_shape"),
        ({"n_echoes": 3}, "n_echoes"),
        ({"snr": 0.0}, "snr"),
        ({"voxel_size_mm": (1.0, 1.0, 0.0)}, "voxel_size_mm"),
        ({"acquired_fraction": 1.5}, "acquired_fraction"),
    ],
)
def test_impossible_configurations_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        SyntheticKneeConfig(**settings)


def test_full_size_slice_is_computed_by_the_same_code():
    config = SyntheticKneeConfig(
        matrix_shape=(512, 512, 160), voxel_size_mm=(0.3125, 0.3125, 0.8), n_coils=16, n_echoes=1
    )
    s = SyntheticScan(config, "train", 0).slice(256)
    assert s["kspace"].shape == (512, 160, 1, 16) and s["labels"].shape == (512, 160)
    assert np.isfinite(s["target"]).all()
