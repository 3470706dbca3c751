"""Find out what the processor of this machine does fast."""

from pathlib import Path

__all__ = ["has_fast_bfloat16"]

_CPU_INFO = Path("/proc/cpuinfo")
_FAST_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is that of Arm


def has_fast_bfloat16() -> bool | None:
    """Return whether the processor multiplies bfloat16 in hardware; `None` where the system does not say.

    Without, a network in bfloat16 takes about 20 times as long as in float32.
    """
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return None
    flags = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return bool(_FAST_FLAGS.intersection(flags[0])) if flags else None
