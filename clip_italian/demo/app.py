"""The web demo: one page in Italian, one in English, behind a guard."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
from gradio import themes
from gradio.components.navbar import Navbar
from gradio.context import Context
from gradio.utils import get_upload_folder

from clip_italian.demo import markup, picture_tabs, search_tabs
from clip_italian.demo.answers import Answers
from clip_italian.demo.guard import Guard
from clip_italian.demo.index import Index
from clip_italian.demo.page import Page
from clip_italian.demo.pictures import MAX_BYTES
from clip_italian.demo.words import ENGLISH, ITALIAN, Words

WAITING = 100  # requests in the queue; further ones are told to come again
AT_ONCE = 4  # requests worked on at a time
VISITORS = 300  # of whom the last picture and its heat map are kept, a megabyte each
_EXAMPLES = 6
# Screen readers choose their voice by the language, and gradio calls every page English. It also
# keeps a second, invisible row of tabs to measure them, which the keyboard must not reach.
_ON_LOAD = """() => {
  document.documentElement.lang = '%s';
  document.querySelectorAll('.tab-container[aria-hidden="true"]').forEach(row => row.inert = true);
}"""
_CSS = Path(__file__).parent / "templates" / "page.css"


def make_app(answers: Answers, other: Answers | None = None) -> fastapi.FastAPI:
    """The demo as an application for any ASGI server.

    It takes pictures up to `MAX_BYTES`, fetches nothing, and serves no file but its own.

    Args:
      answers: the model and its index.
      other: a second model with its index of the same pictures, to compare.
    """
    blocks = make_blocks(answers, other)
    blocks.state_session_capacity = VISITORS
    blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)
    with warnings.catch_warnings():
        # It says so of every page beside another, asked for or not.
        warnings.filterwarnings("ignore", message="SSR mode is not supported")
        app = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            blocks,
            path="/",
            allowed_paths=[],
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            show_error=False,
            footer_links=["gradio"],
            theme=_theme(),
            css_paths=_CSS,
        )
    app.add_middleware(Guard, uploads=Path(get_upload_folder()))
    return app


def _theme() -> Any:
    """Gradio's own, with system fonts (nothing is loaded from elsewhere) and more contrast."""
    theme = themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace"]
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
        color_accent="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def make_blocks(answers: Answers, other: Answers | None = None) -> gr.Blocks:
    """The two pages, without a server."""
    rows = example_rows(answers.index)
    with gr.Blocks(title="CLIP-Italian", analytics_enabled=False) as blocks:
        Navbar(main_page_name=ITALIAN.own_name)
        _page(ITALIAN, answers, other, rows)
    with blocks.route(ENGLISH.own_name, "/en"):
        Navbar(main_page_name=ITALIAN.own_name)
        _page(ENGLISH, answers, other, rows)
    return blocks


def example_rows(index: Index, count: int = _EXAMPLES) -> list[int]:
    """Rows of pictures spread over the index."""
    count = min(count, len(index.keys))
    return [place * len(index.keys) // count for place in range(count)]


def example_captions(index: Index, rows: Sequence[int]) -> list[str]:
    """The shortest caption of each of these pictures, where it has any."""
    captions = [min(index.captions[row], key=len) for row in rows if index.captions[row]]
    return list(dict.fromkeys(captions))


def _page(words: Words, answers: Answers, other: Answers | None, rows: Sequence[int]) -> None:
    captions = example_captions(answers.index, rows)
    candidates = captions if len(captions) > 1 else words.candidate_texts
    page = Page(words, answers, captions or words.example_queries, candidates, rows)
    gr.HTML(markup.heading(words, answers.model.name, len(answers.index.keys)))
    with gr.Tab(words.text_to_image):
        search_tabs.text_to_image(page)
    with gr.Tab(words.image_to_text):
        picture_tabs.image_to_text(page)
    with gr.Tab(words.where):
        picture_tabs.localise(page)
    if other is not None:
        with gr.Tab(words.compare):
            search_tabs.compare(page, other)
    context = Context.root_block
    assert context is not None
    context.load(None, js=_ON_LOAD % words.language)
