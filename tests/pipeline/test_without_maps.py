"""The bundled case without its coil maps: the calls that a new user makes first."""

import shutil

import h5py
import pytest
import torch

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.io.skm_tea_file import read_skm_tea
from sgr_diffusers.mri.coils import estimate_coil_maps
from sgr_diffusers.pretrained import PRETRAINED
from sgr_diffusers.reconstruction.demo import CASE, run_demo


def test_image_is_as_good_as_with_stored_maps():
    case = read_skm_tea(CASE, slices=[0], mask=8.0)
    pipe = SGRMRIPipeline.from_pretrained(PRETRAINED)
    pipe.set_progress_bar_config(disable=True)

    def error(**kwargs):
        out = pipe(
            case.kspace,
            case.mask,
            target="none",
            num_inference_steps=8,
            generator=torch.Generator().manual_seed(0),
            **kwargs,
        )
        image, truth = out.images[0, 0, 0].abs(), case.fully_sampled[0].abs()
        return float(torch.linalg.vector_norm(image - truth) / torch.linalg.vector_norm(truth))

    assert error() < 1.05 * error(coil_maps=case.coil_maps)


@pytest.mark.parametrize("acceleration", [4.0, 16.0])
def test_estimated_maps_leave_nothing_of_the_body_out(acceleration):
    case = read_skm_tea(CASE, mask=acceleration)
    body = case.fully_sampled.abs() > 0.1 * case.fully_sampled.abs().amax()
    assert (estimate_coil_maps(case.kspace, case.mask).abs().sum(dim=1) > 0)[body].all()


def test_demo(tmp_path):
    case = tmp_path / "case.h5"
    shutil.copy(CASE, case)
    with h5py.File(case, "r+") as file:
        del file["maps"]
    assert run_demo(tmp_path / "demo", accelerations=(8.0,), n_steps=3, case=case).is_file()
