"""Calibrated bounds: intervals that hold the volume of a new scan with a stated probability (coverage).

| module         | what it does                                                                                      |
|----------------|---------------------------------------------------------------------------------------------------|
| `scores`       | measures how far the reference volume of each calibration scan lies from its point estimate       |
| `quantiles`    | takes quantiles of these scores for each acceleration, mask family and class; gives the intervals |
| `risk_control` | chooses the strength of guidance for a bounded overlap error                                      |
| `baselines`    | makes intervals of unguided samples, to compare with                                              |
| `coverage`     | says how much the coverage varies between calibration sets, and what a test set shows             |
| `record`       | reads and writes `calibration.json`, and refuses a call that the calibration does not hold for    |

From the volumes of the calibration scans to the interval of a new scan:

```python
from sgr_diffusers.calibration.quantiles import Group, calibrate
from sgr_diffusers.calibration.record import Calibration
from sgr_diffusers.calibration.scores import ScanVolumes

volumes = {Group(8.0, "poisson", (7.9, 8.1)): ScanVolumes(ids, class_names, point, lower, upper, reference, voxel)}
quantiles = calibrate(volumes, [0.8, 0.9])
Calibration(quantiles, settings, splits, "fully_sampled", "all slices", (2, 2), seed, versions).save(checkpoint)

calibration = Calibration.load(checkpoint)
calibration.check_settings(settings_of_this_call)
quantiles = calibration.quantiles_for(0.9, measured_acceleration, "poisson")
low, high = quantiles.interval(point_mm3, lower_mm3, upper_mm3, voxel_mm3)
```

The guarantee needs scans that are exchangeable: the new scan comes from the same population as the calibration scans
and is measured, reconstructed and segmented in the same way. It needs nothing of the networks.
"""
