"""From nothing to a pipeline folder, the way the bundled checkpoint was made, at a tiny size."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.data.synthetic.knee import SyntheticKneeConfig, write_synthetic_dataset
from sgr_diffusers.io.skm_tea_file import read_skm_tea
from tests.helpers.evaluation_results import quality_record

ROOT = Path(__file__).parents[2]
TINY = SyntheticKneeConfig(
    matrix_shape=(12, 48, 40),
    voxel_size_mm=(8.0, 3.2, 3.2),
    n_coils=4,
    n_echoes=1,
    accelerations=(4.0,),
    calibration_shape=(10, 10),
)


def script(name):
    return runpy.run_path(str(ROOT / "training" / f"{name}.py"))["main"]


@pytest.mark.filterwarnings("ignore:the reconstruction misses the measured")  # the networks are hardly trained
def test_train_assemble_load_and_reconstruct(tmp_path):
    data = write_synthetic_dataset(tmp_path / "knee", (2, 1, 1), TINY, progress=False)
    common = ["--data-dir", str(data), "--max-train-steps", "2", "--train-batch-size", "2", "--seed", "3"]
    quick = ["--validation-inference-steps", "2"]
    prior, segmentation, output = (str(tmp_path / name) for name in ("prior", "segmentation", "pipeline"))
    script("train_prior")([*common, "--output-dir", prior, "--block-out-channels", "8", "32", *quick])
    script("train_segmentation")([*common, "--output-dir", segmentation])
    folders = ["--data-dir", str(data), "--prior", prior, "--segmentation", segmentation, "--output-dir", output]
    folders += ["--note", "Hardly trained."]
    script("assemble_pipeline")(folders)
    assert "## Evaluation\n\nNot measured." in Path(output, "README.md").read_text()
    assert f'{output}/case.h5"' in Path(output, "README.md").read_text()
    pipe = SGRMRIPipeline.from_pretrained(output)
    quality = tmp_path / "quality.json"
    measured = quality_record(pipe)
    quality.write_text(json.dumps({**measured, "weights": "of-others"}))
    with pytest.raises(ValueError, match=r"quality.json is of other weights"):
        script("assemble_pipeline")([*folders, "--quality", str(quality)])
    with pytest.raises(OSError, match="typing-error"):  # and what was there stays
        script("assemble_pipeline")([*folders, "--prior", str(tmp_path / "typing-error")])
    assert "Not measured." in Path(output, "README.md").read_text()
    quality.write_text(json.dumps(measured))
    script("assemble_pipeline")([*folders, "--quality", str(quality)])
    assert {path.name for path in tmp_path.iterdir()} == {"knee", "prior", "segmentation", "pipeline", "quality.json"}

    card = (tmp_path / "pipeline" / "README.md").read_text()
    record = json.loads((tmp_path / "pipeline" / "training" / "1_prior.json").read_text())
    assert f"Seed 3, 2 steps, {record['images']} images" in card and "Hardly trained." in card
    assert "meniscus 0.432" in card and "| 4x | 20.00 dB | 30.00 dB | 31.50 dB |" in card

    for folder in (tmp_path, segmentation, prior, data):
        with pytest.raises(FileExistsError, match="`output_dir`"):
            script("assemble_pipeline")([*folders, "--output-dir", str(folder)])

    case = read_skm_tea(tmp_path / "pipeline" / "case.h5", mask=4)
    pipe = SGRMRIPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == torch.float32
    out = pipe(case.kspace, case.mask, coil_maps=case.coil_maps, num_inference_steps=2)
    assert out.images.shape == (len(case.slice_indices), 4, 2, 48, 40)
    assert np.isfinite(out.images.numpy()).all()
