"""A slice that is painted from back to front: its image, its regions and how bright its second echo is."""

import numpy as np

from .anatomy import MUSCLES

__all__ = ["BLURRED_MM", "REGIONS", "SHARP_MM", "Canvas", "coverage_of"]

# second qDESS echo relative to the first: strong T2 weighting
ECHO_2_FACTOR = {"fluid": 0.85, "cartilage": 0.4, "muscle": 0.3, "dark": 0.5, "fat": 0.6, "vessel": 0.6, "marrow": 0.5}
SHARP_MM, BLURRED_MM = 0.35, 0.9  # half width of an edge

# What a point of a slice belongs to, number by number in `KneeRenderer.regions`; each muscle belly has its own.
REGIONS = (
    "background",
    "fat",
    "skin",
    "fascia",
    "hoffa",
    "tendon",
    "vessel_wall",
    "vessel",
    "fluid",
    "cortex",
    "marrow",
    "scar",
    "femoral_cartilage",
    "tibial_cartilage",
    "patellar_cartilage",
    "meniscus_rim",
    "meniscus",
    *MUSCLES,
)


class Canvas:
    """An image painted back to front with soft edges, its regions, and the ratio of the second echo to the first."""

    def __init__(self, shape):
        """Start with an empty image."""
        self.image = np.zeros(shape, np.float32)
        self.echo_2 = np.full(shape, 0.5, np.float32)
        self.regions = np.zeros(shape, np.uint8)

    def paint(self, distance, value, tissue, edge_mm, region):
        """Paint what lies inside of a surface; `region` is a name of `REGIONS` or an array of its numbers."""
        coverage = coverage_of(distance, edge_mm)
        self.image += coverage * (value - self.image)
        self.echo_2 += coverage * (ECHO_2_FACTOR[tissue] - self.echo_2)
        inside = coverage > 0.5
        number = REGIONS.index(region) if isinstance(region, str) else region[inside]
        self.regions[inside] = number


def coverage_of(distance, edge_mm=SHARP_MM):
    """Return the share of a point covered by a surface at signed ``distance`` whose edge is 2 ``edge_mm`` wide."""
    return np.clip(0.5 - distance / (2 * edge_mm), 0.0, 1.0)
