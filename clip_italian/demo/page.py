"""What the tabs of the page share: the model's answers, checks, picture fields, remarks."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gradio as gr

from clip_italian.demo import markup, queries
from clip_italian.demo.answers import Answers
from clip_italian.demo.pictures import Picture, PictureError, decode, read_upload
from clip_italian.demo.queries import QueryError
from clip_italian.demo.words import Words

# All events share one limit; else gradio allows as many at a time for each function.
_TOGETHER: dict[str, Any] = {"concurrency_id": "all"}
PRIVATE = {"api_visibility": "private", **_TOGETHER}  # events without a name of their own
_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# A press on a picture's button, told to the server as its row.
_PICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-row]');
  if (button) trigger('pick', {row: Number(button.dataset.row)});
});
"""
# Screen readers say what changes in a region that is there before; the lines come and go whole.
_LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"


@dataclasses.dataclass(frozen=True)
class Page:
    """What all tabs need.

    Attributes:
      words: of the page.
      answers: the model and its index.
      queries: example queries.
      candidates: texts to choose among for a picture.
      rows: rows of example pictures.
    """

    words: Words
    answers: Answers
    queries: Sequence[str]
    candidates: Sequence[str]
    rows: Sequence[int]

    def check(self, text: str | None) -> tuple[str, list[str]]:
        """A text, cleaned, and remarks about it. Raises `QueryError`."""
        remarks = queries.check(text, self.answers.model, self.words, self.queries[0])
        return queries.clean(text), remarks

    def picture(self, path: str | None, row: int | None) -> Picture:
        """The uploaded picture, else the chosen one. Raises `PictureError`."""
        if path:
            return read_upload(path, self.words)
        if row is None:
            raise PictureError(self.words.no_picture)
        if not 0 <= row < len(self.answers.index.keys):
            raise PictureError(self.words.gone)
        return decode(self.answers.index.thumbnail(row), self.words)


def api(name: str, words: Words) -> dict[str, Any]:
    """An event that clients may call, by a name of its own on each page."""
    api_name = name if words.language == "it" else f"{name}_{words.language}"
    return {"api_name": api_name, **_TOGETHER}


def remarks_field() -> Any:
    """A place for remarks, which a screen reader says when they change."""
    return gr.HTML(js_on_load=_LIVE)


def buttons() -> Any:
    """A place for pictures whose buttons trigger `pick` with the row of the picture."""
    return gr.HTML(js_on_load=_PICK)


def examples(page: Page, field: Any) -> None:
    """Buttons that write an example query into a text field."""
    gr.Markdown(page.words.examples)
    with gr.Row(elem_classes="examples"):
        for text in page.queries:
            button = gr.Button(text, size="sm", min_width=120)
            button.click(None, None, field, js=f"() => {json.dumps(text)}", **PRIVATE)


def picture_fields(page: Page) -> tuple[Any, Any, Any]:
    """Upload, row of a chosen example, and a place for remarks; shows the picture they give."""
    words, index = page.words, page.answers.index
    upload = gr.File(label=words.upload, type="filepath", height=140)
    row = gr.State(None)
    examples = buttons()
    examples.value = markup.choices(page.rows, index, words)
    shown = gr.HTML()
    remarks = remarks_field()

    def show(path: str | None, chosen: int | None) -> tuple[str, str]:
        if not path and chosen is None:
            return "", ""
        picture, said = tried(lambda: (page.picture(path, chosen).open(), []), page)
        return "" if picture is None else markup.picture(picture, words.chosen), said

    def choose(event: gr.EventData) -> tuple[Any, int | None, Any, str]:
        chosen = int(event.row)
        return None, chosen, *show(None, chosen)

    upload.upload(lambda path: (None, *show(path, None)), upload, [row, shown, remarks], **PRIVATE)
    upload.clear(lambda: (None, *show(None, None)), None, [row, shown, remarks], **PRIVATE)
    examples.pick(choose, None, [upload, row, shown, remarks], **PRIVATE)
    return upload, row, remarks


def tried(answer: Callable[[], tuple[_T, list[str]]], page: Page) -> tuple[_T | None, str]:
    """The answer and its remarks; or nothing, and what was wrong, in words for the user."""
    try:
        found, lines = answer()
    except (QueryError, PictureError) as error:
        return None, markup.remarks([str(error)], wrong=True)
    except Exception:
        _log.exception("a question of the page failed")
        return None, markup.remarks([page.words.failed], wrong=True)
    return found, markup.remarks(lines)
