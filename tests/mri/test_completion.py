import torch

from sgr_diffusers.mri.completion import complete_kspace
from tests.mri.test_coils import simulate


def test_kspace_of_smooth_coils_is_completed():
    kspace = simulate((48, 40), n_coils=2)[0][:, 17:31, 13:27].to(torch.complex128)
    is_measured = torch.rand(14, 14, generator=torch.Generator().manual_seed(0)) < 0.5
    is_measured[3:11, 3:11] = True
    completed = complete_kspace(kspace, is_measured)
    assert torch.equal(completed[:, is_measured], kspace[:, is_measured])
    missing = kspace[:, ~is_measured]
    assert (completed[:, ~is_measured] - missing).norm() < 0.6 * missing.norm()
    assert torch.equal(completed, complete_kspace(kspace * is_measured, is_measured))
