"""The scenes of the embedded sample and how they are drawn.

A scene is one or two groups of equal objects in a place. Colours and kinds are spelled as the
Italian words that `data_prep.grammar` inflects. Nothing but the objects' own paint tells their
colours: the tones of a place are random, so that a place is known by its structure alone.
"""

import colorsys
import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from data_prep.shapes import draw_object

COLORS = {
    "rosso": (216, 40, 38),
    "giallo": (248, 206, 24),
    "verde": (38, 150, 62),
    "blu": (36, 72, 200),
    "viola": (134, 52, 176),
    "rosa": (250, 140, 192),
    "bianco": (246, 246, 242),
    "nero": (46, 44, 50),
}
# Sizes of one object in 64ths of the picture, by how many there are: three large ones must fit.
SIZES = {"grande": (30, 29, 20), "piccolo": (16, 15, 15)}
TEXTURES = ("tinta unita", "righe", "pois")
RELATIONS = ("sinistra", "destra", "sopra", "sotto")
SUPERSAMPLE = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """One to three equal objects: kind, colour, size and texture out of the tables here."""

    kind: str
    color: str
    size: str
    texture: str
    count: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two groups in a place; `relation` is of the first to the second, "" with one."""

    groups: tuple[Group, ...]
    place: str
    relation: str


def _tones(rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Four pastel tones of unrelated hues and of different brightness, in random order."""
    values = rng.permutation((0.98, 0.93, 0.87, 0.8))
    return [
        tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.06 + 0.2 * saturation, value))
        for hue, saturation, value in zip(rng.random(4), rng.random(4), values, strict=True)
    ]


def _cielo(draw: ImageDraw.ImageDraw, tones: list, u: float, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, 64 * u, 64 * u), fill=tones[1])
    for corner in (0, 18, 36, 52):
        x, y = (corner + rng.uniform(-8, 4)) * u, (corner * 7 % 45 + rng.uniform(0, 12)) * u
        for dx, dy, r in ((0, 3, 4), (5, 0, 6), (12, 1, 5), (17, 4, 3.5)):
            draw.ellipse(
                (x + (dx - r) * u, y + (dy - r) * u, x + (dx + r) * u, y + (dy + r) * u),
                fill=tones[0],
            )


def _mare(draw: ImageDraw.ImageDraw, tones: list, u: float, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, 64 * u, 64 * u), fill=tones[0])
    phase = rng.uniform(0, 8)
    for row, y in enumerate(range(16, 68, 8)):
        wave = [(x * u, (y + 2 * math.sin((x + phase + 5 * row) / 2.2)) * u) for x in range(66)]
        draw.polygon([*wave, (66 * u, 64 * u), (0, 64 * u)], fill=tones[1 + row % 2])


def _prato(draw: ImageDraw.ImageDraw, tones: list, u: float, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, 64 * u, 64 * u), fill=tones[0])
    shift = rng.uniform(-10, 10) * u
    draw.ellipse((-40 * u + shift, 22 * u, 46 * u + shift, 130 * u), fill=tones[3])
    draw.ellipse((14 * u + shift, 28 * u, 110 * u + shift, 150 * u), fill=tones[1])
    for x, y in zip(rng.uniform(0, 60, 14), rng.uniform(36, 62, 14), strict=True):
        blades = [(x, y - 4), (x + 1.5, y), (x + 2.5, y - 5), (x + 3.5, y), (x + 5, y - 4)]
        draw.line([(px * u, py * u) for px, py in blades], fill=tones[2], width=max(int(u), 1))


def _stanza(draw: ImageDraw.ImageDraw, tones: list, u: float, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, 64 * u, 64 * u), fill=tones[0])
    shift = rng.uniform(0, 10)
    for row in range(-1, 7):
        for column in range(-1, 7):
            if (row + column) % 2:
                x, y = (10 * column + shift) * u, (10 * row + shift) * u
                draw.rectangle((x, y, x + 10 * u, y + 10 * u), fill=tones[1])


def _montagne(draw: ImageDraw.ImageDraw, tones: list, u: float, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, 64 * u, 64 * u), fill=tones[0])
    shift = rng.uniform(-7, 7)
    for x, top, tone in ((8, 16, 3), (54, 12, 3), (32, 4, 1)):
        peak = (x + shift, top)
        sides = [peak, (peak[0] + 30, 66), (peak[0] - 30, 66)]
        snow = [peak, (peak[0] + 7, top + 15), (peak[0], top + 11), (peak[0] - 7, top + 15)]
        for points, fill in ((sides, tones[tone]), (snow, tones[2])):
            draw.polygon([(px * u, py * u) for px, py in points], fill=fill)


def _steccato(draw: ImageDraw.ImageDraw, tones: list, u: float, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, 64 * u, 64 * u), fill=tones[0])
    for y in (24, 48):
        draw.rectangle((0, y * u, 64 * u, (y + 4) * u), fill=tones[3])
    shift = rng.uniform(0, 9)
    for x in range(-9, 64, 9):
        picket = [(0, 17), (3, 12), (6, 17), (6, 64), (0, 64)]
        draw.polygon([((x + shift + px) * u, py * u) for px, py in picket], fill=tones[1])


def _centers(scene: Scene, rng: np.random.Generator) -> list[list[tuple[float, float, int]]]:
    """Centre and size of each object of each group, in 64ths of the picture.

    Objects keep near a coarse grid (large ones near multiples of 16, small ones between them):
    a small vision transformer learns shapes much sooner when they do not slide over its patches.
    """
    upright = scene.relation in ("sinistra", "destra")  # groups side by side stack upwards
    first = 16 if scene.relation in ("sinistra", "sopra") else 48
    middles = [first, 64 - first] if len(scene.groups) == 2 else [int(rng.choice((16, 32, 48)))]
    placed = []
    for group, middle in zip(scene.groups, middles, strict=True):
        size = SIZES[group.size][group.count - 1]
        if group.size == "piccolo":
            across = middle + int(rng.choice((-8, 8)))
            lowest = 8 + 16 * int(rng.integers(5 - group.count))
            along = [lowest + 16 * i for i in range(group.count)]
        else:
            across = middle
            along = [[int(rng.choice((16, 32, 48)))], [16, 48], [11, 32, 53]][group.count - 1]
        points = rng.uniform(-0.5, 0.5, (group.count, 2)) + [(across, a) for a in along]
        points = points.clip(size / 2, 64 - size / 2)
        placed.append([(x, y, size) if upright else (y, x, size) for x, y in points.tolist()])
    return placed


def draw_scene(
    scene: Scene, image_size: int, rng: np.random.Generator
) -> tuple[Image.Image, list[list[list[float]]]]:
    """Draws a scene.

    Args:
      scene: what to draw.
      image_size: side of the picture in pixels.
      rng: tones, jitter of positions, colours and brightness; the only randomness.

    Returns:
      RGB picture, and for each group the boxes [left, top, right, bottom] of its objects in pixels.
    """
    side = image_size * SUPERSAMPLE
    unit = side / 64
    canvas = Image.new("RGB", (side, side))
    PLACES[scene.place](ImageDraw.Draw(canvas), _tones(rng), unit, rng)
    boxes = []
    for group, places in zip(scene.groups, _centers(scene, rng), strict=True):
        jitter = rng.integers(-10, 11, 3)
        color = tuple(int(c) for c in np.clip(np.add(COLORS[group.color], jitter), 0, 255))
        tile = draw_object(
            group.kind, color, group.texture, round(places[0][2] * unit), rng.uniform(0.15, 0.42)
        )
        outer = np.asarray(tile.getbbox())
        boxes.append([])
        for x, y, size in places:
            corner = round((x - size / 2) * unit), round((y - size / 2) * unit)
            canvas.paste(tile, corner, tile)
            edges = (outer + np.tile(corner, 2)) / SUPERSAMPLE
            boxes[-1].append([round(float(edge), 1) for edge in edges])
    picture = ImageEnhance.Brightness(canvas.reduce(SUPERSAMPLE)).enhance(rng.uniform(0.8, 1.12))
    return picture, boxes


PLACES = {
    "prato": _prato,
    "stanza": _stanza,
    "cielo": _cielo,
    "mare": _mare,
    "montagne": _montagne,
    "steccato": _steccato,
}
