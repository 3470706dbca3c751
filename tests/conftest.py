"""Shared fixtures; switches on run-time checks of the jaxtyping annotations for everything the tests import."""

import torch
from jaxtyping import install_import_hook

install_import_hook("sgr_diffusers", "beartype.beartype")
torch.set_num_threads(2)
