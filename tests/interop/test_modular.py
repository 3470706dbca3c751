"""The pipeline as blocks of diffusers' modular pipelines."""

import pytest
import torch
from diffusers import ModularPipeline

from sgr_diffusers import SGRMRIPipeline
from sgr_diffusers.interop.modular import SGRBlocks, save_modular
from tests.helpers.pipeline_parts import assert_same, build, call, draw_problem, seeded


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modular")
    save_modular(build("unet", cg_iterations=3, guidance_strength=0.2), folder)
    return folder


@pytest.fixture
def modular(saved):
    pipe = ModularPipeline.from_pretrained(str(saved), trust_remote_code=True)
    pipe.load_components()
    return pipe


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"target": "none", "voxel_size_mm": (1.0, 2.0, 3.0)},
        {"target": "upper", "classes": ["two"], "batch_size": 1, "guidance_scale": 2.0, "consistency": "noise_aware"},
    ],
)
def test_it_is_the_pipeline_to_the_last_bit(saved, modular, arguments):
    expected = call(SGRMRIPipeline.from_pretrained(saved), seed=3, **arguments)
    output = modular(**draw_problem(), num_inference_steps=4, generator=seeded(3), **arguments, output="output")
    assert_same(output, expected, rtol=0, atol=0)
    assert output.scale.shape == (2,)


def test_coil_maps_are_estimated_and_arguments_checked(saved, modular):
    problem = draw_problem(size=(24, 24), share=0.9)
    del problem["coil_maps"]
    problem["mask"][6:18, 6:18] = True
    expected = call(SGRMRIPipeline.from_pretrained(saved), problem, target="none")
    output = modular(**problem, target="none", num_inference_steps=4, generator=seeded(), output="output")
    assert torch.equal(output.images, expected.images)
    with pytest.raises(ValueError, match="`target` must be"):
        modular(**problem, target="sideways")


def test_a_block_can_be_replaced(saved, modular):
    """Without the segmentation, the images of the step before it are there in the scale of the prior."""
    blocks = SGRBlocks()
    del blocks.sub_blocks["segment"]
    pipe = blocks.init_pipeline()
    pipe.update_components(**modular.components)
    pipe.update_components(**{name: modular.config[name] for name in ("cg_iterations", "guidance_strength")})
    state = pipe(**draw_problem(), num_inference_steps=4, generator=seeded())
    expected = call(SGRMRIPipeline.from_pretrained(saved))
    scaled = state.get("images") * expected.scale[:, None, None, None, None]
    assert torch.equal(scaled, expected.images)


def test_without_a_segmentation_model(tmp_path):
    save_modular(build(None), tmp_path)
    pipe = ModularPipeline.from_pretrained(str(tmp_path), trust_remote_code=True)
    pipe.load_components()
    output = pipe(**draw_problem(), target="none", num_inference_steps=4, generator=seeded(), output="output")
    assert output.segmentations is None and torch.equal(output.images, call(build(None), target="none").images)
