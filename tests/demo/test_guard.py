"""The guard in front of gradio: sizes and addresses."""

import asyncio
import json
import urllib.parse
from pathlib import Path
from typing import NamedTuple

import pytest

from clip_italian.demo.guard import Guard
from clip_italian.demo.pictures import MAX_BYTES

FILE = {"meta": {"_type": "gradio.FileData"}}


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes


async def echo(scope, receive, send):
    """Answers with the number of bytes it was given."""
    count, more = 0, True
    while more:
        message = await receive()
        count, more = count + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % count})


def ask(path, pieces=(b"",), length=None):
    """What a server makes of one request to the guarded application."""
    path, _, query = path.partition("?")
    pieces, sent = list(pieces), []
    scope = {
        "type": "http",
        "path": urllib.parse.unquote(path),
        "query_string": query.encode(),
        "headers": [] if length is None else [(b"content-length", length)],
    }

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(echo, Path("/tmp/uploads"))(scope, receive, send))
    return Answer(sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"])


def post(path, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(path, [content], b"%d" % len(content)).status


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://169.254.169.254/latest",
        "/gradio_api/file=https://example.org/a.png",
        "/gradio_api/file=//example.org/a.png",
        "/gradio_api/file=HTTP://example.org",
        "/gradio_api/file=%68ttp://example.org",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/proxy=http://example.org/file=a",
        "/file=ftp://example.org/a",
    ],
)
def test_addresses_are_not_followed(path):
    assert ask(path).status == 403


@pytest.mark.parametrize("path", ["/", "/en", "/gradio_api/file=/tmp/gradio/a.png", "/config"])
def test_pages_and_files_pass(path):
    answer = ask(path)
    assert (answer.status, answer.body) == (200, b"0")
    assert answer.headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/a.png",
        "HTTPS://example.org/a.png",
        "//example.org/a.png",
        "  http://example.org",
        "gopher://example.org",
        "file:///etc/passwd",
        "/etc/passwd",
        "setup.cfg",
        "/tmp/uploads/../a.png",
        "/tmp/uploads_of_others/a.png",
        "/tmp/uploads/\0a.png",
        ["/tmp/uploads/a.png"],
        7,
    ],
)
@pytest.mark.parametrize("wrap", [lambda f: [f], lambda f: [[{"image": f}]], lambda f: f])
def test_a_file_that_was_not_uploaded_is_refused(address, wrap):
    body = {"data": wrap({"path": address, **FILE})}
    assert post("/gradio_api/queue/join", body) == 400
    # A reader of bytes alone would miss the same in escapes.
    escaped = json.dumps(body).replace("path", "\\u0070ath")
    assert post("/gradio_api/queue/join", escaped.encode()) == 400
    for encoding in ("utf-16", "utf-16-le", "utf-32"):  # which a JSON body may have as well
        assert post("/gradio_api/queue/join", json.dumps(body).encode(encoding)) == 400


def test_uploaded_files_and_texts_about_addresses_pass():
    body = {"data": [{"path": "/tmp/uploads/0/a.png", "url": "http://here/a.png", **FILE}]}
    assert post("/gradio_api/queue/join", body) == 200
    body = {"data": ['un cane su http://example.org "path": "http://a"']}
    assert post("/gradio_api/queue/join", body) == 200
    body = {"data": [{"path": None, **FILE}]}
    assert post("/gradio_api/queue/join", body) == 200
    assert post("/gradio_api/queue/join", b'{"path": ') == 400


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/deep_link?session_hash=a",
        "/gradio_api/file/http://example.org/a.png",
        "/gradio_api/vibe-edit/",
        "/gradio_api/run/upload",
        "/gradio_api/queue/join/upload",
        "//gradio_api/deep_link",
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(path):
    assert ask(path).status == 404
    assert post(path, {"data": []}) == 404


def test_a_body_is_handed_on_whole():
    pieces = [b"a" * 1000] * (MAX_BYTES // 1000)
    assert ask("/gradio_api/upload", pieces).body == b"%d" % MAX_BYTES


@pytest.mark.parametrize(
    ("path", "size"), [("/gradio_api/upload", MAX_BYTES + 200_000), ("/gradio_api/call/a", 300_001)]
)
def test_too_much_is_refused(path, size):
    assert post(path, b"a" * size) == 413
    assert ask(path, [], b"%d" % size).status == 413  # before anything is read
    assert ask(path, [b"a" * 1000] * (size // 1000 + 1)).status == 413  # no length is stated


def test_a_length_that_is_no_number_is_refused():
    assert ask("/gradio_api/upload", length=b"-1").status == 413
