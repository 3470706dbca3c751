# %% [markdown]
# # From k-space to bounds
#
# This tutorial reconstructs a slice of the synthetic knee that comes with the package, and shows how little and how
# much of each tissue its undersampled k-space allows. It takes about a minute on a CPU.

# %%
import matplotlib.pyplot as plt
import torch

from sgr_diffusers import SGRMRIPipeline, bounds_from_segmentations, read_raw
from sgr_diffusers.pretrained import PRETRAINED

n_steps = 25  # 100 in the paper

# %% [markdown]
# ## Read the measurement
#
# The file holds fully sampled k-space and several sampling masks. `mask=8.0` keeps an eighth of the samples, and the
# fully sampled image stays with the scan as `fully_sampled`, for comparison only.

# %%
scan = read_raw(PRETRAINED / "case.h5", slices=[1], mask=8.0)
print(f"k-space (slice, coil, y, x): {tuple(scan.kspace.shape)}, measured: {scan.mask.float().mean():.0%}")

# %% [markdown]
# ## Reconstruct both bounds
#
# Each tissue is reconstructed twice: with guidance that shrinks it ("lower") and with guidance that lets it grow
# ("upper"). Both start from the same noise.

# %%
pipe = SGRMRIPipeline.from_pretrained(PRETRAINED)
pipe.set_progress_bar_config(disable=True)
out = pipe(
    scan.kspace,
    scan.mask,
    target="both",
    num_inference_steps=n_steps,
    voxel_size_mm=scan.voxel_size_mm,
    generator=torch.Generator().manual_seed(0),
)
for name, (lower, upper) in zip(out.classes, out.volumes_mm3[0].tolist(), strict=True):
    print(f"{name:20} {lower:6.0f} to {upper:6.0f} mm^3")

# %% [markdown]
# Both images fit the measurement as well as its noise allows:

# %%
print(f"largest misfit {out.data_residual.max():.3f}, of noise alone {out.noise_residual[0]:.3f}")

# %% [markdown]
# ## Look at one tissue
#
# The uncertainty boundary is what lies in the upper segmentation and not in the lower one.

# %%
bounds = bounds_from_segmentations(out.segmentations, class_indices=(1, 2, 3, 4))
tissue = out.classes.index("tibial_cartilage")
images = {
    "undersampled": out.zero_filled[0],
    "lower": out.images[0, tissue, 0],
    "upper": out.images[0, tissue, 1],
    "fully sampled": scan.fully_sampled[0],
}
figure, axes = plt.subplots(1, 4, figsize=(12, 4), layout="constrained")
for axis, (title, image) in zip(axes, images.items(), strict=True):
    axis.imshow(image.abs(), cmap="gray", vmax=float(scan.fully_sampled.abs().quantile(0.995)))
    if title == "upper":
        axis.contourf(bounds.boundary[0, tissue], levels=[0.5, 1], colors=["orange"], alpha=0.7)
    axis.set_title(title)
    axis.set_axis_off()
