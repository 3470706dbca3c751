"""What a scanner adds to a picture of the body: receive coils, and the step to k-space and back, in numpy."""

from itertools import pairwise

import numpy as np

__all__ = ["centred", "coil_maps", "fft2c", "ifft2c", "loop_sensitivities"]


def loop_sensitivities(
    u_mm: float, a_mm: np.ndarray, m_mm: np.ndarray, n_coils: int, *, radius_mm: float = 88.0, n_segments: int = 24
) -> np.ndarray:
    """Return the receive fields of circular loops around a leg or a head, by the law of Biot and Savart.

    Args:
        u_mm: position along the body (and B0).
        a_mm: positions along y, shape (y,).
        m_mm: positions along x, shape (x,).
        n_coils: number of loops; up to 8 in one ring, more in two rings 70 mm apart.
        radius_mm: distance of the loops from the axis of the body.
        n_segments: number of straight pieces that a loop is cut into.

    Returns:
        Transverse field B_a - i B_l of each loop, complex64, shape (coil, y, x), in arbitrary units.
    """
    n_rings = 1 if n_coils <= 8 else 2
    per_ring = -(-n_coils // n_rings)
    loop_radius = 1.15 * np.pi * radius_mm / max(per_ring, 4)  # neighbours overlap a little
    a, m = np.meshgrid(a_mm, m_mm, indexing="ij")
    points = np.stack([np.full_like(a, u_mm), a - 4.0, m], axis=-1)
    turn = np.linspace(0, 2 * np.pi, n_segments + 1)
    maps = np.empty((n_coils, *a.shape), np.complex64)
    for coil in range(n_coils):
        ring, number = divmod(coil, per_ring)
        angle = 2 * np.pi * (number + 0.5 * ring) / per_ring
        outward = np.array([0.0, np.cos(angle), np.sin(angle)])
        around, along = np.array([0.0, -np.sin(angle), np.cos(angle)]), np.array([1.0, 0.0, 0.0])
        centre = radius_mm * outward + (ring - 0.5 * (n_rings - 1)) * 70.0 * along
        wire = centre + loop_radius * (np.cos(turn)[:, None] * around + np.sin(turn)[:, None] * along)
        field = np.zeros_like(points)
        for start, end in pairwise(wire):
            r = points - 0.5 * (start + end)
            # 8 mm of conductor width keep the field finite outside the body
            field += np.cross(end - start, r) / ((r**2).sum(-1, keepdims=True) + 64.0) ** 1.5
        maps[coil] = field[..., 1] - 1j * field[..., 2]
    return maps


def coil_maps(
    u_mm: float, a_mm: np.ndarray, m_mm: np.ndarray, n_coils: int, *, radius_mm: float = 88.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coil sensitivity maps of loops around the body, and the shading that they leave in an image.

    Args:
        u_mm: position along the body (and B0).
        a_mm: positions along y, shape (y,).
        m_mm: positions along x, shape (x,).
        n_coils: number of loops.
        radius_mm: distance of the loops from the axis of the body.

    Returns:
        Maps with unit sum of squares, complex64, shape (coil, y, x); and the shading, float32, shape (y, x), 1 in the
        middle.
    """
    from scipy.interpolate import make_interp_spline

    # receive fields are smooth on this scale: compute on about 5 mm, interpolate by cubic splines along each axis
    coarse = [np.linspace(p[0], p[-1], max(int(np.ptp(p) / 5.0), 8)).astype(np.float32) for p in (a_mm, m_mm)]
    order = [np.argsort(c) for c in coarse]
    weights = [
        make_interp_spline(c[o], np.eye(len(c))[o], k=3)(p).astype(np.float32)
        for c, o, p in zip(coarse, order, (a_mm, m_mm), strict=True)
    ]
    fields = weights[0] @ loop_sensitivities(u_mm, coarse[0], coarse[1], n_coils, radius_mm=radius_mm) @ weights[1].T
    root = np.sqrt((np.abs(fields) ** 2).sum(0))
    return (fields / root).astype(np.complex64), (root / root[len(a_mm) // 2, len(m_mm) // 2]).astype(np.float32)


def centred(n: int, size: int) -> slice:
    """Return the centred piece of ``size`` out of ``n``, with the zero frequency (index n // 2) kept at its centre."""
    start = n // 2 - size // 2
    return slice(start, start + size)


def fft2c(x: np.ndarray) -> np.ndarray:
    """Return the centred orthonormal Fourier transform of the last two axes."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes=axes), norm="ortho"), axes=axes)


def ifft2c(x: np.ndarray) -> np.ndarray:
    """Return the inverse of `fft2c`."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(x, axes=axes), norm="ortho"), axes=axes)
