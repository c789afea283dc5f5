"""The demo as a server, asked by clients that are not browsers, kind and hostile."""

import asyncio
import concurrent.futures
import html
import http.server
import io
import json
import pickle
import threading
from typing import ClassVar

import pytest
import requests
from PIL import Image

from clip_italian.demo import picture_tabs
from clip_italian.demo.app import WAITING, example_captions, example_rows, make_blocks
from clip_italian.demo.page import Page
from clip_italian.demo.pictures import MAX_BYTES, decode
from clip_italian.demo.words import ENGLISH, ITALIAN

QUERY = "una stella blu"
FILE = {"meta": {"_type": "gradio.FileData"}}


def call(address, name, *data):
    """What the queue says to one call: the lines of its event stream."""
    body = {"data": data}
    begun = requests.post(f"{address}/gradio_api/call/{name}", json=body, timeout=60)
    if begun.status_code != 200:
        return begun.text
    event = begun.json()["event_id"]
    return requests.get(f"{address}/gradio_api/call/{name}/{event}", timeout=120).text


def upload(address, data, name="a.png"):
    files = {"files": (name, io.BytesIO(data))}
    return requests.post(f"{address}/gradio_api/upload", files=files, timeout=60)


@pytest.fixture
def ask(address):
    """(name, inputs) → outputs of an event of the page."""

    def asked(name, *data):
        said = call(address, name, *data)
        assert "event: complete" in said, said
        outputs = json.loads(said.partition("event: complete\ndata: ")[2].splitlines()[0])
        return [html.unescape(one) if isinstance(one, str) else one for one in outputs]

    return asked


@pytest.fixture
def photo(address):
    """An uploaded picture, as events take it."""
    data = io.BytesIO()
    Image.new("RGB", (50, 40), "blue").save(data, "PNG")
    path = upload(address, data.getvalue()).json()[0]
    return {"path": path, **FILE}


def test_a_text_finds_pictures(ask, answers):
    remarks, found = ask("search", QUERY, "", 5, False)
    assert "5 immagini per «una stella blu»" in remarks
    rows = answers.by_text(QUERY, "", 5, fold=False).rows
    assert [f'data-row="{row}"' in found for row in rows] == [True] * 5
    assert found.count("<li>") == 5


def test_pages_speak_their_language(ask, address):
    remarks, _ = ask("search", "", "", 5, False)
    assert "Scrivi prima qualche parola" in remarks
    remarks, _ = ask("search_en", "", "", 5, False)
    assert "Write some words first" in remarks
    assert ITALIAN.title in requests.get(address, timeout=30).text
    assert ENGLISH.title in requests.get(f"{address}/en", timeout=30).text


@pytest.mark.parametrize("count", [10**12, -3, "viele", None])
def test_a_count_that_the_page_cannot_give_does_no_harm(address, ask, count):
    said = call(address, "search", QUERY, "", count, True)
    assert "event: error" in said or (count is None and "12 immagini" in said)
    assert "immagini" in ask("search", QUERY, "", 3, True)[0]


def test_a_picture_is_classified(ask, photo):
    texts = "una stella blu\nun cerchio rosso\n\n  una stella blu "
    asked = [photo, None, "typed", texts, "un disegno di {}", "una foto di {indefinite}"]
    remarks, bars = ask("classify", *asked)
    assert "softmax" in remarks
    shown = {one["label"]: one["confidence"] for one in bars["value"]["confidences"]}
    assert set(shown) == {"una stella blu", "un cerchio rosso"}
    assert sum(shown.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("texts", "phrase", "said"),
    [
        ("solo una", "{}", ITALIAN.few_candidates),
        ("", "{}", ITALIAN.few_candidates),
        ("a\nb", "senza", ITALIAN.bad_template[:12]),
        ("a\nb", "{} {}", ITALIAN.bad_template[:12]),
        ("a\nb", "{0}", ITALIAN.bad_template[:12]),
        ("\n".join(map(str, range(99))), "{}", "Al massimo 50 righe; ce ne sono 99"),
    ],
)
def test_wrong_candidates_are_explained(ask, photo, texts, phrase, said):
    asked = [photo, None, "typed", texts, phrase, "una foto di {indefinite}"]
    remarks, bars = ask("classify", *asked)
    assert said in remarks and 'class="wrong"' in remarks
    assert not bars["visible"]


@pytest.mark.parametrize("method", ["tokens", "occlusion"])
def test_a_phrase_is_localised(ask, photo, method):
    asked = [photo, None, QUERY, method, 0.5]
    remarks, seen, *_ = ask("locate", *asked)
    assert "Mappa di calore" in remarks
    assert '<img src="data:image/jpeg;base64,' in seen and QUERY in seen


def test_two_models_are_compared(ask):
    remarks, one, two = ask("compare", QUERY)
    assert "delle prime 12 immagini in comune" in remarks
    assert one.count("<li>") == two.count("<li>") == 12
    assert one != two and "<button" not in one


def test_no_picture_is_a_helpful_line(ask):
    remarks, *_ = ask("locate", None, None, QUERY, "tokens", 0.5)
    assert ITALIAN.no_picture in remarks


class Trap(http.server.BaseHTTPRequestHandler):
    """A server inside the network that nobody may reach through the demo."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"secret")

    def log_message(self, *words):
        pass


@pytest.fixture
def trap():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trap)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Trap.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}/a.png"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("field", ["path", "url", "both"])
def test_no_address_is_fetched(address, trap, field):
    file = dict(FILE)
    file |= {"path": trap} if field != "url" else {"path": "/tmp/none.png"}
    file |= {"url": trap} if field != "path" else {}
    for place in range(4):  # in place of a picture, and of a text
        data = [None, None, QUERY, "tokens", 0.5]
        data[place] = file
        assert "secret" not in call(address, "locate", *data)
    requests.get(f"{address}/gradio_api/file={trap}", timeout=30, allow_redirects=True)
    requests.get(f"{address}/gradio_api/proxy={trap}", timeout=30, allow_redirects=True)
    got = requests.get(f"{address}/gradio_api/file/{trap}", timeout=30, allow_redirects=False)
    assert "location" not in got.headers, "nobody is sent on to another server"
    assert Trap.asked == []


def test_no_file_of_the_machine_is_served(address, tmp_path):
    canary = tmp_path / "canary.png"
    Image.new("RGB", (8, 8), "red").save(canary)
    own = canary.read_bytes()
    for path in (canary, "/etc/passwd", "setup.cfg", "../setup.cfg", "clip_italian/cli.py"):
        for route in ("file=", "file=./", "static/", "assets/", "file=%2e%2e/"):
            got = requests.get(f"{address}/gradio_api/{route}{path}", timeout=30)
            assert got.content != own and b"root:" not in got.content
            assert got.status_code in (403, 404), (route, path, got.status_code)
    file = {"path": str(canary), **FILE}
    said = call(address, "locate", file, None, QUERY, "tokens", 0.5)
    assert "only uploaded files are read" in said
    body = json.dumps({"data": [file, None, QUERY, "tokens", 0.5]}).encode("utf-16")
    headers = {"content-type": "application/json"}
    url = f"{address}/gradio_api/call/locate"
    assert requests.post(url, data=body, headers=headers, timeout=60).status_code == 400


def test_uploads_are_limited(address):
    assert upload(address, b"a" * (MAX_BYTES + 1)).status_code == 413
    assert upload(address, b"a" * 50_000_000).status_code == 413
    assert upload(address, b"a" * 1000).status_code == 200


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jpg", b"<!DOCTYPE html><script>alert(1)</script>", "no_image"),
        ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "svg"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "no_image"),
    ],
)
def test_hostile_uploads_are_refused_in_words(address, ask, name, data, reason):
    path = upload(address, data, name).json()[0]
    remarks, *_ = ask("locate", {"path": path, **FILE}, None, QUERY, "tokens", 0.5)
    assert getattr(ITALIAN, reason) in remarks
    # What was uploaded comes back, if at all, as a picture or a file to save, never as a page.
    headers = requests.get(f"{address}/gradio_api/file={path}", timeout=30).headers
    shown = headers["content-type"] in ("image/png", "image/jpeg")
    assert headers["content-disposition"].startswith("inline" if shown else "attachment")
    assert headers["x-content-type-options"] == "nosniff"


def test_many_users_at_once_get_answers(ask):
    with concurrent.futures.ThreadPoolExecutor(20) as users:
        asked = [f"una stella {color}" for color in ("blu", "rossa", "verde", "gialla")] * 10
        jobs = [users.submit(ask, "search", q, "", 4, True) for q in asked]
        for text, job in zip(asked, jobs, strict=True):
            assert text in job.result()[0]
    assert WAITING >= 20


def test_what_is_kept_of_a_visitor_is_small(answers):
    """Gradio keeps it for an hour, also for clients that will never come again."""
    page = Page(ITALIAN, answers, [QUERY], [], [])
    photo = io.BytesIO()
    Image.new("RGB", (1600, 1200), "blue").save(photo, "JPEG")
    picture = decode(photo.getvalue(), ITALIAN)
    kept, _ = picture_tabs.located(page, picture, QUERY, "tokens")
    assert len(pickle.dumps(kept)) < 100_000


def test_all_events_share_one_limit(answers, other):
    """A limit for each would let dozens of pictures of 50 megapixels be decoded at a time."""

    async def made():
        return make_blocks(answers, other)

    # Where no loop runs gradio makes some, and leaves them open for a later test to trip over.
    blocks = asyncio.run(made())
    events = [event for event in blocks.fns.values() if event.fn is not None]
    assert len(events) > 20
    assert {event.concurrency_id for event in events} == {"all"}


def test_examples_are_spread_over_the_pictures(answers):
    assert example_rows(answers.index, 4) == [0, 10, 20, 30]
    assert example_rows(answers.index, 1000) == list(range(40))
    captions = example_captions(answers.index, [0, 10])
    assert len(captions) == 2
    assert all(c in answers.index.captions[r] for c, r in zip(captions, [0, 10], strict=True))
