"""HTML of results, remarks and the colour scale of heat maps."""

import base64
import functools
import io
from collections.abc import Sequence

import jinja2
from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from clip_italian.demo.answers import Found
from clip_italian.demo.index import Index
from clip_italian.demo.words import Words

_CAPTION = 120  # characters of a caption under a picture
# Gradio reads its component's value as a Handlebars template and a JavaScript template literal.
_TEMPLATE_SIGNS = str.maketrans({c: f"&#{ord(c)};" for c in "{}$`\\"})


def results(found: Found, index: Index, words: Words, *, clickable: bool = True) -> str:
    """An ordered list of pictures; each is a button that searches for pictures like it.

    Args:
      found: which pictures.
      index: which holds them.
      words: of the page.
      clickable: False leaves the buttons out.
    """
    items = [
        {
            "row": int(row),
            "source": _source(index.thumbnail(int(row))),
            "caption": caption(index, int(row)),
            "score": words.score.format(score=words.number(score, 3)),
            "folded": _folded(len(folded), words),
            "more": [_source(index.thumbnail(other)) for other in folded[:4]],
        }
        for row, score, folded in zip(found.rows, found.scores, found.folded, strict=True)
    ]
    return _render("results.html.j2", items=items, words=words, clickable=clickable)


def choices(rows: Sequence[int], index: Index, words: Words) -> str:
    """A row of pictures to choose one of."""
    items = [
        {"row": row, "source": _source(index.thumbnail(row)), "caption": caption(index, row)}
        for row in rows
    ]
    return _render("choices.html.j2", items=items, words=words)


def remarks(lines: Sequence[str], *, wrong: bool = False) -> str:
    """Lines of text below a form."""
    return _render("remarks.html.j2", lines=lines, wrong=wrong)


def heading(words: Words, model: str, count: int) -> str:
    """Title of a page, what it is for, the way to the other language, model and pictures."""
    pictures = words.pictures.format(count=words.number(count))
    return _render("heading.html.j2", words=words, model=model, pictures=pictures)


def picture(image: Image.Image, name: str) -> str:
    """One picture with its name, up to 480 pixels high."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return _render("picture.html.j2", source=_source(data.getvalue()), name=name)


def legend(words: Words, colors: str) -> str:
    """The colour scale of a heat map, from less to more."""
    shades = [to_hex(colormaps[colors](i / 8)) for i in range(9)]
    return _render("legend.html.j2", words=words, shades=shades)


def caption(index: Index, row: int) -> str:
    """The first caption of a picture, or its name, shortened."""
    captions = index.captions[row]
    # A file's name may hold bytes that are no text.
    text = captions[0] if captions else index.keys[row].encode("utf-8", "replace").decode()
    return text if len(text) <= _CAPTION else f"{text[: _CAPTION - 1]}…"


def _folded(count: int, words: Words) -> str:
    if not count:
        return ""
    return words.similar_one if count == 1 else words.similar.format(count=count)


def _source(jpeg: bytes) -> Markup:
    return Markup("data:image/jpeg;base64,") + base64.b64encode(jpeg).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("clip_italian.demo"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
    )


def _plain(value: object) -> Markup:
    """Escaped for HTML and for gradio's templates."""
    return Markup(str(escape(value)).translate(_TEMPLATE_SIGNS))


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)
