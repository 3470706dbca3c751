# %% [markdown]
# # Your segmentation network and your guidance
#
# Any differentiable network can say what a tissue is, and any differentiable score can push a reconstruction. This
# tutorial uses a network of a few lines in place of a trained one, on the checkpoint for scans of any anatomy.

# %%
import matplotlib.pyplot as plt
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from sgr_diffusers import Guidance, SGRMRIPipeline, read_raw
from sgr_diffusers.pretrained import GENERAL, PRETRAINED

n_steps = 25
scan = read_raw(PRETRAINED / "case.h5", slices=[1], mask=8.0)
pipe = SGRMRIPipeline.from_pretrained(GENERAL)
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## A network
#
# It takes the magnitude `(batch, 1, y, x)`, scaled so that its 0.99 quantile is 1, and returns logits with the
# background in channel 0. `class_names` names the other channels.


# %%
class Bright(nn.Module):
    """Calls "bright" what is brighter than a threshold."""

    class_names = ("bright",)

    def forward(self, magnitude):
        """Return logits of background and class."""
        return torch.cat([torch.zeros_like(magnitude), 20 * (magnitude - 0.5)], dim=1)


pipe.register_modules(segmentation_model=Bright().eval())
out = pipe(scan.kspace, scan.mask, target="both", num_inference_steps=n_steps, voxel_size_mm=scan.voxel_size_mm)
lower, upper = out.volumes_mm3[0, 0].tolist()
print(f"bright tissue: {lower:.0f} to {upper:.0f} mm^3")


def show(images, segmentations):
    """Draw images by their titles, with the outline of what is bright in each."""
    _figure, axes = plt.subplots(1, len(images), figsize=(3.5 * len(images), 4), layout="constrained")
    for axis, (title, image), labels in zip(axes, images.items(), segmentations, strict=True):
        axis.imshow(image.abs(), cmap="gray", vmax=float(scan.fully_sampled.abs().quantile(0.995)))
        axis.contour(labels == 1, [0.5], colors=["orange"], linewidths=0.7)
        axis.set_title(title)
        axis.set_axis_off()


lower_image, upper_image = out.images[0, 0]
show({"as little as possible": lower_image, "as much as possible": upper_image}, out.segmentations[0, 0])

# %% [markdown]
# ## A guidance
#
# A guidance names the tensors that it needs and returns a score for each image, which the pipeline raises. This one
# raises the volume of the class in the upper half of the field of view only.


# %%
class UpperHalf(Guidance):
    """Raises the volume of one class in the upper half of the field of view."""

    tensor_inputs = ["logits"]

    @register_to_config
    def __init__(self, label: int = 1, strength: float | None = None, start: float | None = None, stop: float = 1.0):
        """Take the label number of the class; the rest is that of `Guidance`."""
        super().__init__(strength, start, stop)

    def score(self, logits):
        """Return the soft volume in pixels."""
        return logits.softmax(dim=1)[:, self.config.label, : logits.shape[-2] // 2].sum(dim=(-2, -1))


def reconstruct(guidance):
    """Reconstruct with the same noise, so that guidance is all that differs."""
    generator = torch.Generator().manual_seed(0)
    return pipe(
        scan.kspace, scan.mask, target="none", guidance=guidance, num_inference_steps=n_steps, generator=generator
    )


plain, pushed = reconstruct([]), reconstruct(UpperHalf(strength=0.05))
half = plain.segmentations.shape[-2] // 2
for name, part in {"upper": slice(0, half), "lower": slice(half, None)}.items():
    change = (pushed.segmentations == 1)[..., part, :].sum() - (plain.segmentations == 1)[..., part, :].sum()
    print(f"change in the {name} half: {change:+d} pixels")

show(
    {"unguided": plain.images[0, 0, 0], "more in the upper half": pushed.images[0, 0, 0]},
    [plain.segmentations[0, 0, 0], pushed.segmentations[0, 0, 0]],
)
