"""The retrieval gallery: some queries, the pictures found for them, the right one marked."""

import base64
import html
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from clip_italian.evaluation.examples import TOP, Example, Gallery

# Indices of images → one uint8 [height, width, 3] for each; sizes may differ.
Thumbnails = Callable[[Sequence[int]], Sequence[np.ndarray] | np.ndarray]

_GREEN = "#1a7f37"
_CELL = 1.5  # side of a picture and its margin in the figure, in inches
_SIDE, _QUALITY = 192, 88  # of an embedded picture: its longer side in pixels, and JPEG's


def gallery_html(
    gallery: Gallery,
    thumbnails: Thumbnails,
    *,
    title: str = "Retrieval gallery",
    language: str = "it",
) -> str:
    """A page that needs no other file: pictures are inside it, as JPEG in base64.

    Args:
      gallery: from `examples.choose_examples`.
      thumbnails: gives the pictures.
      title: heading of the page.
      language: of the captions (a BCP 47 tag), for screen readers and hyphenation.
    """
    pictures = {
        image: picture_uri(array)
        for image, array in fetch_pictures(gallery.examples, thumbnails).items()
    }
    sections = "\n".join(_section(example, pictures, language) for example in gallery.examples)
    return _PAGE.format(
        title=html.escape(title), rule=html.escape(gallery.rule), sections=sections, style=_STYLE
    )


def gallery_figure(gallery: Gallery, thumbnails: Thumbnails, *, title: str = "") -> Figure:
    """The same for `plots.png`: one row a query, the right picture in a green frame."""
    pictures = fetch_pictures(gallery.examples, thumbnails)
    width, height = 2.7 + _CELL * (TOP + 1), 0.9 + (_CELL + 0.25) * len(gallery.examples)
    figure = Figure(figsize=(width, height))
    # One set of axes in inches from the upper left corner: a hundred of them would take seconds.
    axes = figure.add_axes((0, 0, 1, 1))
    heading = "\n".join(filter(None, [title, textwrap.fill(gallery.rule, 125)]))
    axes.text(width / 2, 0.1, heading, ha="center", va="top", fontsize=9)
    for row, example in enumerate(gallery.examples):
        y = 0.9 + row * (_CELL + 0.25)
        text = textwrap.fill(example.query, 28, max_lines=6, placeholder=" …")
        text = f"{text}\n\nright picture at rank {example.rank:,}"
        axes.text(0.15, y + _CELL / 2, text, va="center", fontsize=9, parse_math=False)
        for column, (image, score) in enumerate(zip(example.found, example.scores, strict=True)):
            x, right = 2.6 + column * _CELL, image == example.right
            _draw_picture(axes, x, y, pictures[image], f"{column + 1}. · {score:.3f}", right)
        if example.right not in example.found:
            label = f"{example.rank:,}. · {example.right_score:.3f}"
            _draw_picture(axes, 2.65 + TOP * _CELL, y, pictures[example.right], label, True)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def fetch_pictures(examples: Iterable[Example], thumbnails: Thumbnails) -> dict[int, np.ndarray]:
    """Index → pixels of all pictures that the examples show."""
    wanted = sorted({image for one in examples for image in (*one.found, one.right)})
    return dict(zip(wanted, thumbnails(wanted), strict=True))


def picture_uri(pixels: np.ndarray, side: int = _SIDE, quality: int = _QUALITY) -> str:
    """A JPEG as a data URI, at the picture's own proportions.

    Args:
      pixels: uint8 [height, width, 3].
      side: the longer side's most pixels; a smaller picture stays as it is.
      quality: of the JPEG.
    """
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _section(example: Example, pictures: dict[int, str], language: str) -> str:
    figures = [
        _figure(place, score, pictures[image], "right" if image == example.right else "wrong")
        for place, (image, score) in enumerate(zip(example.found, example.scores, strict=True), 1)
    ]
    if example.right not in example.found:
        uri = pictures[example.right]
        figures.append(_figure(example.rank, example.right_score, uri, "right apart"))
    verdict = "first" if example.rank == 1 else f"at rank {example.rank:,}"
    return _SECTION.format(
        query=html.escape(example.query),
        language=html.escape(language),
        verdict=f"right picture {verdict}",
        figures="\n".join(figures),
    )


def _figure(place: int, score: float, uri: str, kind: str) -> str:
    right = kind != "wrong"
    return _FIGURE.format(
        kind=kind,
        uri=uri,
        alt=f"picture at rank {place:,}, {'the right one' if right else 'not the right one'}",
        text=f"{'✓ ' if right else ''}{place:,}. · {score:.3f}",
    )


def _draw_picture(
    axes: Axes, x: float, y: float, pixels: np.ndarray, label: str, right: bool
) -> None:
    """Fits a picture into the cell whose upper left corner is (x, y)."""
    high, wide = pixels.shape[:2]
    side = _CELL - 0.12
    w, h = side * wide / max(high, wide), side * high / max(high, wide)
    x, y = x + (side - w) / 2, y + (side - h) / 2
    axes.imshow(pixels, extent=(x, x + w, y + h, y))
    colour, line = (_GREEN, 4.0) if right else ("#bbbbbb", 0.6)
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=line))
    label = f"✓ {label}" if right else label
    axes.text(x + w / 2, y - 0.05, label, ha="center", fontsize=8, color=_GREEN if right else "k")


_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #5a5a5a; --page: #ffffff;
  --line: #d4d4d4; --right: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --text: #ececec; --soft: #b4b4b4; --page: #161616;
  --line: #444444; --right: #4ac26b; } }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
p { color: var(--soft); margin: 0 0 1rem; max-width: 46rem; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; hyphens: auto; }
section p { margin: .1rem 0 .7rem; font-size: .9rem; }
.row { display: grid; grid-template-columns: repeat(6, 1fr); gap: .7rem; }
@media (max-width: 40rem) { .row { grid-template-columns: repeat(3, 1fr); } }
figure { margin: 0; }
img { box-sizing: border-box; width: 100%; aspect-ratio: 1; object-fit: contain;
  border: 1px solid var(--line); border-radius: 4px; display: block; }
figcaption { font-size: .85rem; font-variant-numeric: tabular-nums; margin-top: .2rem; }
.right img { border: 4px solid var(--right); }
.right figcaption { color: var(--right); font-weight: 600; }
.apart { border-left: 2px dotted var(--line); padding-left: .7rem; }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>For each caption the five best scored pictures, best first, with their cosine. The right one has
a green frame and a ✓; where it is not among them it stands apart at the end, with its rank.</p>
<p>{rule}</p>
{sections}
</body>
</html>
"""
_SECTION = """<section>
<h2 lang="{language}">{query}</h2>
<p>{verdict}</p>
<div class="row">
{figures}
</div>
</section>"""
_FIGURE = """<figure class="{kind}">
<img src="{uri}" alt="{alt}">
<figcaption>{text}</figcaption>
</figure>"""
