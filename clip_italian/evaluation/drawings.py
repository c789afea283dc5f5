"""Plain drawings of small scenes, for probes that need pictures true to their captions.

A scene is one line, the same in every language:

    red circle @ left; blue square @ right        two things, one on each side
    3 green triangle                              three of a kind, anywhere
    2 red heart; 1 yellow star                    a count may be left out: it is 1

Colours and shapes are those of `COLORS` and `SHAPES`. Where a thing lies and how large it is
depends on the seed and on its place in the line, never on its colour or shape: scenes drawn
together differ in what their lines say and in nothing else.
"""

import dataclasses
import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

from clip_italian.config import ConfigError

SIZE = 224  # pixels, the side of a picture
MOST_THINGS = 9  # in one picture; more could not be told apart at a glance
_OVERSAMPLING = 4  # drawn that much larger, then shrunk: smooth edges
_SIDES = {"left": 0.25, "right": 0.75}  # centre, as a share of the width

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Attributes:
      color: a key of `COLORS`.
      shape: a key of `SHAPES`.
      side: "left", "right", or "" for anywhere.
    """

    color: str
    shape: str
    side: str = ""


@dataclasses.dataclass(frozen=True)
class Mark:
    """One filled area of a shape, in a square from -1 to 1 with y downwards.

    Attributes:
      points: corners of a polygon; two points are the box of an ellipse.
      ink: "" for the thing's own colour, else a key of `_INKS`.
    """

    points: tuple[Point, ...]
    ink: str = ""


def parse_scene(scene: str) -> tuple[Thing, ...]:
    """The things of a scene, each as often as it is counted.

    Raises:
      ConfigError: a word is unknown, there are too many things, or their sides cannot be drawn.
    """
    things: list[Thing] = []
    for part in scene.split(";"):
        what, at, side = (piece.strip() for piece in part.partition("@"))
        words = what.split()
        count = int(words.pop(0)) if words and words[0].isdecimal() else 1
        if len(words) != 2 or words[0] not in COLORS or words[1] not in SHAPES:
            raise ConfigError(
                f"scene {scene!r}: {what!r} is no thing; needed are an optional count, a colour "
                f"({', '.join(COLORS)}) and a shape ({', '.join(SHAPES)})"
            )
        if at and side not in _SIDES:
            raise ConfigError(f"scene {scene!r}: @ must be followed by {' or '.join(_SIDES)}")
        things += [Thing(words[0], words[1], side)] * count
    if not 1 <= len(things) <= MOST_THINGS:
        raise ConfigError(f"scene {scene!r}: {len(things)} things; 1 to {MOST_THINGS} are allowed")
    sides = [thing.side for thing in things]
    if any(sides) and len(set(sides)) < len(sides) + ("" in sides):
        raise ConfigError(f"scene {scene!r}: with sides, one thing on each side, and no other")
    return tuple(things)


def draw(scenes: Sequence[str], seed: str) -> list[Image.Image]:
    """Pictures of scenes that are to be compared: RGB, `SIZE` pixels square, on white.

    Args:
      scenes: see the module.
      seed: decides places and sizes, the same ones in every picture of the call.

    Raises:
      ConfigError: as `parse_scene`.
    """
    parsed = [parse_scene(scene) for scene in scenes]
    grid = math.ceil(math.sqrt(max(map(len, parsed))))
    return [_draw_things(things, seed, grid) for things in parsed]


def _draw_things(things: Sequence[Thing], seed: str, grid: int) -> Image.Image:
    # random.Random gives the same numbers in every version of Python, numpy's generators may not.
    rng = random.Random(seed)
    order = sorted((rng.random(), cell) for cell in range(grid * grid))
    side = SIZE * _OVERSAMPLING
    image = Image.new("RGB", (side, side), _INKS["paper"])
    pen = ImageDraw.Draw(image)
    for place, thing in enumerate(things):
        width = 0.5 if thing.side else 1 / grid
        radius = width / 2 * rng.uniform(0.62, 0.86)
        cell = order[place][1]
        x = _SIDES[thing.side] if thing.side else (cell % grid + 0.5) * width
        y = 0.5 if thing.side else (cell // grid + 0.5) * width
        # What the radius leaves free; a thing on one side has the whole height to itself.
        x += (width / 2 - radius) * rng.uniform(-0.8, 0.8)
        y += ((0.5 if thing.side else width / 2) - radius) * rng.uniform(-0.8, 0.8)
        _draw_thing(pen, thing, round(x * side), round(y * side), round(radius * side))
    return image.reduce(_OVERSAMPLING)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, x: int, y: int, radius: int) -> None:
    for mark in SHAPES[thing.shape]:
        points = [(x + radius * u, y + radius * v) for u, v in mark.points]
        fill = _INKS[mark.ink] if mark.ink else COLORS[thing.color]
        (pen.ellipse if len(points) == 2 else pen.polygon)(points, fill=fill)


def _ellipse(x: float, y: float, width: float, height: float, ink: str = "") -> Mark:
    """Around (x, y); width and height are half axes."""
    return Mark(((x - width, y - height), (x + width, y + height)), ink)


def _box(left: float, top: float, right: float, bottom: float, ink: str = "") -> Mark:
    return Mark(((left, top), (right, top), (right, bottom), (left, bottom)), ink)


def _star() -> Mark:
    corners = [(k * math.pi / 5, 0.42 if k % 2 else 1.0) for k in range(10)]
    return Mark(tuple((r * math.sin(angle), -r * math.cos(angle)) for angle, r in corners))


def _heart() -> Mark:
    # The usual curve: x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
    angles = [k * math.pi / 60 for k in range(120)]
    return Mark(
        tuple(
            (
                math.sin(t) ** 3,
                (-13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t))
                / 17,
            )
            for t in angles
        )
    )


def _flower() -> tuple[Mark, ...]:
    angles = [k * math.pi / 3 for k in range(6)]
    stem = _box(-0.05, 0.1, 0.05, 1, "detail")
    leaf = Mark(((0, 0.85), (0.22, 0.58), (0.52, 0.55), (0.34, 0.8)), "detail")
    petals = (_ellipse(0.36 * math.sin(t), -0.34 - 0.36 * math.cos(t), 0.3, 0.3) for t in angles)
    return (stem, leaf, *petals, _ellipse(0, -0.34, 0.2, 0.2, "paper"))


_INKS = {"paper": (255, 255, 255), "detail": (110, 110, 110)}

COLORS = {
    "red": (220, 25, 30),
    "blue": (25, 60, 215),
    "green": (20, 145, 50),
    "yellow": (255, 212, 0),
    "orange": (255, 128, 0),
    "purple": (125, 35, 165),
    "pink": (255, 130, 185),
    "brown": (120, 70, 25),
    "black": (0, 0, 0),
}

SHAPES = {
    "circle": (_ellipse(0, 0, 1, 1),),
    "square": (_box(-0.9, -0.9, 0.9, 0.9),),
    "triangle": (Mark(((0, -0.9), (1, 0.83), (-1, 0.83))),),
    "star": (_star(),),
    "heart": (_heart(),),
    "flower": _flower(),
    "house": (
        Mark(((0, -1), (1, -0.1), (-1, -0.1))),
        _box(-0.78, -0.15, 0.78, 0.95),
        _box(-0.16, 0.35, 0.16, 0.95, "paper"),
        _box(-0.58, 0.12, -0.3, 0.42, "paper"),
        _box(0.3, 0.12, 0.58, 0.42, "paper"),
    ),
    "car": (
        Mark(((-0.62, 0), (-0.4, -0.5), (0.3, -0.5), (0.62, 0))),
        Mark(((-1, 0.02), (-0.9, -0.05), (0.8, -0.05), (1, 0.1), (1, 0.4), (-1, 0.4))),
        Mark(((-0.46, -0.06), (-0.31, -0.4), (-0.08, -0.4), (-0.08, -0.06)), "paper"),
        Mark(((0.04, -0.06), (0.04, -0.4), (0.24, -0.4), (0.44, -0.06)), "paper"),
        *(_ellipse(x, 0.4, 0.22, 0.22, "detail") for x in (-0.52, 0.52)),
        *(_ellipse(x, 0.4, 0.09, 0.09, "paper") for x in (-0.52, 0.52)),
    ),
    "fish": (
        _ellipse(-0.22, 0, 0.78, 0.52),
        Mark(((0.3, 0), (1, -0.55), (0.85, 0), (1, 0.55))),
        Mark(((-0.35, -0.4), (0.05, -0.8), (0.25, -0.3))),
        _ellipse(-0.62, -0.12, 0.1, 0.1, "paper"),
        _ellipse(-0.62, -0.12, 0.045, 0.045, "detail"),
    ),
    "boat": (
        Mark(((-1, 0.4), (1, 0.4), (0.62, 0.9), (-0.62, 0.9))),
        _box(-0.06, -1, 0.06, 0.45),
        Mark(((0.02, -0.95), (0.8, 0.22), (0.02, 0.22))),
        Mark(((-0.02, -0.7), (-0.02, 0.22), (-0.62, 0.22))),
    ),
    "balloon": (
        Mark(((0.03, 0.4), (0.15, 0.75), (-0.02, 1), (-0.08, 1), (0.08, 0.75), (-0.03, 0.4)),
             "detail"),
        Mark(((0, 0.3), (0.14, 0.52), (-0.14, 0.52))),
        _ellipse(0, -0.3, 0.58, 0.7),
        _ellipse(-0.24, -0.58, 0.1, 0.17, "paper"),
    ),
    "cup": (
        _ellipse(0.5, -0.02, 0.42, 0.42),
        _ellipse(0.5, -0.02, 0.24, 0.24, "paper"),
        Mark(((-0.85, -0.65), (0.55, -0.65), (0.4, 0.75), (-0.7, 0.75))),
    ),
}  # fmt: skip
