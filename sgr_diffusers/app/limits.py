"""Defines the limits on what one visitor may ask of the machine, and the errors raised at these limits."""

from dataclasses import dataclass

__all__ = ["AppLimits", "RunRefused", "RunStopped"]


class RunStopped(Exception):
    """The visitor stopped the run, or left."""


class RunRefused(ValueError):
    """A run would take, or took, longer than it may."""


@dataclass(frozen=True)
class AppLimits:
    """Limits of the app.

    Attributes:
        max_upload_mb: size of the largest file that is accepted, in MB of 10^6 bytes.
        max_content_mb: largest total size of the arrays of a file once they are unpacked, in MB: a small file can hold
            much.
        max_pixels: largest number of pixels of a slice, summed over its coils.
        max_pixels_without_maps: the same number for a file without coil maps, whose estimate takes long; above 16
            coils, it is lower by their number over 16.
        max_reading_seconds: longest time in seconds for looking into a file, or for reading a slice; then the process
            that reads is killed.
        max_reading_mb: most memory that reading may take, in MB.
        max_minutes: longest duration of a reconstruction in minutes, the estimate of the maps included; then its
            process is killed.
        max_run_mb: most memory that a reconstruction may take on a CPU, in MB, the networks included.
        max_steps: largest number of reverse steps that can be chosen.
        max_slices: largest number of slices of a file for a calibrated interval, which is of all of them together.
        max_queue: largest number of visitors who wait for their turn; more are turned away.
        keep_seconds: time for which uploads and results are kept on disk, in seconds.
    """

    max_upload_mb: int | float = 500
    max_content_mb: int | float = 2000
    max_pixels: int = 2**25
    max_pixels_without_maps: int = 2**20
    max_reading_seconds: int | float = 60
    max_reading_mb: int | float = 8000
    max_minutes: int | float = 10
    max_run_mb: int | float = 16000
    max_steps: int = 100
    max_slices: int = 4
    max_queue: int = 20
    keep_seconds: int = 3600

    def __post_init__(self) -> None:
        """Check that every limit is positive.

        Raises:
            ValueError: a limit is not positive.
        """
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
