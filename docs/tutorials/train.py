# %% [markdown]
# # Train on your data
#
# Two scripts train the prior and the segmentation network, and a third puts them together. Here they train small
# networks on synthetic knees for seconds, to show the steps; networks trained for so short a time are of no use. For
# your own scans, bring them into the SKM-TEA layout and give their folder instead.

# %%
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from sgr_diffusers import SGRMRIPipeline, read_raw

n_steps = 25  # of each training; the bundled checkpoints took tens of thousands
clone = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "training").is_dir())
runs = Path(tempfile.mkdtemp())


def shell(command):
    """Run a command as a shell in the clone would."""
    python = shlex.quote(sys.executable)
    command = command.replace("python ", f"{python} ").replace("sgr ", f"{python} -m sgr_diffusers.cli ")
    done = subprocess.run(shlex.split(command), cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# %% [markdown]
# ## Data
#
# A data set has scans to train with, scans to choose settings with, and scans to test with.

# %%
shell(f"sgr synthesize {runs}/knee --scans 3 1 1 --matrix 12 48 40 --voxel-size 13 3.2 3.2 --coils 4 --echoes 1")

# %% [markdown]
# ## Two trainings
#
# Both write checkpoints, resume with `--resume-from-checkpoint latest`, and leave the weights that were averaged over
# the steps. `--max-train-minutes` ends a run by time.

# %%
common = f"--data-dir {runs}/knee --max-train-steps {n_steps} --train-batch-size 4 --lr-warmup-steps 2 --ema-decay 0"
shell(f"python training/train_prior.py {common} --output-dir {runs}/prior --block-out-channels 16 32")
shell(f"python training/train_segmentation.py {common} --output-dir {runs}/segmentation --channels 8 16 --strides 2")
record = json.loads((runs / "prior" / "training_record.json").read_text())
print(f"the prior has seen {record['images']} images in {record['steps']} steps")

# %% [markdown]
# ## A pipeline
#
# The last script writes the folder that `from_pretrained` loads and `sgr publish` uploads: networks, scheduler, a case
# to try, and a card made of the records. The first reconstruction warns that the images do not fit the measurement:
# so short a training leaves the prior without an idea of a knee.

# %%
shell(
    f"python training/assemble_pipeline.py --data-dir {runs}/knee --prior {runs}/prior "
    f"--segmentation {runs}/segmentation --output-dir {runs}/pipeline"
)
pipe = SGRMRIPipeline.from_pretrained(runs / "pipeline")
pipe.set_progress_bar_config(disable=True)
scan = read_raw(runs / "pipeline" / "case.h5", slices=[0], mask=4.0)
out = pipe(
    scan.kspace,
    scan.mask,
    coil_maps=scan.coil_maps,
    target="both",
    num_inference_steps=10,
    voxel_size_mm=scan.voxel_size_mm,
    generator=torch.Generator().manual_seed(0),
)
for name, (lower, upper) in zip(out.classes, out.volumes_mm3[0].tolist(), strict=True):
    print(f"{name:20} {lower:6.0f} to {upper:6.0f} mm^3")

# %% [markdown]
# The reconstruction beside the fully sampled image:

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.5), layout="constrained")
images = {
    "undersampled": out.zero_filled[0],
    "reconstruction": out.images[0, 0, 0],
    "fully sampled": scan.fully_sampled[0],
}
for axis, (title, image) in zip(axes, images.items(), strict=True):
    axis.imshow(image.abs(), cmap="gray", vmax=float(scan.fully_sampled.abs().quantile(0.995)))
    axis.set_title(title)
    axis.set_axis_off()
