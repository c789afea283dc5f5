"""The objects of the embedded sample: their shapes, and one object drawn with its outline."""

import math
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

OUTLINE = "#2b2530"

_GROW = [255 if value > 25 else 0 for value in range(256)]


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    turns = [(math.pi * i / points, 50 if i % 2 == 0 else 50 * inner) for i in range(2 * points)]
    return [(50 + r * math.sin(t), 53 - r * math.cos(t)) for t, r in turns]


def _egg() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 36 for i in range(36)]
    return [(50 + (36 - 8 * math.cos(t)) * math.sin(t), 52 - 48 * math.cos(t)) for t in turns]


# Parts of an object in the order of drawing: (primitive, paint, points in percent of its box).
# Paint `body` is the object's colour and texture, `shade` and `tint` a darker and a lighter tone of
# it. No kind has a colour of its own: a colour histogram must not tell a gnome from a duck.
SHAPES = {
    "casa": (
        ("polygon", "body", [(12, 44), (88, 44), (88, 98), (12, 98)]),
        ("polygon", "shade", [(0, 48), (50, 2), (100, 48)]),
        ("polygon", OUTLINE, [(56, 64), (76, 64), (76, 98), (56, 98)]),
        ("polygon", "tint", [(24, 58), (44, 58), (44, 76), (24, 76)]),
    ),
    "albero": (
        ("polygon", "shade", [(42, 60), (58, 60), (60, 99), (40, 99)]),
        ("ellipse", "body", [(3, 26), (60, 72)]),
        ("ellipse", "body", [(40, 26), (97, 72)]),
        ("ellipse", "body", [(20, 1), (80, 60)]),
    ),
    "stella": (("polygon", "body", _star(5, 0.45)),),
    "barca": (
        ("polygon", OUTLINE, [(47, 4), (53, 4), (53, 68), (47, 68)]),
        ("polygon", "body", [(53, 6), (53, 58), (94, 58)]),
        ("polygon", "body", [(47, 18), (47, 58), (14, 58)]),
        ("polygon", "shade", [(1, 66), (99, 66), (80, 97), (20, 97)]),
    ),
    "pesce": (
        ("polygon", "shade", [(64, 52), (99, 18), (99, 86)]),
        ("polygon", "shade", [(28, 30), (46, 8), (58, 32)]),
        ("ellipse", "body", [(1, 24), (78, 80)]),
        ("ellipse", "white", [(12, 38), (28, 54)]),
        ("ellipse", OUTLINE, [(16, 42), (25, 51)]),
    ),
    "ombrello": (
        ("line", OUTLINE, [(50, 8), (50, 88), (58, 96), (68, 94), (71, 84)]),
        ("pieslice", "body", [(1, 8), (99, 106)]),
        ("polygon", "shade", [(50, 8), (34, 57), (66, 57)]),
        ("line", OUTLINE, [(50, 1), (50, 10)]),
    ),
    "uovo": (("polygon", "body", _egg()),),
    "specchio": (
        ("polygon", "shade", [(42, 64), (58, 64), (60, 99), (40, 99)]),
        ("ellipse", "body", [(10, 1), (90, 73)]),
        ("ellipse", "tint", [(27, 16), (73, 58)]),
        ("line", "white", [(40, 46), (60, 28)]),
    ),
    "zaino": (
        ("ellipse", "shade", [(32, 0), (68, 40)]),
        ("ellipse", "tint", [(42, 8), (58, 36)]),
        ("polygon", "shade", [(4, 52), (96, 52), (96, 88), (4, 88)]),
        ("rounded", "body", [(14, 18), (86, 98)]),
        ("rounded", "shade", [(28, 60), (72, 90)]),
        ("line", OUTLINE, [(15, 46), (85, 46)]),
    ),
    "sciarpa": (
        ("polygon", "body", [(52, 34), (76, 30), (92, 74), (68, 82)]),
        ("polygon", "body", [(14, 34), (40, 34), (36, 86), (8, 86)]),
        ("line", "shade", [(70, 80), (74, 96), (76, 80), (84, 94), (86, 76), (94, 90)]),
        ("line", "shade", [(10, 84), (10, 99), (18, 84), (19, 99), (27, 84), (28, 99), (34, 84)]),
        ("rounded", "body", [(2, 6), (98, 38)]),
        ("rounded", "shade", [(32, 4), (54, 46)]),
    ),
    "gnomo": (
        ("polygon", "body", [(30, 62), (70, 62), (84, 99), (16, 99)]),
        ("ellipse", "tint", [(28, 34), (72, 74)]),
        ("polygon", "white", [(27, 58), (73, 58), (62, 80), (50, 92), (38, 80)]),
        ("polygon", "body", [(50, 0), (84, 47), (16, 47)]),
        ("ellipse", "shade", [(43, 50), (57, 63)]),
    ),
    "anatra": (
        ("polygon", "body", [(2, 44), (30, 62), (10, 80)]),
        ("ellipse", "body", [(4, 46), (84, 96)]),
        ("polygon", "body", [(52, 34), (82, 34), (80, 66), (48, 66)]),
        ("polygon", "shade", [(84, 20), (100, 32), (84, 40)]),
        ("ellipse", "body", [(48, 4), (88, 46)]),
        ("ellipse", "shade", [(20, 58), (58, 84)]),
        ("ellipse", OUTLINE, [(69, 17), (78, 26)]),
    ),
}


def _part(draw: ImageDraw.ImageDraw, primitive: str, points: list, size: int, fill: Any) -> None:
    scaled = [(x * size / 100, y * size / 100) for x, y in points]
    if primitive == "polygon":
        draw.polygon(scaled, fill=fill)
    elif primitive == "ellipse":
        draw.ellipse(scaled, fill=fill)
    elif primitive == "pieslice":
        draw.pieslice(scaled, 180, 360, fill=fill)
    elif primitive == "rounded":
        draw.rounded_rectangle(scaled, radius=size * 0.12, fill=fill)
    elif primitive == "line":
        draw.line(scaled, fill=fill, width=max(round(size * 0.06), 2), joint="curve")
    else:
        raise ValueError(f"unknown primitive {primitive!r}")


def _paint(color: tuple[int, ...], texture: str, size: int, width: float) -> Image.Image:
    """A square of the colour with its texture: white marks, grey ones on a white object."""
    image = Image.new("RGB", (size, size), color)
    draw = ImageDraw.Draw(image)
    marks = "#7d7f8c" if min(color) > 200 else "white"
    step = max(size // 4, 8)
    if texture == "righe":
        for y in range(step // 2, size, step):
            draw.rectangle((0, y, size, y + step * width), fill=marks)
    elif texture == "pois":
        for row, y in enumerate(range(0, size + step, step)):
            for x in range(-step // 2 * (row % 2), size + step, step):
                draw.ellipse((x, y, x + step * width, y + step * width), fill=marks)
    return image


def draw_object(
    kind: str, color: tuple[int, ...], texture: str, size: int, contrast: float = 0.3
) -> Image.Image:
    """One object with a dark outline around its silhouette.

    Args:
      kind: one of `SHAPES`.
      color: red, green and blue, 0 to 255.
      texture: tinta unita, righe or pois.
      size: side of the square it fits into, outline included, in pixels.
      contrast: how far shade and tint lie from the colour and how broad the texture's marks are,
        0.1 to 0.45.

    Returns:
      RGBA picture of that size, transparent around the object.
    """
    line = max(size // 10, 1)
    box = size - 2 * line
    body, silhouette = Image.new("RGB", (box, box)), Image.new("L", (size, size))
    paint = _paint(color, texture, box, contrast + 0.15)
    tones = {
        "shade": tuple(int(c * (1 - contrast)) for c in color),
        "tint": tuple(int(c + (255 - c) * 2 * contrast) for c in color),
    }
    draw, mask = ImageDraw.Draw(body), Image.new("L", (box, box))
    mask_draw = ImageDraw.Draw(mask)
    for primitive, fill, points in SHAPES[kind]:
        _part(mask_draw, primitive, points, box, 255)
        if fill == "body":
            part = Image.new("L", (box, box))
            _part(ImageDraw.Draw(part), primitive, points, box, 255)
            body.paste(paint, mask=part)
        else:
            _part(draw, primitive, points, box, tones.get(fill, fill))
    silhouette.paste(mask, (line, line))
    tile = Image.new("RGBA", (size, size), OUTLINE)
    tile.paste(body, (line, line), mask)
    # Blur and threshold grow the silhouette by the line's width, ten times faster than MaxFilter.
    tile.putalpha(silhouette.filter(ImageFilter.BoxBlur(line)).point(_GROW))
    return tile
