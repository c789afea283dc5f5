"""The retrieval gallery: some queries, the pictures found for them, the right one marked."""

import base64
import dataclasses
import html
import io
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from clip_italian.evaluation import metrics

# Indices of images → one uint8 [height, width, 3] for each; sizes may differ.
Thumbnails = Callable[[Sequence[int]], Sequence[np.ndarray] | np.ndarray]

TOP = 5  # pictures shown for each query
_GREEN = "#1a7f37"
_CELL = 1.5  # side of a picture and its margin in the figure, in inches
_SIDE = 192  # longer side of an embedded picture, in pixels


@dataclasses.dataclass(frozen=True)
class Example:
    """One query and what was found.

    Attributes:
      query: the caption.
      rank: of the right picture, from 1, ties counted against the model.
      found: indices of the best scored images, best first; the right one is last among its ties.
      scores: cosine of each of them with the query.
      right: index of the right image.
      right_score: its cosine.
    """

    query: str
    rank: int
    found: tuple[int, ...]
    scores: tuple[float, ...]
    right: int
    right_score: float


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Examples, and how they were chosen."""

    examples: tuple[Example, ...]
    rule: str


def choose_examples(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    caption_image: np.ndarray,
    captions: Sequence[str],
    *,
    queries: int = 12,
) -> Gallery:
    """Half right and half wrong queries, evenly spaced in the order of the evaluation set.

    Args:
      image_embeds: float [images, dim].
      text_embeds: float [captions, dim].
      caption_image: int [captions], index of each caption's image.
      captions: [captions] text.
      queries: how many to show; when one kind has too few, the other fills up.

    Raises:
      ValueError: as `metrics.ranks`.
    """
    caption_image = np.asarray(caption_image)
    ranks = metrics.ranks(text_embeds, image_embeds, caption_image, np.arange(len(image_embeds)))
    right, wrong = np.flatnonzero(ranks == 1), np.flatnonzero(ranks > 1)
    n_right = min(len(right), max(queries // 2, queries - len(wrong)))
    n_wrong = min(len(wrong), queries - n_right)
    chosen = np.concatenate([_evenly(right, n_right), _evenly(wrong, n_wrong)])
    examples = []
    for query in map(int, chosen):
        scores = image_embeds @ text_embeds[query]
        target, rank = int(caption_image[query]), int(ranks[query])
        others = np.argsort(-scores, kind="stable")
        others = others[others != target]
        # The right picture goes to its rank, so that picture and metric agree about ties.
        found = np.insert(others, rank - 1, target)[:TOP].tolist()
        found_scores = tuple(float(scores[image]) for image in found)
        examples.append(
            Example(captions[query], rank, tuple(found), found_scores, target,
                    float(scores[target]))
        )  # fmt: skip
    rule = (
        f"{n_right} of the {len(right)} captions whose picture came first, then {n_wrong} of the "
        f"{len(wrong)} whose picture did not, each evenly spaced in the order of the evaluation "
        f"set, not picked by hand. First place: {100 * len(right) / len(ranks):.1f}% of "
        f"{len(ranks):,} captions, among {len(image_embeds):,} pictures."
    )
    return Gallery(tuple(examples), rule)


def gallery_html(
    gallery: Gallery,
    thumbnails: Thumbnails,
    *,
    title: str = "Retrieval gallery",
    language: str = "it",
) -> str:
    """A page that needs no other file: pictures are inside it, as JPEG in base64.

    Args:
      gallery: from `choose_examples`.
      thumbnails: gives the pictures.
      title: heading of the page.
      language: of the captions (a BCP 47 tag), for screen readers and hyphenation.
    """
    pictures = {image: _data_uri(array) for image, array in _fetch(gallery, thumbnails).items()}
    sections = "\n".join(_section(example, pictures, language) for example in gallery.examples)
    return _PAGE.format(
        title=html.escape(title), rule=html.escape(gallery.rule), sections=sections, style=_STYLE
    )


def gallery_figure(gallery: Gallery, thumbnails: Thumbnails, *, title: str = "") -> Figure:
    """The same for `plots.png`: one row a query, the right picture in a green frame."""
    pictures = _fetch(gallery, thumbnails)
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


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
    return items[((np.arange(count) + 0.5) * len(items) / max(count, 1)).astype(int)]


def _fetch(gallery: Gallery, thumbnails: Thumbnails) -> dict[int, np.ndarray]:
    wanted = sorted({image for one in gallery.examples for image in (*one.found, one.right)})
    return dict(zip(wanted, thumbnails(wanted), strict=True))


def _data_uri(pixels: np.ndarray) -> str:
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
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
