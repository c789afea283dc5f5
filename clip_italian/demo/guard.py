"""In front of gradio: sizes of requests, no routes but the page's, no file but uploaded ones.

Gradio takes `{"path": "http://..."}` in place of an uploaded file and fetches it, redirects
`/file=http://...` anywhere, and, within another application, reads `{"path": "/etc/..."}` unasked.
Others of its routes hand a stranger's video to ffmpeg, or keep on the disk what somebody typed. The
page needs none of it.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from clip_italian.demo.pictures import MAX_BYTES

_FORM = 100_000  # bytes that a multipart form may add to a file
_MAX_UPLOAD = MAX_BYTES + _FORM
_MAX_MESSAGE = 300_000  # bytes of any other request: texts, numbers, names of uploaded files
_ADDRESS = re.compile(r"(file|proxy)=\s*(/*[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_UPLOAD = "/gradio_api/upload"
# Of gradio's routes what its page and its clients ask for.
_ROUTES = re.compile(
    r"/gradio_api/(upload(_progress)?|queue/(join|data|status)|call/(v2/)?\w+(/\w+)?|cancel|reset"
    r"|file=.*|heartbeat/\w+|info|config|app_id|startup-events|theme\.css)/?",
    re.DOTALL,
)

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self, app: Callable[[Message, Receive, Send], Awaitable[None]], uploads: Path
    ) -> None:
        """Guards `app`, which keeps uploaded files in the folder `uploads`."""
        self._app, self._uploads = app, uploads.resolve()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuses with 403, 413 or 400, or hands on what it has read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        asked = f"{path}?{scope.get('query_string', b'').decode('latin-1')}"
        if _ADDRESS.search(asked) or "/proxy=" in path:
            await _refuse(send, 403, "addresses are not followed")
            return
        if "gradio_api" in path and not _ROUTES.fullmatch(path):
            await _refuse(send, 404, "the page needs no such route")
            return
        upload = path.rstrip("/") == _UPLOAD
        body = await _read(receive, scope, _MAX_UPLOAD if upload else _MAX_MESSAGE)
        if body is None:
            await _refuse(send, 413, "the request is too large; pictures may have 5 MB")
        elif not upload and self._names_other_file(body):
            await _refuse(send, 400, "only uploaded files are read; upload it")
        else:
            await self._app(scope, _replay(body, receive), _secured(send))

    def _names_other_file(self, body: bytes) -> bool:
        """Whether some file of a JSON body is none that was uploaded: gradio would read it."""
        if not body:
            return False
        try:  # read as gradio reads it, whatever its encoding: a search for bytes misses UTF-16
            return any(not self._uploaded(path) for path in _paths(json.loads(body)))
        except (ValueError, RecursionError):
            return True  # no JSON, or a path that no system knows

    def _uploaded(self, path: Any) -> bool:
        if path is None:
            return True
        return isinstance(path, str) and Path(path).resolve().is_relative_to(self._uploads)


async def _read(receive: Receive, scope: Message, most: int) -> bytes | None:
    """The whole body; None if it is longer than `most`, whatever its header says."""
    stated = dict(scope["headers"]).get(b"content-length", b"0")
    if not stated.isdigit() or int(stated) > most:
        return None
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            return None
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _paths(value: Any) -> Iterator[Any]:
    """What is called `path` anywhere in a JSON value."""
    if isinstance(value, list):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        yield from _paths(list(value.values()))


def _secured(send: Send) -> Send:
    """Adds a header, so that no browser takes an upload for a page."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sent


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
