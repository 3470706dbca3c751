"""What one visitor may ask of the machine; the errors that say so."""

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
        max_upload_mb: largest file that is accepted, in MB of 10^6 bytes.
        max_content_mb: most that the arrays of a file may take once they are unpacked: a small file can hold much.
        max_pixels: of a slice, summed over its coils.
        max_pixels_without_maps: the same, of a file without coil maps, whose estimate cannot be stopped half-way;
            above 16 coils, it is lower by their number over 16.
        max_minutes: longest reconstruction, the estimate of the maps included.
        max_steps: most reverse steps to choose.
        max_queue: most visitors who wait for their turn; more are turned away.
        keep_seconds: how long uploads and results are kept on disk.
    """

    max_upload_mb: int | float = 500
    max_content_mb: int | float = 2000
    max_pixels: int = 2**25
    max_pixels_without_maps: int = 2**20
    max_minutes: int | float = 10
    max_steps: int = 100
    max_queue: int = 20
    keep_seconds: int = 3600

    def __post_init__(self) -> None:
        """Check that every limit is positive.

        Raises:
            ValueError: one is not.
        """
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
