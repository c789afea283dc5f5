"""Pages and Markdown made from templates, with texts that nobody vouches for."""

import base64
import io
import re
from typing import Any

from PIL import Image

from data_prep.images import to_rgb

# Control characters, what turns the direction of writing (and can hide text), halves of surrogate
# pairs, and code points that are no characters.
_UNSAFE = re.compile(
    "[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_MARKDOWN = re.compile(r"([!#$&()*+\-.:<=>@\[\\\]^_`{|}~])")


def plain(text: object, length: int = 0) -> str:
    """A text on one line, fit to be shown: unsafe characters become `\N{REPLACEMENT CHARACTER}`.

    Args:
      text: anything; `str()` of it is taken.
      length: the longest result, in characters; a longer text ends in an ellipsis. 0 never cuts.
    """
    shown = _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))
    return shown if not length or len(shown) <= length else shown[: length - 1] + "…"


def escape_markdown(text: object) -> str:
    r"""A text that Markdown shows as it is: no markup, HTML, link, mention, formula or table cell.

    A backslash in front of punctuation is always allowed; `:`, `.` and `@` would else make links
    of bare addresses.
    """
    return _MARKDOWN.sub(r"\\\1", plain(text))


def render_html(template: str, **values: Any) -> str:
    """A template of this package → HTML; every value is escaped."""
    return _environment(autoescape=True).get_template(template).render(values)


def render_markdown(template: str, **values: Any) -> str:
    """A template of this package → Markdown; every value but `markupsafe.Markup` is escaped."""
    import markupsafe

    def literal(value: object) -> markupsafe.Markup:
        """For a line of code, that is one indented by four blanks: there is no way out of it."""
        return markupsafe.Markup(plain(value))

    def finalize(value: object) -> str:
        return value if isinstance(value, markupsafe.Markup) else escape_markdown(value)

    environment = _environment(finalize=finalize)
    environment.filters["literal"] = literal
    return environment.get_template(template).render(values)


def picture_uri(image: bytes, side: int) -> str:
    """An image file → a JPEG as a data URI, its longer side at most `side` pixels."""
    small = to_rgb(Image.open(io.BytesIO(image)))
    small.thumbnail((side, side))
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=80)
    return data_uri(jpeg.getvalue(), "image/jpeg")


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a media type → an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _environment(**options: Any) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("data_prep"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters["number"] = "{:,}".format
    environment.filters["plain"] = plain
    return environment
