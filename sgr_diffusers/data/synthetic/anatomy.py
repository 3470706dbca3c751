"""Geometry of a synthetic knee: draws an anatomy from a seed and evaluates the implicit surfaces of its bones and soft
tissues (distances in mm, negative inside) at given points (mm).

Coordinates of the canonical knee, in mm, origin in the middle of the joint line:

====  ==========================================================
``u``  superior (+) to inferior (-); tibial plateau at about -1.5
``a``  anterior (-) to posterior (+)
``m``  medial (-) to lateral (+)
====  ==========================================================

Everything is evaluated slice by slice (``u`` is a number, ``a`` and ``m`` are 2-D arrays), so memory does not grow
with the number of slices and the anatomy does not depend on the matrix it is sampled on. Sizes follow manual labels of
the Osteoarthritis Initiative: femur 80 mm wide, patella 20 x 45 x 42 mm, tibia 75 x 52 mm, cartilage 2-4 mm.
"""

from dataclasses import dataclass

import numpy as np

FINDINGS = ("focal_defect", "thinning", "meniscus_tear", "effusion")
_STEP = np.float32(0.3)  # mm, finite differences for surface normals

# name: (u_top, u_bottom, (a, m) at top, (a, m) at bottom, (r_a, r_m) at top, (r_a, r_m) at bottom)
MUSCLES = {
    "gastrocnemius_medialis": (24, -95, (43, -13), (46, -20), (11, 13), (15, 25)),
    "gastrocnemius_lateralis": (22, -95, (43, 13), (44, 21), (11, 13), (14, 23)),
    "semimembranosus": (85, -8, (34, -26), (40, -33), (16, 18), (4, 5)),
    "semitendinosus": (85, 5, (50, -11), (51, -27), (10, 14), (3, 3)),
    "biceps_femoris": (85, -8, (38, 24), (30, 42), (16, 17), (5, 5)),
    "vastus_medialis": (85, 26, (-6, -36), (-17, -38), (32, 19), (10, 5)),
    "vastus_lateralis": (85, 42, (-10, 36), (-16, 37), (32, 18), (9, 4)),
    "vastus_intermedius": (85, 60, (-30, 0), (-27, 0), (11, 24), (4, 12)),
    "sartorius": (85, -25, (18, -47), (22, -45), (10, 6), (6, 3)),
    "popliteus": (-2, -48, (31, 12), (25, -6), (4, 11), (8, 17)),
    "tibialis_anterior": (-20, -95, (-10, 28), (-13, 27), (6, 6), (16, 13)),
    "soleus": (-42, -95, (34, 4), (32, 2), (4, 18), (12, 34)),
    "peroneus": (-24, -95, (8, 42), (8, 41), (5, 3), (13, 8)),
}


def smooth_min(x, y, width):
    """Return the union of two implicit surfaces with a fillet of about ``width`` mm."""
    blend = np.clip(0.5 + 0.5 * (y - x) / width, 0.0, 1.0)
    return y + (x - y) * blend - width * blend * (1.0 - blend)


def smooth_max(x, y, width):
    """Return the intersection of two implicit surfaces with a fillet of about ``width`` mm."""
    return -smooth_min(-x, -y, width)


def ellipsoid(offsets, radii, exponent=2.0):
    """Return the implicit ellipsoid (superellipsoid for other exponents), in mm near its surface."""
    total = sum((np.abs(o) / r) ** exponent for o, r in zip(offsets, radii, strict=True))
    return (total ** (1.0 / exponent) - 1.0) * min(radii)


def profile(u, levels, values):
    """Return the piecewise linear function of the level, in single precision."""
    return np.interp(u, levels, values).astype(np.float32)


def _rounded_section(a, m, half_a, half_m, exponent):
    """Implicit cylinder whose cross-section is a rounded rectangle that changes with the level."""
    total = (np.abs(a) / half_a) ** exponent + (np.abs(m) / half_m) ** exponent
    return (total ** (1.0 / exponent) - 1.0) * np.minimum(half_a, half_m)


def rotate(x, y, degrees):
    """Return the point (x, y) seen from axes turned by ``degrees``."""
    c, s = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    return c * x + s * y, c * y - s * x


class SmoothField:
    """A smooth random function of (u, a, m) with mean 0 and standard deviation 1: a sum of plane waves."""

    def __init__(self, rng, wavelength_mm, n_waves=10):
        """Draw directions, wavelengths (uniform in a range of mm) and phases."""
        direction = rng.normal(size=(n_waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wavelength = rng.uniform(*wavelength_mm, size=(n_waves, 1))
        self.waves = (2 * np.pi * direction / wavelength).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, n_waves).astype(np.float32)

    def __call__(self, u, a, m):
        """Values at positions in mm, arrays of one shape."""
        total = sum(np.cos(k[0] * u + k[1] * a + k[2] * m + p) for k, p in zip(self.waves, self.phases, strict=True))
        return total * float(np.sqrt(2.0 / len(self.phases)))


class Texture:
    """White noise on a lattice of ``cell_mm``, interpolated linearly: the same fine structure at every resolution."""

    def __init__(self, rng, cell_mm, extent_mm=(180.0, 170.0, 150.0)):
        """Draw the lattice; outside ``extent_mm`` it repeats."""
        self.cell_mm = np.broadcast_to(np.asarray(cell_mm, dtype=np.float32), 3)
        shape = tuple(int(np.ceil(e / c)) + 2 for e, c in zip(extent_mm, self.cell_mm, strict=True))
        self.values = rng.standard_normal(shape, dtype=np.float32)

    def __call__(self, u, a, m):
        """Values at positions in mm, arrays of one shape."""
        from scipy.ndimage import map_coordinates

        u = np.broadcast_to(np.float32(u), np.shape(a))
        index = [p / c + n / 2 for p, c, n in zip((u, a, m), self.cell_mm, self.values.shape, strict=True)]
        return map_coordinates(self.values, index, order=1, mode="wrap")


@dataclass
class Surface:
    """An implicit surface on one slice: signed distance in mm and the components of its unit normal."""

    distance: np.ndarray
    normal_u: np.ndarray
    normal_a: np.ndarray
    normal_m: np.ndarray


def _to_single_precision(knee):
    """Turn numpy float64 parameters, which would promote every float32 slice, into floats and float32 arrays."""
    for name, value in vars(knee).items():
        if isinstance(value, np.floating):
            setattr(knee, name, float(value))
        elif isinstance(value, np.ndarray):
            setattr(knee, name, value.astype(np.float32))
        elif isinstance(value, dict):
            setattr(knee, name, {k: float(v) if isinstance(v, np.floating) else v for k, v in value.items()})
    knee.muscle_jitter = {
        k: (shift.astype(np.float32), size.astype(np.float32)) for k, (shift, size) in knee.muscle_jitter.items()
    }


class Knee:
    """One person's knee, drawn from a random generator.

    Args:
        rng: source of all variation; the same state gives the same knee.
        finding_probability: probability of each of :data:`FINDINGS`, independently.
    """

    def __init__(self, rng: np.random.Generator, finding_probability: float = 0.12):
        """Draw all parameters."""
        n, u = rng.normal, rng.uniform
        self.side = "right" if rng.random() < 0.5 else "left"
        self.scale = np.clip(n(1.0, 0.055), 0.88, 1.10) * np.exp(n(0.0, 0.02, 3))
        self.tilt = np.clip(n(0.0, [4.0, 3.0, 5.0]), -9, 9)  # degrees: flexion, varus/valgus, rotation in the scanner
        self.offset = n(0.0, [4.0, 2.0, 2.0])
        self.warp = [SmoothField(rng, (45.0, 130.0)) for _ in range(3)]
        self.warp_mm = u(0.8, 1.8)
        self.tibia_shift, self.tibia_turn = n(0.0, [0.3, 1.5, 1.2]), n(0.0, 4.0)
        self.patella_shift, self.patella_tilt = n(0.0, [3.5, 0.5, 2.0]), n(0.0, 5.0)
        self.patella_radii = np.array([21.0, 11.5, 22.5]) * np.exp(n(0.0, 0.06, 3))
        self.groove_mm, self.groove_width_mm = u(5.5, 9.0), u(8.0, 12.0)
        self.notch_mm = u(9.0, 12.0)
        self.condyle_scale = np.exp(n(0.0, 0.04, (2, 3)))
        self.eminence_mm = u(5.0, 8.5)
        self.thickness_mm = {
            "femoral": np.clip(n(2.5, 0.3), 1.9, 3.3),
            "tibial": np.clip(n(2.6, 0.3), 1.9, 3.4),
            "patellar": np.clip(n(3.0, 0.4), 2.1, 4.0),
        }
        self.thickness_field = {name: SmoothField(rng, (16.0, 50.0)) for name in self.thickness_mm}
        self.border_field = SmoothField(rng, (14.0, 40.0))
        self.meniscus_height_mm, self.meniscus_width = u(4.2, 6.2), u(0.32, 0.44)
        self.leg_radii = np.array([u(53.0, 59.0), u(51.0, 58.0)])
        self.fat_mm, self.fat_phase, self.fat_field = u(4.0, 12.0), u(0, 2 * np.pi), SmoothField(rng, (30.0, 90.0))
        self.muscle_jitter = {name: (n(0, 1.5, 2), np.exp(n(0, 0.08, 2))) for name in MUSCLES}
        self.vessel_shift = n(0.0, 2.0, (8, 2))
        self.fluid_mm = u(0.4, 1.6)
        self.ligament_shift = n(0.0, 1.2, (6, 2))
        self.findings = self._draw_findings(rng, finding_probability)
        _to_single_precision(self)

    def _draw_findings(self, rng, probability):
        """Rare findings as plain dictionaries, so that they can be written to the annotations."""
        present = rng.random(len(FINDINGS)) < probability
        findings = []
        if present[0]:
            tissue = str(rng.choice(["femoral", "femoral", "tibial", "patellar"]))
            side = rng.choice([-1.0, 1.0])
            centre = {
                "femoral": [rng.uniform(3, 14), rng.uniform(-12, 18), side * rng.uniform(16, 28)],
                "tibial": [0.0, rng.uniform(-8, 12), side * rng.uniform(16, 26)],
                "patellar": [36 + rng.uniform(-9, 9), -31.0, rng.uniform(-11, 11)],
            }[tissue]
            findings.append(
                {
                    "type": "focal_defect",
                    "tissue": f"{tissue}_cartilage",
                    "centre_mm": [round(float(c), 1) for c in centre],
                    "radius_mm": round(rng.uniform(4.5, 8.5), 1),
                    "depth": round(rng.uniform(0.6, 1.0), 2),
                }
            )
        if present[1]:
            tissue = str(rng.choice(["femoral", "tibial", "patellar"]))
            compartment = str(rng.choice(["medial", "lateral"]))
            findings.append(
                {
                    "type": "thinning",
                    "tissue": f"{tissue}_cartilage",
                    "compartment": compartment,
                    "depth": round(rng.uniform(0.3, 0.6), 2),
                }
            )
        if present[2]:
            findings.append(
                {
                    "type": "meniscus_tear",
                    "tissue": "meniscus",
                    "compartment": str(rng.choice(["medial", "lateral"])),
                    "angle_deg": round(rng.uniform(-120, 120), 0),
                    "width_mm": round(rng.uniform(2.0, 4.5), 1),
                }
            )
        if present[3]:
            findings.append({"type": "effusion", "tissue": "joint_fluid", "depth_mm": round(rng.uniform(3.0, 7.0), 1)})
        return findings

    def finding(self, kind):
        """Return the finding of a kind out of :data:`FINDINGS`, or None."""
        return next((f for f in self.findings if f["type"] == kind), None)

    # -- coordinates ---------------------------------------------------------------------------------------------

    def canonical(self, u, a, m):
        """Turn scanner coordinates (mm; ``m`` grows towards the patient's left) into this knee's canonical ones."""
        if self.side == "right":
            m = -m
        u, a, m = (p - o for p, o in zip((u, a, m), self.offset, strict=True))
        u, a = rotate(u, a, self.tilt[0])
        u, m = rotate(u, m, self.tilt[1])
        a, m = rotate(a, m, self.tilt[2])
        u, a, m = (p / s for p, s in zip((u, a, m), self.scale, strict=True))
        return tuple(p + self.warp_mm * w(u, a, m) for p, w in zip((u, a, m), self.warp, strict=True))

    # -- bones ---------------------------------------------------------------------------------------------------

    def femur(self, u, a, m):
        """Return the implicit femur: metaphysis, two condyles, trochlea with its groove, intercondylar notch."""
        half_m = profile(u, [10, 22, 32, 42, 50, 62, 78, 95], [28, 36, 38, 36, 32, 23, 17, 15])
        half_a = profile(u, [10, 22, 32, 42, 50, 62, 78, 95], [13, 17, 20, 21, 20, 17, 14.5, 14])
        centre = profile(u, [20, 35, 50, 90], [3.0, 0.5, -3.0, -1.0])
        body = _rounded_section(a - centre, m, half_a, half_m, 3.0)
        body = smooth_max(body, 20.0 - u, 6.0)
        for side, (centre_u, centre_a), s in zip(
            (-1.0, 1.0), ((24.5, 9.0), (25.0, 7.0)), self.condyle_scale, strict=True
        ):
            x, y = rotate(a - centre_a, m - side * 23.0, side * 9.0)
            condyle = ellipsoid((u - centre_u, x, y), (20.5 * s[0], 27.0 * s[1], 14.5 * s[2]), 2.4)
            body = smooth_min(body, condyle, 5.0)
        groove = self.groove_mm * np.exp(-0.5 * ((m - 1.5) / self.groove_width_mm) ** 2) * np.clip((56 - u) / 14, 0, 1)
        trochlea = ellipsoid((u - 29.5, a - groove + 13.0 + 0.05 * m, m - 1.0), (19.5, 15.5, 33.0), 3.4)
        body = smooth_min(body, trochlea, 5.0)
        notch = ellipsoid((u - 8.0, a - 26.0, m), (27.0, 33.0, self.notch_mm), 2.2)
        return smooth_max(body, -notch, 4.0)

    def tibia(self, u, a, m):
        """Return the implicit tibia: plateau with two shallow dishes and the eminence, tuberosity, shaft."""
        u, a, m = u - self.tibia_shift[0], a - self.tibia_shift[1], m - self.tibia_shift[2]
        a, m = rotate(a, m, self.tibia_turn)
        levels = [-95, -60, -42, -27, -14, -4, 5]
        half_m = profile(u, levels, [14, 16.5, 23, 32, 37, 37.5, 36])
        half_a = profile(u, levels, [14, 16.5, 20, 24, 26, 26, 25])
        centre = profile(u, levels, [-4, -4, -2, 1, 3.5, 4.5, 4.5])
        side = _rounded_section(a - centre, m, half_a, half_m, 2.5)
        side = smooth_max(side, -ellipsoid((u + 5.0, a - 36.0, m), (30.0, 12.0, 11.0)), 4.0)
        side = smooth_min(side, ellipsoid((u + 36.0, a + 19.0, m - 2.0), (15.0, 8.0, 9.0)), 4.0)
        dishes = sum(1.6 * np.exp(-0.5 * (((a - 4) / 12) ** 2 + ((m - s * 21) / 8) ** 2)) for s in (-1.0, 1.0))
        spines = sum(np.exp(-0.5 * (((a - 4) / 7) ** 2 + ((m - s * 4.5) / 3.2) ** 2)) for s in (-1.0, 1.0))
        top = -1.0 - dishes + self.eminence_mm * spines - 0.10 * (a - 4)
        return smooth_max(side, u - top, 3.0)

    def patella(self, u, a, m):
        """Return the implicit patella: flat in front, a wedge of two facets behind."""
        centre = np.array([36.0, -41.0, 1.5], np.float32) + self.patella_shift
        u, a, m = u - centre[0], a - centre[1], m - centre[2]
        a, m = rotate(a, m, self.patella_tilt)
        r_u, r_a, r_m = self.patella_radii
        front = (np.abs(u) / r_u) ** 2.2 + (np.abs(a) / r_a) ** 2.4 + (np.abs(m) / r_m) ** 2.4
        ridge = 1.0 - 0.45 * np.clip(np.abs(m) / r_m, 0, 1)
        back = (np.abs(u) / r_u) ** 2.2 + (np.abs(a) / (r_a * ridge)) ** 2.4 + (np.abs(m) / r_m) ** 2.4
        return (np.where(a > 0, back, front) ** (1 / 2.3) - 1.0) * r_a

    def fibula(self, u, a, m):
        """Return the implicit fibula: head behind the lateral plateau, thin shaft."""
        radius = profile(u, [-95, -50, -32, -22, -14, -9], [6.0, 5.5, 7.5, 10.5, 7.0, 0.5])
        centre_a, centre_m = profile(u, [-95, -20], [15.0, 22.0]), profile(u, [-95, -20], [33.0, 36.0])
        return np.maximum(np.hypot(a - centre_a, m - centre_m) - radius, u + 9.0)

    @staticmethod
    def surface(implicit, u, a, m):
        """Return distance in mm from the first-order formula f / |grad f|, and the normal, of an implicit function."""
        f = implicit(u, a, m)
        g_u = (implicit(u + _STEP, a, m) - f) / _STEP
        g_a = (implicit(u, a + _STEP, m) - f) / _STEP
        g_m = (implicit(u, a, m + _STEP) - f) / _STEP
        norm = np.sqrt(g_u**2 + g_a**2 + g_m**2) + 1e-3
        return Surface(f / np.maximum(norm, 0.25), g_u / norm, g_a / norm, g_m / norm)
