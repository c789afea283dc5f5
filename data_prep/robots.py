"""Politeness: robots.txt (RFC 9309), X-Robots-Tag, and what a host is asked for at once."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from protego import Protego
from yarl import URL

from data_prep.addresses import DownloadError

ROBOTS_BYTES = 512 * 1024  # what is read of a robots.txt; the RFC asks for 500 KiB at least
_KEPT_BYTES = 8 * 1024 * 1024  # of robots.txt files at once; parsed they take up to 30 times that
_ENTRY_BYTES = 4096
_GIVE_UP_AFTER = 20  # URLs of a host that failed in a row, each after all its tries

# How a robots.txt that could not be read is taken. All else, as 404, means: no rules.
_UNREACHABLE = frozenset({"too many requests", "status 5xx", "timed out", "truncated"})
_HOST_FAULTS = frozenset({"host not found", "connection failed", "address not allowed"})

_AGENT_LINE = re.compile(r"\s*user[- ]?agent(?![\w-])[:\s]*([^#]*)", re.IGNORECASE)
_FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def product(user_agent: str) -> str:
    """Name by which robots.txt knows a client: the first word, up to the slash; lower case."""
    return user_agent.split("/")[0].split()[0].lower()


def header_forbids(values: Iterable[str], agent: str) -> bool:
    """Whether X-Robots-Tag asks that a picture be kept out of an index or of training.

    `noindex, noai` speaks to all; `otherbot: noindex, nofollow` only to the named client, up to
    the next name.

    Args:
      values: all headers of that name.
      agent: as of `product`.
    """
    for value in values:
        addressed = True
        for part in value.lower().split(","):
            name, colon, rest = (text.strip() for text in part.partition(":"))
            if colon and name not in _WITH_VALUE:
                addressed, name = name in ("*", agent), rest
            if addressed and name in _FORBIDDING:
                return True
    return False


def parse_robots(data: bytes, agent: str) -> Protego:
    """Rules of a robots.txt.

    Groups of other clients are merged into one: a file of 500 KB with thousands of names over
    thousands of rules would fill the memory.
    """
    lines = data.decode("utf-8-sig", errors="replace").splitlines()
    return Protego.parse("\n".join(_only_for(agent, line) for line in lines))


def _only_for(agent: str, line: str) -> str:
    found = _AGENT_LINE.match(line)
    if found is None:
        return line
    name = found[1].replace("*", "").strip().lower()
    return f"User-agent: {(name or '*') if agent.startswith(name) else 'another'}"


class RobotsError(DownloadError):
    """What became of a robots.txt; it is known for good, so asking again is no use."""


class Robots:
    """Asks each server once for its robots.txt; all who need it wait for the same answer.

    A server that cannot be asked (5xx, 429, no answer in time) forbids all; any other status but
    2xx allows all; a file that is too long counts up to `ROBOTS_BYTES`.
    """

    def __init__(
        self,
        agent: str,
        fetch: Callable[[URL], Awaitable[bytes]],
        start: Callable[[Coroutine[Any, Any, Any]], asyncio.Task],
    ) -> None:
        """Starts with no file.

        Args:
          agent: as of `product`.
          fetch: gets the contents of a robots.txt, or raises `DownloadError`.
          start: makes a task of a coroutine; its end is for the caller to see to.
        """
        self._agent = agent
        self._fetch = fetch
        self._start = start
        self._files: dict[URL, asyncio.Task] = {}  # by origin, the last used one last
        self._bytes = 0

    async def check(self, url: URL) -> None:
        """Waits for the robots.txt of a server.

        Raises:
          RobotsError: `robots.txt forbids`, or the server cannot be reached at all.
        """
        origin = url.origin()
        task = self._files.pop(origin, None) or self._start(self._load(origin))
        self._files[origin] = task
        rules, fault, _ = await asyncio.shield(task)
        if fault is not None:
            raise RobotsError(fault.reason, fault.detail, again=fault.again)
        assert rules is not None
        try:
            allowed = rules.can_fetch(str(url), self._agent)
        except ValueError as error:  # it reads the URL in its own way
            raise RobotsError("robots.txt forbids", f"unclear: {error}") from error
        if not allowed:
            raise RobotsError("robots.txt forbids")

    async def _load(self, origin: URL) -> tuple[Protego | None, RobotsError | None, int]:
        """Rules, or why the server must be left alone; what this counts in memory, bytes."""
        rules = fault = None
        data = b""
        try:
            data = await self._fetch(origin / "robots.txt")
        except DownloadError as error:
            if error.reason in _HOST_FAULTS:
                fault = RobotsError(error.reason, error.detail, again=error.again)
            elif error.reason in _UNREACHABLE:
                detail = f"it could not be read: {error.reason}"
                fault = RobotsError("robots.txt forbids", detail, again=True)
        try:
            rules = await asyncio.to_thread(parse_robots, data, self._agent)
        except Exception as error:  # a parser of hostile text: no rules that could be kept to
            fault = RobotsError("robots.txt forbids", f"it could not be parsed: {error!r:.100}")
        size = _ENTRY_BYTES + len(data)
        self._make_room(size)
        return rules, fault, size

    def _make_room(self, size: int) -> None:
        self._bytes += size
        for origin in [origin for origin, task in self._files.items() if task.done()]:
            if self._bytes <= _KEPT_BYTES:
                break
            self._bytes -= self._files.pop(origin).result()[2]


class Host:
    """What all requests to one host name share.

    Attributes:
      limit: connections that are left.
      resume_at: loop time before which the host wants no request.
      fault: why the last URL failed, if it may succeed another time.
      faults: how many of its URLs failed so in a row.
    """

    def __init__(self, connections: int) -> None:
        self.limit = asyncio.Semaphore(connections)
        self.resume_at = 0.0
        self.fault = ""
        self.faults = 0

    async def ready(self) -> None:
        """Waits for as long as the host has asked to be left alone."""
        while (wait := self.resume_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait)

    def count(self, error: DownloadError | None) -> None:
        """Notes how a URL of the host ended, after all its tries."""
        self.faults = self.faults + 1 if error is not None and error.again else 0
        self.fault = "" if error is None else error.reason

    def check(self) -> None:
        """Spares a host that is down, and the time to find out for each of its URLs.

        Raises:
          DownloadError: the last so many failed.
        """
        if self.faults >= _GIVE_UP_AFTER:
            detail = f"given up: {self.faults} URLs of this host failed in a row"
            raise DownloadError(self.fault, detail, again=True)
