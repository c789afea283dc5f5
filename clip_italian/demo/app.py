"""The web demo: one page in Italian, one in English, behind a guard."""

from collections.abc import Sequence
from pathlib import Path

import fastapi
import gradio as gr

from clip_italian.demo import picture_tabs, search_tabs
from clip_italian.demo.answers import Answers
from clip_italian.demo.guard import Guard
from clip_italian.demo.index import Index
from clip_italian.demo.page import Page
from clip_italian.demo.pictures import MAX_BYTES
from clip_italian.demo.words import ENGLISH, ITALIAN, Words

WAITING = 100  # requests in the queue; further ones are told to come again
AT_ONCE = 4  # requests worked on at a time
_EXAMPLES = 6
_OLD = 3600  # seconds after which uploads and pictures of answers are deleted
_CSS = Path(__file__).parent / "templates" / "page.css"


def make_app(answers: Answers, other: Answers | None = None) -> fastapi.FastAPI:
    """The demo as an application for any ASGI server.

    It takes pictures up to `MAX_BYTES`, fetches nothing, and serves no file but its own.

    Args:
      answers: the model and its index.
      other: a second model with its index of the same pictures, to compare.
    """
    # System fonts: nothing is loaded from elsewhere.
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    blocks = make_blocks(answers, other)
    blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)
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
        theme=theme,
        css_paths=_CSS,
    )
    app.add_middleware(Guard)
    return app


def make_blocks(answers: Answers, other: Answers | None = None) -> gr.Blocks:
    """The two pages, without a server."""
    rows = example_rows(answers.index)
    with gr.Blocks(
        title="CLIP-Italian", analytics_enabled=False, delete_cache=(_OLD, _OLD)
    ) as blocks:
        gr.Navbar(main_page_name=ITALIAN.own_name)
        _page(ITALIAN, answers, other, rows)
    with blocks.route(ENGLISH.own_name, "/en"):
        _page(ENGLISH, answers, other, rows)
    return blocks


def example_rows(index: Index, count: int = _EXAMPLES) -> list[int]:
    """Rows of pictures spread over the index."""
    count = min(count, len(index.keys))
    return [place * len(index.keys) // count for place in range(count)]


def example_queries(index: Index, rows: Sequence[int], words: Words) -> list[str]:
    """The shortest caption of each of these pictures; where there are none, common phrases."""
    captions = [min(index.captions[row], key=len) for row in rows if index.captions[row]]
    return list(dict.fromkeys(captions)) or list(words.example_queries)


def _page(words: Words, answers: Answers, other: Answers | None, rows: Sequence[int]) -> None:
    page = Page(words, answers, example_queries(answers.index, rows, words), rows)
    count = words.pictures.format(count=f"{len(answers.index.keys):,}")
    gr.Markdown(f"# {words.title}\n{words.intro}")
    gr.Markdown(f"{words.model} **{answers.model.name}** · {count}")
    with gr.Tab(words.text_to_image):
        search_tabs.text_to_image(page)
    with gr.Tab(words.image_to_text):
        picture_tabs.image_to_text(page)
    with gr.Tab(words.where):
        picture_tabs.localise(page)
    if other is not None:
        with gr.Tab(words.compare):
            search_tabs.compare(page, other)
    context = gr.context.Context.root_block
    assert context is not None
    # Screen readers choose their voice by it; gradio calls every page English.
    context.load(None, js=f"() => {{ document.documentElement.lang = '{words.language}'; }}")
