import json

import numpy as np

from sgr_diffusers.io.bids import describe_derivatives
from sgr_diffusers.io.nifti import write_nifti


def test_each_file_is_described(tmp_path):
    volume = np.zeros((2, 3, 4), np.float32)
    names = ("femoral_cartilage_lower_image", "femoral_cartilage_lower_segmentation", "unguided_standard_deviation")
    for name in names:
        write_nifti(tmp_path / f"{name}.nii.gz", volume, None)
    describe_derivatives(tmp_path, "scan.h5", {1: "femoral_cartilage", 3: "meniscus"}, "0.1.0")
    image, segmentation, deviation = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    assert image["Description"] == "femoral cartilage lower: magnitude image" and image["Sources"] == ["scan.h5"]
    assert segmentation["Sources"] == [f"{names[0]}.nii.gz"] and segmentation["Manual"] is False
    assert deviation["Description"] == "unguided: standard deviation around the mean of the samples"
    assert (tmp_path / "dseg.tsv").read_text() == "index\tname\n1\tfemoral_cartilage\n3\tmeniscus\n"
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Version"] == "0.1.0"
