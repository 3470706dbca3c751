"""The same knee without its findings: equal where there are none, with more tissue where one took it away."""

import numpy as np

from sgr_diffusers.data.skm_tea import SkmTeaScan, list_scans
from sgr_diffusers.data.synthetic.findings import labels_without_findings
from sgr_diffusers.data.synthetic.knee import SyntheticKneeConfig, write_synthetic_dataset
from sgr_diffusers.evaluation.slices import choose_data, parse_protocol


def test_what_a_finding_took_away(tmp_path):
    config = SyntheticKneeConfig((24, 32, 32), (6.0, 5.0, 4.5), 2, 1, finding_probability=1.0, accelerations=(4.0,))
    write_synthetic_dataset(tmp_path, (0, 0, 1), config, progress=False)
    scan = list_scans(tmp_path, "test")[0]
    assert len(scan.findings) == 4
    manual = scan.labels()
    shown = [int(n) for n in np.flatnonzero(manual.any(axis=(1, 2)))]
    without = {n: labels_without_findings(scan, n) for n in shown}
    taken = {n: int(((without[n] > 0) & (without[n] != manual[n])).sum()) for n in shown}
    assert sum((found > 0).sum() for found in without.values()) > (manual > 0).sum()
    assert sum(taken.values()) > 0

    data = choose_data(tmp_path, "test", parse_protocol("relevant", 5), (4.0,), n_finding_slices=2)
    most = sorted(taken, key=lambda n: (-taken[n], n))[:2]
    assert data.finding_slices == {scan.scan_id: tuple(sorted(n for n in most if taken[n]))}
    assert data.name.startswith("Synthetic knees")

    nothing = SkmTeaScan(**{**vars(scan), "findings": []})
    assert labels_without_findings(nothing, shown[0]) is None
    foreign = SkmTeaScan(**{**vars(scan), "scan_id": "MTR_001"})
    assert labels_without_findings(foreign, shown[0]) is None
