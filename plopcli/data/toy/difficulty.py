"""What "easy", "medium" and "hard" mean for the generated pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Difficulty = Literal["easy", "medium", "hard"]


@dataclass(frozen=True)
class Variation:
    """The ranges that one picture is drawn from.

    Attributes:
        area: Smallest and largest area of an object, as a share of the image's area, before occlusion.
        rotation: Largest rotation either way, in degrees.
        stretch: Largest factor by which an object is drawn out along a random side.
        hue: Largest distance of an object's hue from its class's hue, on a circle of length 1 (0.5: any hue). The hues
            of two classes are at least 0.05 apart.
        inverted: Share of objects whose second colour is dark where that of the class is light, or the other way round.
        visible: Smallest share of an object that stays visible where the image has room for that.
        blobs: Smallest and largest number of shapes that belong to no class.
        lines: Smallest and largest number of lines in the background.
        borrowed: Share of those blobs in the colours of a class, the others being muted like the background.
        textured: Share of those blobs with the texture of a class.
        noise: Largest deviation of the pixel noise, in grey values of 255.
    """

    area: tuple[float, float]
    rotation: float
    stretch: float
    hue: float
    inverted: float
    visible: float
    blobs: tuple[int, int]
    lines: tuple[int, int]
    borrowed: float
    textured: float
    noise: int


VARIATIONS: dict[Difficulty, Variation] = {
    "easy": Variation((0.07, 0.17), 20, 1.1, 0.04, 0.0, 0.75, (0, 2), (0, 2), 0.2, 0.0, 4),
    "medium": Variation((0.065, 0.19), 35, 1.25, 0.055, 0.05, 0.6, (1, 4), (1, 4), 0.3, 0.1, 5),
    "hard": Variation((0.04, 0.2), 180, 1.4, 0.5, 0.5, 0.4, (4, 8), (3, 8), 1.0, 0.6, 14),
}
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
