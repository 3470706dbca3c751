"""The import as a user runs it, and what reads its result."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from sgr_diffusers import SegmentationUNet, cli
from sgr_diffusers.data.brain_tumour.dataset import import_brain_tumour, split_patients
from sgr_diffusers.data.brain_tumour.files import TumourPatient, TumourSlice
from sgr_diffusers.data.brain_tumour.simulation import AcquisitionConfig
from sgr_diffusers.data.load import load_skmtea
from sgr_diffusers.data.scan_files import close_files
from sgr_diffusers.data.skm_tea import SkmTeaSlices, list_scans
from tests.helpers.brain_tumour_files import write_packed_file, write_published_files
from tests.helpers.tiny_pipeline import save_tiny_pipeline

SMALL = AcquisitionConfig(size=32, n_coils=2, accelerations=(4.0,), calibration_shape=(8, 8))
PATIENTS = [("MR/02", 1, 1, 2), ("MR03", 1, 3, 2), ("MR04", 2, 4, 3), ("MR05", 2, 5, 3), ("MR06", 2, 2, 1)]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brain")
    source = write_published_files(folder / "source", PATIENTS)
    counts = import_brain_tumour(source, folder / "data", SMALL, progress=False)
    yield folder / "data", counts
    close_files()


def test_a_patient_is_a_scan_of_its_split(imported):
    root, counts = imported
    assert counts == {"train": 2, "val": 1, "calibration": 1, "heldout": 1}
    scans = {split: list_scans(root, split) for split in counts}
    assert [scan.scan_id for scan in scans["train"]] == ["BT_MR_02", "BT_MR06"]
    assert [scan.n_slices for scan in scans["train"]] == [2, 1] and scans["val"][0].n_slices == 2
    assert scans["calibration"][0].n_slices == scans["heldout"][0].n_slices == 1
    scan = scans["train"][0]
    assert scan.class_names == ("tumour",) and set(np.unique(scan.labels())) == {0, 1}
    assert scan.voxel_size_mm == pytest.approx((6.0, 250.9 / 32, 250.9 / 32))
    assert scan.mask_names == ["poisson_4.0x"]


def test_what_was_simulated_is_recorded(imported):
    root, _ = imported
    content = json.loads((root / "annotations/v1.0.0/calibration.json").read_text())
    assert content["segmentation_classes"] == ["tumour"]
    assert "figshare 1512427" in content["info"]["source"] and "noise" in content["info"]["simulated"]
    assert content["info"]["config"]["snr"] == SMALL.snr and content["info"]["config"]["seed"] == 0
    entry = content["images"][0]
    assert (entry["subject_id"], entry["tumour"], entry["fold"]) == ("MR04", "glioma", 4)
    with h5py.File(root / "files_recon_calib-24" / "BT_MR04.h5") as file:
        assert json.loads(file.attrs["config"])["slices"] == entry["slices"]


def test_an_import_goes_on_and_refuses_other_settings(tmp_path):
    source, data = write_published_files(tmp_path / "source", PATIENTS[:2]), tmp_path / "data"
    import_brain_tumour(source, data, SMALL, progress=False)
    kept, lost = sorted((data / "files_recon_calib-24").glob("*.h5"))
    state = kept.stat().st_mtime_ns
    with h5py.File(lost) as file:
        kspace = file["kspace"][()]
    lost.unlink()
    import_brain_tumour(source, data, SMALL, progress=False)
    assert kept.stat().st_mtime_ns == state
    with h5py.File(lost) as file:
        np.testing.assert_array_equal(file["kspace"][()], kspace)
    with pytest.raises(ValueError, match="already there, written with another configuration"):
        import_brain_tumour(source, data, replace(SMALL, snr=9.0), progress=False)


def patients_of(fold, n):
    return [
        TumourPatient(f"{fold}-{number:03d}", "glioma", fold, (TumourSlice("1", lambda: None),)) for number in range(n)
    ]


def test_folds_become_splits():
    patients = [one for fold, n in ((1, 4), (2, 5), (3, 48), (4, 47), (5, 47)) for one in patients_of(fold, n)]
    splits = split_patients(patients)
    assert {name: len(members) for name, members in splits.items()} == {
        "train": 9,
        "val": 16,
        "calibration": 32 + 23,
        "test": 24,
        "heldout": 47,
    }
    assert splits["val"][-1].patient_id == "3-015" and splits["test"][0].patient_id == "4-023"
    assert list(split_patients(patients_of(None, 3))) == ["test"]
    with pytest.raises(ValueError, match="has the fold 6, one from 1 to 5"):
        split_patients(patients_of(6, 1))


def test_readers_and_training_data_take_the_result(imported, tmp_path):
    root, _ = imported
    row = load_skmtea(root, "heldout", acceleration=4, cache_dir=tmp_path)[0]
    assert row["labels"].max() == 1 and row["kspace"].shape == (2, 32, 32)
    slices = SkmTeaSlices(list_scans(root, "train"))
    assert len(slices) == 3 and slices.foreground.all()
    assert slices[0]["labels"].sum() > 0


def test_the_result_is_evaluated(imported, tmp_path):
    root, _ = imported
    model = save_tiny_pipeline(tmp_path / "model")
    network = SegmentationUNet(("tumour",), channels=(4, 8), strides=(2,), num_res_units=1)
    network.save_pretrained(tmp_path / "network")
    command = [
        "evaluate",
        root,
        "--model",
        model,
        "--segmentation",
        tmp_path / "network",
        "--output",
        tmp_path / "out",
    ]
    options = "--split calibration --slices all --accelerations 4 --steps 3 --rr-samples 2"
    assert cli.main([*map(str, command), *options.split()]) == 0
    table = (tmp_path / "out" / "config.json").read_text()
    assert json.loads(table)["identity"]["classes"] == ["tumour"]


def test_the_command_reads_a_packed_file(tmp_path, capsys):
    source, data = write_packed_file(tmp_path / "packed.h5", [(1, "glioma", 4, 1)]), tmp_path / "data"
    command = ["data", "import-brain-tumour", str(source), "--output", str(data), "--coils", "2", "--seed", "3"]
    assert cli.main(command) == 0
    assert "1 patients in calibration" in capsys.readouterr().out
    assert list_scans(data, "calibration")[0].matrix_shape == (1, 192, 192)
    assert cli.main(["data", "check", str(data), "--read"]) == 0
    assert "1 can be used, 0 cannot" in capsys.readouterr().out
    close_files()


def test_the_command_says_what_is_missing(tmp_path, capsys):
    source = write_published_files(tmp_path / "source", PATIENTS[-1:], with_folds=False)
    assert cli.main(["data", "import-brain-tumour", str(source), "--output", str(tmp_path / "data")]) == 0
    assert "no cvind.mat" in capsys.readouterr().out
    assert cli.main(["data", "import-brain-tumour", str(tmp_path / "data"), "--output", str(tmp_path / "x")]) == 2
    assert "holds no numbered .mat file" in capsys.readouterr().err
