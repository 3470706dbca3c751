"""Defines the colours of all figures: those of Okabe and Ito, which people with any colour vision can tell apart."""

__all__ = ["BLUE", "CLASS_COLOURS", "ORANGE", "SKY_BLUE", "VERMILION", "YELLOW", "class_colour"]

Colour = tuple[float, float, float]

BLUE: Colour = (0.00, 0.45, 0.70)
ORANGE: Colour = (0.90, 0.60, 0.00)
SKY_BLUE: Colour = (0.34, 0.71, 0.91)
VERMILION: Colour = (0.84, 0.37, 0.00)
YELLOW: Colour = (0.94, 0.89, 0.26)
_PURPLE: Colour = (0.80, 0.47, 0.65)
_GREEN: Colour = (0.00, 0.62, 0.45)
CLASS_COLOURS = (SKY_BLUE, ORANGE, _PURPLE, YELLOW, _GREEN, VERMILION, BLUE)


def class_colour(label: int) -> Colour:
    """Return the colour of a class by its label number, from 1; colours repeat after the seventh."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]
