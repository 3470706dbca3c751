# %% [markdown]
# # Compare with L1-wavelet and with repeated reconstruction
#
# Two questions: is the picture better than that of a classical method, and do guided bounds say more than repeating a
# plain reconstruction? One slice of a synthetic knee only shows how to compare. The page of results has many scans.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sigpy.mri.app import L1WaveletRecon

from sgr_diffusers import SGRMRIPipeline, bounds_from_samples, bounds_from_segmentations, read_raw
from sgr_diffusers.pretrained import PRETRAINED

n_steps, n_samples = 25, 16
scan = read_raw(PRETRAINED / "case.h5", slices=[1], mask=8.0)
pipe = SGRMRIPipeline.from_pretrained(PRETRAINED)
pipe.set_progress_bar_config(disable=True)
call = {"coil_maps": scan.coil_maps, "num_inference_steps": n_steps}


def seeded(seed=0):
    """Return a generator of its own for each call."""
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The picture
#
# L1-wavelet has a weight that has to be chosen. Here it is the best of four, judged by the fully sampled image, which
# a user would not have. The mean of two samples with opposite noise is close to the posterior mean.


# %%
def error(image):
    """Return the error relative to the norm of the fully sampled image."""
    return float(torch.linalg.norm(image - scan.fully_sampled[0]) / torch.linalg.norm(scan.fully_sampled[0]))


mean = pipe(scan.kspace, scan.mask, target="none", num_samples=2, combine="mean", generator=seeded(), **call)
scale = float(mean.scale[0])
kspace, maps, mask = (scan.kspace[0] / scale).numpy(), scan.coil_maps[0].numpy(), scan.mask.float().numpy()
wavelets = [
    torch.from_numpy(L1WaveletRecon(kspace, maps, weight, weights=mask, show_pbar=False).run()) * scale
    for weight in (1e-3, 3e-3, 1e-2, 3e-2)
]
images = {
    "undersampled": mean.zero_filled[0],
    "L1-wavelet": min(wavelets, key=error),
    "mean of two samples": mean.images[0, 0, 0],
    "fully sampled": scan.fully_sampled[0],
}
figure, axes = plt.subplots(1, 4, figsize=(12, 4), layout="constrained")
for axis, (title, image) in zip(axes, images.items(), strict=True):
    axis.imshow(image.abs(), cmap="gray", vmax=float(scan.fully_sampled.abs().quantile(0.995)))
    axis.set_title(f"{title}, error {error(image):.3f}")
    axis.set_axis_off()

# %% [markdown]
# ## The bounds
#
# Repeated reconstruction takes the smallest and the largest of many plain samples. Guided bounds search for them.

# %%
samples = pipe(scan.kspace, scan.mask, target="none", num_samples=n_samples, batch_size=8, generator=seeded(), **call)
guided = pipe(scan.kspace, scan.mask, target="both", generator=seeded(), **call)
labels = (1, 2, 3, 4)
repeated = bounds_from_samples(samples.segmentations[:, 0], labels, scan.voxel_size_mm)
searched = bounds_from_segmentations(guided.segmentations, labels, voxel_size_mm=scan.voxel_size_mm)
for number, name in enumerate(guided.classes):
    texts = [
        f"{float(bounds.lower_volume_mm3[0, number]):5.0f} to {float(bounds.upper_volume_mm3[0, number]):5.0f} mm^3"
        for bounds in (repeated, searched)
    ]
    print(f"{name:20} repeated {texts[0]}, guided {texts[1]}")

# %% [markdown]
# The same as a picture: thin bars are of repeated reconstruction, thick bars of guided bounds.

# %%
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
places = np.arange(len(guided.classes))
for bounds, height, text in ((searched, 0.6, "guided"), (repeated, 0.25, f"extremes of {n_samples} samples")):
    lower, upper = bounds.lower_volume_mm3[0].numpy(), bounds.upper_volume_mm3[0].numpy()
    axis.barh(places, upper - lower, left=lower, height=height, label=text)
axis.set_yticks(places, [name.replace("_", " ") for name in guided.classes])
axis.invert_yaxis()
axis.set_xlabel("volume in mm³")
axis.legend()
