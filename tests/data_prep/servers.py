"""A web server with every fault that a download may meet, for tests and benchmarks.

The first part of a path says what happens: /ok/1.jpg is a good picture, /404/x is missing, ...
"""

import asyncio
import collections
import contextlib
import gzip
import threading
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence

HTML = b"<!doctype html><title>Gone</title><p>This picture has moved."


class FaultServer:
    """Listens on several addresses of this machine at one port.

    Attributes:
      port: chosen by the system.
      accepted: local address → connections that came in.
      requests: path → requests.
      agents: values of the User-Agent header that were seen.
      headers: of the last request, lower-case names.
      open: connections that are open now.
      peak: local address → most requests that were answered at one time.
      finished: (moment, path) of every answer that was sent in full.
    """

    def __init__(
        self,
        hosts: Sequence[str] = ("127.0.0.1",),
        *,
        pictures: Sequence[bytes] = (b"picture",),
        robots: str | dict[str, str] = "",
        retry_after: str = "0",
        pause: float = 0.0,
    ) -> None:
        """Does not listen yet.

        Args:
          hosts: addresses to listen on.
          pictures: bodies of good answers, taken in turn by the path.
          robots: what every robots.txt says, or an address's own; the name of a fault instead of
            text lets that happen. Empty: there is none (404).
          retry_after: header of 429 and 503.
          pause: seconds before every good answer.
        """
        self.hosts, self.pictures, self.robots = hosts, pictures, robots
        self.retry_after, self.pause = retry_after, pause
        self.port = 0
        self.accepted: collections.Counter[str] = collections.Counter()
        self.requests: collections.Counter[str] = collections.Counter()
        self.agents: set[str] = set()
        self.headers: dict[str, str] = {}
        self.finished: list[tuple[float, str]] = []
        self.open = 0
        self.peak: collections.Counter[str] = collections.Counter()
        self._busy: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task] = set()

    def url(self, path: str, host: str = "") -> str:
        return f"http://{host or self.hosts[0]}:{self.port}/{path}"

    async def start(self) -> None:
        for host in self.hosts:
            server = await asyncio.start_server(self._serve, host, self.port, backlog=1024)
            self.port = server.sockets[0].getsockname()[1]
            self._tasks.add(asyncio.ensure_future(server.serve_forever()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host = writer.get_extra_info("sockname")[0]
        self.accepted[host] += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(host, reader, writer):
                    pass
        except asyncio.CancelledError:
            pass  # the server is stopped
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def _one(self, host: str, reader, writer) -> bool:
        """One request; whether the connection may be used again."""
        head = await reader.readexactly(1)
        if head == b"\x16":  # TLS, which is not spoken here
            return False
        head += await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        path = lines[0].split()[1]
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        self.agents.add(self.headers.get("user-agent", ""))
        self.requests[path] += 1
        kind, _, rest = path.lstrip("/").partition("/")
        if path == "/robots.txt":
            kind = self.robots if isinstance(self.robots, str) else self.robots.get(host, "")
            if "\n" in kind:
                writer.write(answer(kind.encode()))
                await writer.drain()
                return True
            kind, _, rest = (kind or "404").partition("/")
        if kind == "silent":
            return bool(await reader.read())  # until the client has had enough
        self._busy[host] += 1
        self.peak[host] = max(self.peak[host], self._busy[host])
        try:
            again = await self._answer(kind, rest, path, writer)
            await writer.drain()
        finally:
            self._busy[host] -= 1
        self.finished.append((asyncio.get_running_loop().time(), path))
        return again

    async def _answer(self, kind: str, rest: str, path: str, writer) -> bool:
        if kind in ("429-then-good", "500-then-good", "reset-then-good"):
            kind = "ok" if self.requests[path] > 1 else kind.removesuffix("-then-good")
        if kind == "ok":
            await asyncio.sleep(self.pause)
            writer.write(answer(self.pictures[zlib.crc32(path.encode()) % len(self.pictures)]))
        elif kind.isdigit():
            writer.write(answer(HTML, status=kind, headers=f"Retry-After: {self.retry_after}\r\n"))
        elif kind == "redirect":  # /redirect/3 → /redirect/2 → ... → /ok/0
            left = int(rest)
            writer.write(redirect(f"/redirect/{left - 1}" if left > 1 else "/ok/0"))
        elif kind == "loop":
            writer.write(redirect(path))
        elif kind == "to":
            writer.write(redirect(urllib.parse.unquote(rest)))
        elif kind in _SIMPLE:
            writer.write(_SIMPLE[kind](self.pictures[0]))
        else:
            await self._misbehave(kind, writer)
            return False
        return True

    async def _misbehave(self, kind: str, writer) -> None:
        """Answers after which the connection is of no more use."""
        picture = self.pictures[0]
        if kind == "reset":
            writer.transport.abort()
        elif kind == "slow":  # always a little more
            writer.write(answer(b"", length=1000))
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.05)
        elif kind == "endless":
            writer.write(answer(b"", length=None))
            while not writer.is_closing():
                writer.write(bytes(256 * 1024))
                await writer.drain()
        elif kind == "truncated":
            writer.write(answer(picture[: len(picture) // 2], length=len(picture)))
        elif kind == "truncated-chunks":
            writer.write(answer(b"", headers="Transfer-Encoding: chunked\r\n", length=None))
            writer.write(b"5\r\nhello\r\n")
        elif kind == "bomb":
            await bomb(writer)
        elif kind == "garbage":
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        else:
            raise ValueError(f"no such fault: {kind}")


def answer(
    body: bytes, *, status: str = "200", headers: str = "", length: int | None = -1
) -> bytes:
    """An HTTP response; `length` is what Content-Length says: -1 the truth, None nothing."""
    length = len(body) if length == -1 else length
    stated = "" if length is None else f"Content-Length: {length}\r\n"
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: image/jpeg\r\n{stated}{headers}\r\n"
    return head.encode() + body


def redirect(target: str) -> bytes:
    return answer(b"", status="302", headers=f"Location: {target}\r\n")


async def bomb(writer: asyncio.StreamWriter) -> None:
    """Ten gigabytes of zeros as ten megabytes of gzip."""
    head = "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"
    writer.write(answer(b"", headers=head, length=None))
    press = zlib.compressobj(9, wbits=31)
    for _ in range(10_000):
        part = press.compress(bytes(1_000_000))
        if writer.is_closing():
            return
        if part:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()


def _byte_by_byte(picture: bytes) -> bytes:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in picture)
    return (
        answer(b"", headers="Transfer-Encoding: chunked\r\n", length=None) + chunks + b"0\r\n\r\n"
    )


_SIMPLE = {
    "html": lambda picture: answer(HTML),
    "empty": lambda picture: answer(b""),
    "chunks": _byte_by_byte,
    "gzip": lambda picture: answer(gzip.compress(picture), headers="Content-Encoding: gzip\r\n"),
    "announced": lambda picture: answer(picture, length=10**9),
    "short": lambda picture: answer(picture, length=3),  # says less than it sends
    "cookie": lambda picture: answer(picture, headers="Set-Cookie: id=1; Path=/\r\n"),
    "noai": lambda picture: answer(picture, headers="X-Robots-Tag: noai\r\n"),
    "nofollow": lambda picture: answer(picture, headers="X-Robots-Tag: nofollow\r\n"),
}


@contextlib.contextmanager
def serving(*args, **options) -> Iterator[FaultServer]:
    """A `FaultServer` in a thread of its own."""
    server = FaultServer(*args, **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
