"""Renders the image of a water-excited qDESS scan, and its labels, from an `anatomy.Knee` at given pixel positions.

Intensities are relative to the 0.99 quantile of a slice and follow what qDESS knees look like: marrow 0.05-0.15 with
trabeculae, cortex, ligaments, tendons and menisci 0-0.2, suppressed fat 0.1-0.25 with brighter septa, muscle 0.6-0.95
in bellies with fascicles, cartilage 0.5-0.9 in layers, fluid 0.9 and above, vessels as bright discs.
"""

import numpy as np

from .anatomy import MUSCLES, Knee, SmoothField, Texture, ellipsoid, profile, smooth_max, smooth_min
from .canvas import BLURRED_MM, REGIONS, SHARP_MM, Canvas, coverage_of

# labels of the SKM-TEA files
LABELS = {
    "patellar": 1,
    "femoral": 2,
    "tibial_medial": 3,
    "tibial_lateral": 4,
    "meniscus_medial": 5,
    "meniscus_lateral": 6,
}


class KneeRenderer:
    """Paints one knee, slice by slice; memory does not depend on the number of slices.

    Args:
        knee: the anatomy.
        rng: source of textures and signal levels.
    """

    def __init__(self, knee: Knee, rng: np.random.Generator):
        """Draw textures and signal levels."""
        self.knee = knee
        self.fine = Texture(rng, 1.1)
        self.fascicles = Texture(rng, (6.0, 1.5, 1.5))
        self.coarse = [SmoothField(rng, (12.0, 40.0)) for _ in range(3)]
        self.septa = SmoothField(rng, (7.0, 16.0), n_waves=14)
        u = rng.uniform
        self.level = {
            "marrow": u(0.07, 0.12),
            "fat": u(0.14, 0.20),
            "muscle": u(0.66, 0.85),
            "cartilage": u(0.62, 0.76),
            "fluid": u(0.98, 1.2),
            "meniscus": u(0.04, 0.10),
            "skin": u(0.28, 0.45),
            "vessel": u(0.85, 1.15),
        }
        self.belly_level = {name: float(rng.normal(1.0, 0.06)) for name in MUSCLES}
        self.flow_ghost = u(0.0, 0.06)

    def render(self, u: float, a: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Paint the slice at height ``u``.

        Args:
            u: superior-inferior position in scanner coordinates, mm.
            a: anterior-posterior positions, mm, shape (y, x).
            m: left-right positions, mm, shape (y, x).

        Returns:
            Magnitudes of echo 1 and echo 2, shape (y, x), and for each file label present the area fraction in [0, 1],
            shape (y, x).
        """
        knee = self.knee
        self.position = u, a, m = knee.canonical(np.full_like(a, u), a, m)
        bones = {name: knee.surface(getattr(knee, name), u, a, m) for name in ("femur", "tibia", "patella", "fibula")}
        cartilage, depth = self._cartilage(bones)
        menisci, tear = self._menisci(bones, cartilage)
        canvas = Canvas(a.shape)
        self.regions = canvas.regions
        self._soft_tissue(canvas, bones, cartilage)
        self._fluid(canvas, bones, cartilage)
        self._bones(canvas, bones)
        labels = {}
        for name, d in cartilage.items():
            value = self.level["cartilage"] * (
                0.78 + 0.38 * np.clip(depth[name], 0, 1) + 0.05 * self.fine(u, a, m) * 0.6
            )
            value = value + 0.05 * self.coarse[0](u, a, m)
            canvas.paint(d, value, "cartilage", SHARP_MM, f"{name}_cartilage")
        for d in menisci.values():
            # synovium and a film of fluid outline the menisci
            canvas.paint(d - 0.9, 0.5 * self.level["fluid"], "fluid", 0.5, "meniscus_rim")
        for name, d in menisci.items():
            value = self.level["meniscus"] + 0.05 * np.abs(self.fine(u, a, m)) + 0.04 * self.coarse[1](u, a, m)
            canvas.paint(d, value, "dark", 0.5, "meniscus")
            labels[LABELS[f"meniscus_{name}"]] = coverage_of(d)
        if tear is not None:
            canvas.paint(tear, 0.9 * self.level["fluid"], "fluid", 0.5, "fluid")
        for name, d in cartilage.items():
            if name == "tibial":
                labels[LABELS["tibial_medial"]] = coverage_of(d) * (m < 0)
                labels[LABELS["tibial_lateral"]] = coverage_of(d) * (m >= 0)
            else:
                labels[LABELS[name]] = coverage_of(d)
        self._flow_artefact(canvas)
        return np.maximum(canvas.image, 0), np.maximum(canvas.image * canvas.echo_2, 0), labels

    # -- tissues that are segmented --------------------------------------------------------------------------------

    def _thickness(self, name, normal_gate):
        """Cartilage thickness in mm: smooth variation, taper to the border of the articular surface, findings."""
        knee, (u, a, m) = self.knee, self.position
        thickness = knee.thickness_mm[name] * (1.0 + 0.16 * knee.thickness_field[name](u, a, m))
        thickness = thickness * np.clip(normal_gate, 0.0, 1.0) ** 0.6
        defect, thinning = knee.finding("focal_defect"), knee.finding("thinning")
        if defect and defect["tissue"].startswith(name):
            du, da, dl = (p - c for p, c in zip((u, a, m), defect["centre_mm"], strict=True))
            distance = np.sqrt(du**2 + da**2 + dl**2)
            thickness = thickness * (
                1.0 - defect["depth"] * np.clip((defect["radius_mm"] - distance) / 2.0 + 0.5, 0, 1)
            )
        if thinning and thinning["tissue"].startswith(name):
            side = -1.0 if thinning["compartment"] == "medial" else 1.0
            thickness = thickness * (1.0 - thinning["depth"] * np.clip(0.5 + side * m / 8.0, 0, 1))
        return thickness

    def _cartilage(self, bones):
        """Implicit cartilage sheets (mm) and relative depth (0 at the bone, 1 at the surface)."""
        u, a, m = self.position
        border = 1.5 * self.knee.border_field(u, a, m)
        femur, tibia, patella = bones["femur"], bones["tibia"], bones["patella"]
        # the articular surface of the femur: trochlea in front (up to u = 38), below, and the back of the condyles,
        # but neither the outer sides nor the walls of the notch
        facing = np.maximum(-femur.normal_u * 1.25, np.abs(femur.normal_a))
        lateral = np.where(u < 11.0, 0.55, 1.0) * np.abs(femur.normal_m)
        front = (39.0 - u + border) / 5.0 * np.where(a < 4.0, 1.0, 99.0)
        back = (40.0 - u + border) / 5.0 * np.where(a >= 4.0, 1.0, 99.0)
        notch_wall = np.clip((np.abs(m) - 6.0) / 4.0 + np.where(a < -4.0, 9.0, 0.0), 0, 1)
        extent = np.clip((33.0 - np.abs(m) + border) / 4.0 + np.where(u < 14, 1.0, 0.0), 0, 1)
        gate = {
            "femoral": np.clip((facing - lateral + 0.05) * 2.6, 0, 1)
            * np.clip(np.minimum(front, back), 0, 1)
            * notch_wall
            * extent
        }
        ovals = np.minimum(
            ellipsoid((a - 4.0, m + 21.0), (22.0, 13.0), 2.3), ellipsoid((a - 3.0, m - 21.0), (18.5, 13.0), 2.3)
        )
        gate["tibial"] = np.clip((0.6 - ovals + 0.5 * border) / 3.0, 0, 1) * np.clip((tibia.normal_u - 0.35) * 4, 0, 1)
        height = np.abs(u - 38.0 - self.knee.patella_shift[0])
        width = np.abs(m - 1.5 - self.knee.patella_shift[2])
        gate["patellar"] = np.clip((patella.normal_a - 0.35) * 4, 0, 1) * np.clip((15.5 - height + border) / 3.0, 0, 1)
        gate["patellar"] = gate["patellar"] * np.clip((19.0 - width + border) / 4.0, 0, 1)
        cartilage, depth = {}, {}
        bone = {"femoral": femur.distance, "tibial": tibia.distance, "patellar": patella.distance}
        for name, distance in bone.items():
            thickness = self._thickness(name, gate[name])
            outer = distance - thickness
            # a thickness below about 0.5 mm is no cartilage; the bone's own surface is sharp
            cartilage[name] = np.maximum(np.maximum(outer, -distance), 0.55 - thickness)
            depth[name] = distance / np.maximum(thickness, 0.3)
        # opposing sheets never overlap: each yields where the other bone is closer, and bone wins over foreign
        # cartilage
        for first, other in (("femoral", "tibial"), ("femoral", "patellar")):
            middle = 0.5 * (cartilage[first] - cartilage[other])
            cartilage[first] = np.maximum(cartilage[first], np.where(cartilage[other] < 1.0, middle + 0.25, -99.0))
            cartilage[other] = np.maximum(cartilage[other], np.where(cartilage[first] < 1.0, 0.25 - middle, -99.0))
        for name, own in (("femoral", "femur"), ("tibial", "tibia"), ("patellar", "patella")):
            for bone_name, surface in bones.items():
                if bone_name != own:
                    cartilage[name] = np.maximum(cartilage[name], 0.3 - surface.distance)
        return cartilage, depth

    def _menisci(self, bones, cartilage):
        """Two crescent wedges on the rims of the plateau (implicit, mm), and the cleft of a tear or None."""
        knee, (u, a, m) = self.knee, self.position
        menisci, tear = {}, None
        tibia = bones["tibia"].distance
        for name, side, (r_a, r_m) in (("medial", -1.0, (23.5, 15.5)), ("lateral", 1.0, (20.0, 15.0))):
            x, y = (a - 3.5) / r_a, (m - side * 21.0) / r_m
            radius = np.hypot(x, y)
            angle = np.arctan2(x, y * side)  # 0 points away from the midline
            inner = 1.02 - knee.meniscus_width * (1.0 + 0.15 * np.cos(2 * angle))
            height = knee.meniscus_height_mm * np.clip((radius - inner) / (1.02 - inner), 0, 1.1) + 0.6
            opening = (np.abs(angle) - np.deg2rad(140)) * r_m * radius
            mean = 0.5 * (r_a + r_m)
            wedge = np.maximum.reduce(
                [(inner - radius) * mean, (radius - 1.06) * mean, opening, tibia - height - 2.0, 0.2 - tibia, -2.5 - u]
            )
            for d in (bones["femur"].distance, cartilage["femoral"], cartilage["tibial"]):
                wedge = np.maximum(wedge, 0.35 - d)
            menisci[name] = wedge
            finding = knee.finding("meniscus_tear")
            if finding and finding["compartment"] == name:
                offset = angle - np.deg2rad(finding["angle_deg"])
                cleft = np.abs(np.arctan2(np.sin(offset), np.cos(offset))) * radius * mean - 0.5 * finding["width_mm"]
                tear = np.maximum(cleft, wedge - 0.4)
                menisci[name] = np.maximum(wedge, -cleft)
        return menisci, tear

    # -- everything else ----------------------------------------------------------------------------------------

    def _soft_tissue(self, canvas, bones, cartilage):
        knee, (u, a, m) = self.knee, self.position
        level, fine = self.level, self.fine(u, a, m)
        bulge = profile(u, [-95, -60, -10, 30, 85], [1.02, 1.0, 0.95, 0.97, 1.08])
        centre = profile(u, [-95, -40, 20, 85], [14.0, 9.0, 6.0, 6.0])
        leg = ellipsoid((a - centre, m), (knee.leg_radii[0], knee.leg_radii[1]), 2.1) - (bulge - 1.0) * 56
        knee_cap = np.maximum(bones["patella"].distance - 8.0, -60.0)
        patellar_tendon = ellipsoid((u - 2.0, a + 37.0, m - 1.0), (45.0, 12.0, 22.0))
        leg = smooth_min(smooth_min(leg, knee_cap, 14.0), patellar_tendon, 12.0)
        angle = np.arctan2(m, a - centre)
        fat = knee.fat_mm * (1.0 + 0.35 * np.cos(angle - knee.fat_phase) + 0.2 * knee.fat_field(u, a, m))
        fat = fat * profile(a, [-50, -20], [0.45, 1.0])
        fascia = leg + np.maximum(fat, 1.5)
        septa = np.clip(1.0 - np.abs(self.septa(u, a, m)) / 0.13, 0, 1)
        fat_value = level["fat"] * (1.0 + 0.13 * fine) + 0.16 * septa
        canvas.paint(leg, fat_value, "fat", 0.6, "fat")
        canvas.paint(np.abs(leg + 1.0) - 0.9, level["skin"] + 0.05 * fine, "muscle", 0.5, "skin")
        canvas.paint(np.abs(fascia) - 0.45, 0.06, "dark", 0.4, "fascia")
        self._muscles(canvas, bones, fascia)
        self._tendons_and_vessels(canvas, bones, fascia)

    def _muscles(self, canvas, bones, fascia):
        knee, (u, a, m) = self.knee, self.position
        height = float(np.mean(u))
        inside = np.maximum(fascia + 1.2, 2.2 - np.minimum.reduce([b.distance for b in bones.values()]))
        nearest, second = np.full(a.shape, 99.0, np.float32), np.full(a.shape, 99.0, np.float32)
        value, which = np.zeros(a.shape, np.float32), np.zeros(a.shape, np.uint8)
        fibres = self.fascicles(u, a, m)
        for name, (top, bottom, start, end, r_start, r_end) in MUSCLES.items():
            if not bottom - 8 < height < top + 8:
                continue
            shift, size = knee.muscle_jitter[name]
            w = np.clip((top - u) / (top - bottom), 0, 1)
            taper = np.sqrt(
                np.clip(
                    np.minimum((top - u) / 14.0 if top < 80 else 1.0, (u - bottom) / 14.0 if bottom > -90 else 1.0),
                    0,
                    1,
                )
            )
            centre = [s + w * (e - s) + j for s, e, j in zip(start, end, shift, strict=True)]
            radii = [
                np.maximum((s + w * (e - s)) * z * taper, 0.3) for s, e, z in zip(r_start, r_end, size, strict=True)
            ]
            x, y = (a - centre[0]) / radii[0], (m - centre[1]) / radii[1]
            d = (np.hypot(x, y) - 1.0) * np.minimum(*radii)
            closer = d < nearest
            second = np.where(closer, nearest, np.minimum(second, d))
            value = np.where(closer, self.belly_level[name], value)
            which = np.where(closer, np.uint8(REGIONS.index(name)), which)
            nearest = np.where(closer, d, nearest)
        belly = np.maximum(np.maximum(nearest, inside), 0.7 - 0.5 * (second - nearest))
        signal = self.level["muscle"] * value * (1.0 + 0.07 * fibres + 0.05 * self.coarse[2](u, a, m))
        canvas.paint(belly, signal - 0.18 * np.clip(fibres - 1.2, 0, 1), "muscle", 0.5, which)

    def _tendons_and_vessels(self, canvas, bones, fascia):
        knee, (u, a, m) = self.knee, self.position
        shift = knee.ligament_shift
        free = 0.3 - np.minimum.reduce([b.distance for b in bones.values()])

        def bar(centre_a, centre_m, r_a, r_m, top, bottom):
            level = np.maximum(u - top, bottom - u)
            return np.maximum(np.maximum(ellipsoid((a - centre_a, m - centre_m), (r_a, r_m)), level), free)

        fine = self.fine(u, a, m)
        dark = 0.06 + 0.03 * np.abs(fine)
        patella_a = -41.0 + knee.patella_shift[1]
        # infrapatellar (Hoffa) fat pad behind the patellar tendon, with septa
        hoffa = np.maximum(ellipsoid((u - 8.0, a + 29.0, m), (20.0, 11.0, 22.0)), free)
        septa = np.clip(1.0 - np.abs(self.septa(u, a * 1.4, m)) / 0.16, 0, 1)
        canvas.paint(hoffa, self.level["fat"] * 1.15 + 0.03 * fine + 0.25 * septa, "fat", 0.9, "hoffa")
        w = np.clip((16.0 - u) / 50.0, 0, 1)
        tendons = [
            bar(patella_a - 1.0 + w * 13.0, shift[0, 1], 2.6, 14.0, 24.0, -38.0),  # patellar tendon
            bar(patella_a + 4.0, shift[0, 1], 3.4, 17.0, 95.0, 50.0),  # quadriceps tendon
            bar(
                profile(u, [-5, 30], [-6.0, 20.0]),
                profile(u, [-5, 30], [-2.0, 7.0]) + shift[1, 1],
                4.0,
                3.0,
                32.0,
                0.0,
            ),  # anterior cruciate
            bar(
                profile(u, [-10, 25], [25.0, 8.0]),
                profile(u, [-10, 25], [0.0, -6.0]) + shift[2, 1],
                4.5,
                3.5,
                28.0,
                -12.0,
            ),  # posterior cruciate
            bar(4.0 + shift[3, 0], -41.5 + shift[3, 1], 8.0, 1.4, 35.0, -35.0),  # medial collateral
            bar(12.0 + shift[4, 0], 41.5 + shift[4, 1], 3.0, 1.8, 28.0, -14.0),  # lateral collateral
            bar(-6.0 + shift[5, 0], 43.0 + shift[5, 1], 12.0, 1.3, 95.0, -5.0),  # iliotibial band
        ]
        for tendon in tendons:
            canvas.paint(tendon, dark, "dark", 0.6, "tendon")
        s = knee.vessel_shift
        vessels = [
            (35.0, 2.5, 3.2),
            (40.5, -1.0, 3.8),
            (52.0, 6.0, 1.7),
            (30.0, -47.0, 2.2),
            (46.0, 20.0, 1.5),
            (30.0, 10.0, 1.3),
            (20.0, 49.0, 1.3),
            (44.0, -38.0, 1.6),
        ]
        self._artery = None
        for k, (centre_a, centre_m, radius) in enumerate(vessels):
            d = np.hypot(a - centre_a - s[k, 0], m - centre_m - s[k, 1]) - radius
            wall = np.maximum(d - 0.8, free)
            canvas.paint(np.maximum(wall, fascia - 30.0 if k < 3 else fascia - 6.0), 0.1, "dark", 0.4, "vessel_wall")
            value = self.level["vessel"] * (1.0 if k % 2 == 0 else 0.75)
            canvas.paint(np.maximum(d, free), value, "vessel", 0.6, "vessel")
            if k == 0:
                self._artery = (centre_a + s[k, 0], centre_m + s[k, 1], radius)

    def _fluid(self, canvas, bones, cartilage):
        """Fluid film between the cartilages and pockets beside and above the patella; an effusion swells them."""
        knee, (u, a, m) = self.knee, self.position
        effusion = knee.finding("effusion")
        swell = effusion["depth_mm"] if effusion else 0.0
        free = 0.2 - np.minimum.reduce([b.distance for b in bones.values()])
        film = (
            np.minimum.reduce([cartilage["femoral"], cartilage["tibial"] + 0.3, cartilage["patellar"]])
            - 0.25
            - 0.4 * knee.fluid_mm
        )
        capsule = ellipsoid((u - 22.0, a + 2.0, m), (40.0, 40.0, 40.0))
        fluid = np.maximum(film, capsule)
        for side in (-1.0, 1.0):  # parapatellar recesses and gutters
            recess = ellipsoid(
                (u - 34.0, a + 26.0, m - side * 27.0), (17.0, 7.0 + swell, 3.0 + knee.fluid_mm + 0.8 * swell)
            )
            gutter = ellipsoid(
                (u - 26.0, a + 6.0, m - side * 39.0), (15.0, 15.0, 0.6 + 0.7 * knee.fluid_mm + 0.5 * swell)
            )
            posterior = ellipsoid(
                (u - 20.0, a - 38.0, m - side * 20.0), (9.0, 1.0 + 0.6 * knee.fluid_mm + 0.3 * swell, 6.0)
            )
            fluid = np.minimum.reduce([fluid, recess, gutter, posterior])
        pouch = ellipsoid((u - 62.0, a + 27.0, m), (14.0, 1.0 + knee.fluid_mm + swell, 16.0 + swell))
        notch = ellipsoid((u - 8.0, a + 2.0, m), (9.0, 5.0, 5.0)) + 2.0 - swell * 0.5
        fluid = np.maximum(smooth_min(np.minimum(fluid, notch), pouch, 2.0), free)
        canvas.paint(fluid, self.level["fluid"] + 0.06 * self.coarse[1](u, a, m), "fluid", BLURRED_MM, "fluid")

    def _bones(self, canvas, bones):
        knee, (u, a, m) = self.knee, self.position
        trabeculae = self.fine(u, a, m)
        for name, surface in bones.items():
            cortex = {
                "femur": profile(u, [20, 45, 80], [0.7, 1.2, 4.0]),
                "tibia": profile(u, [-80, -40, -8], [4.0, 1.6, 0.8]),
                "patella": 0.9,
                "fibula": 1.3,
            }[name]
            marrow = self.level["marrow"] * (1.0 + 0.28 * trabeculae + 0.22 * self.coarse[2](u, a, m))
            canvas.paint(surface.distance, 0.02, "dark", SHARP_MM, "cortex")
            canvas.paint(surface.distance + cortex, np.maximum(marrow, 0.02), "marrow", 0.5, "marrow")
        # growth-plate scars: a thin darker sheet across the epiphysis
        scar = np.abs(u - 36.0 - 2.0 * knee.border_field(u, a, m)) - 0.8
        scar = smooth_max(scar, bones["femur"].distance + 3.0, 0.5)
        canvas.paint(scar, 0.6 * self.level["marrow"], "marrow", 0.5, "scar")

    def _flow_artefact(self, canvas):
        """Ghosts of the pulsating artery along the phase-encoding axis (anterior-posterior)."""
        _, a, m = self.position
        centre_a, centre_m, radius = self._artery
        for order in (-2, -1, 1, 2):
            ghost = np.hypot(a - centre_a - 17.0 * order, m - centre_m) - radius
            canvas.image += self.flow_ghost / abs(order) * (-1) ** order * coverage_of(ghost, 0.8)
