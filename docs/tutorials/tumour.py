# %% [markdown]
# # A brain tumour: how small could it be?
#
# The checkpoint `brain_tumour` bounds tumours in slices of real heads whose acquisition is simulated. The images are
# public, but do not come with this package. Download J. Cheng's data set (figshare 1512427, CC BY 4.0) and bring it
# into the layout of this package once:
#
# ```bash
# sgr data import-brain-tumour downloads/brain_tumor --output runs/brain_tumour
# ```
#
# This is research on pictures. It says nothing about a patient.

# %%
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from sgr_diffusers import SGRMRIPipeline, bounds_from_segmentations, read_raw
from sgr_diffusers.data.skm_tea import list_scans
from sgr_diffusers.pretrained import BRAIN_TUMOUR

data = Path(os.environ.get("BRAIN_TUMOUR_DATA", "runs/brain_tumour"))
n_steps = 25
if not data.is_dir():
    sys.exit(f"There is no data set in {data}. Import it as above, or set BRAIN_TUMOUR_DATA to its folder.")

# %% [markdown]
# ## A patient of the test split
#
# Neither the networks nor the calibration have seen these patients. Each has one slice. `mask=8.0` keeps an eighth of
# the samples.

# %%
file = list_scans(data, "test")[0].kspace_file
scan = read_raw(file, mask=8.0)
pipe = SGRMRIPipeline.from_pretrained(BRAIN_TUMOUR)
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## The smallest and the largest tumour that the measurement allows

# %%
out = pipe(
    scan.kspace,
    scan.mask,
    coil_maps=scan.coil_maps,
    target="both",
    num_inference_steps=n_steps,
    voxel_size_mm=scan.voxel_size_mm,
    generator=torch.Generator().manual_seed(0),
)
lower, upper = out.volumes_mm3[0, 0].tolist()
print(f"tumour in this slice: {lower:.0f} to {upper:.0f} mm^3")

# %% [markdown]
# ## An interval with a stated coverage
#
# Among patients like those of the calibration, the interval holds the tumour's volume in at least 90 % of the cases.
# The images show what its two ends would look like.

# %%
calibrated = pipe(
    scan.kspace,
    scan.mask,
    coil_maps=scan.coil_maps,
    target="both",
    coverage=0.9,
    voxel_size_mm=scan.voxel_size_mm,
    generator=torch.Generator().manual_seed(0),
)
low, high = calibrated.target_volumes_mm3[0].tolist()
best = float(calibrated.point_estimates_mm3[0])
print(f"in 90 % of such patients between {low:.0f} and {high:.0f} mm^3; best estimate {best:.0f} mm^3")
print(f"shown by an image: lower end {calibrated.attained[0, 0]}, upper end {calibrated.attained[0, 1]}")

# %%
bounds = bounds_from_segmentations(out.segmentations, class_indices=(1,))
images = {"undersampled": out.zero_filled[0], "smallest": out.images[0, 0, 0], "largest": out.images[0, 0, 1]}
figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for axis, (title, image) in zip(axes, images.items(), strict=True):
    axis.imshow(image.abs(), cmap="gray", vmax=float(out.images[0, 0, 0].abs().quantile(0.995)))
    if title != "undersampled":
        axis.contour(getattr(bounds, {"smallest": "lower", "largest": "upper"}[title])[0, 0], [0.5], colors=["orange"])
    axis.set_title(title)
    axis.set_axis_off()
