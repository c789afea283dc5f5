"""Fetches the image files of many web URLs, safely and politely, in one background thread.

Every URL gets exactly one answer, its bytes or a reason. What is fetched is not believed to be an
image: `images.prepare_image` decides that. The work is done in `crawl`; what must not be reached
is in `addresses`, what sites ask of robots in `robots`.
"""

import dataclasses
import math
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from clip_italian.config import ConfigError

if TYPE_CHECKING:
    from data_prep.crawl import Crawl


@dataclasses.dataclass(frozen=True)
class DownloadOptions:
    """How images are fetched from the web."""

    connections: int = 64
    """Connections at once, per worker; also the most images that wait in memory."""
    connections_per_host: int = 8
    """Connections at once to one host, per worker."""
    timeout: float = 30.0
    """Seconds for one try of a URL in all: redirects and body included."""
    retries: int = 3
    """Further tries after 429, 5xx and broken connections, with growing waits between them."""
    user_agent: str = "clip-italian/0.1 (image-text data preparation)"
    """Sent with each request; the word before the slash is the name robots.txt is asked about.
    Add a page or address where you can be reached: some sites refuse anonymous robots."""
    robots: bool = True
    """Follow robots.txt and X-Robots-Tag (noai, noimageai, noindex, noimageindex, none)."""
    allow_networks: tuple[str, ...] = ()
    """Private networks that may be reached too, as 10.0.0.0/8; public addresses always may."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """The answer for one URL.

    Attributes:
      index: place of the URL among those given, from 0.
      data: contents of the file; empty if it failed.
      reason: empty, or one of `address not allowed`, `bad URL`, `connection failed`, `empty`,
        `host not found`, `not found`, `not http(s)`, `robots.txt forbids`, `status 3xx`,
        `status 4xx`, `status 5xx`, `timed out`, `too many bytes`, `too many redirects`,
        `too many requests`, `truncated`, `X-Robots-Tag forbids`.
      detail: what was found, for a person; not fixed.
      again: whether a later try may succeed.
    """

    index: int
    data: bytes
    reason: str
    detail: str = ""
    again: bool = False


def download(urls: Sequence[str], options: DownloadOptions) -> Generator[Fetched, None, None]:
    """Fetches URLs in any order; yields one answer each, as they come.

    Never more than `connections` bodies are held, each at most `images.MAX_BYTES`: while the
    caller is slow, the network waits. Closing the iterator ends all connections.

    Args:
      urls: any strings.
      options: see there.

    Raises:
      ConfigError: an option has a value that cannot work.
    """
    for name, least in (("connections", 1), ("connections_per_host", 1), ("retries", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name} = {getattr(options, name)}; give {least} or more")
    if not 0 < options.timeout < math.inf:
        raise ConfigError(f"timeout = {options.timeout}; give seconds above 0")
    agent = options.user_agent
    if not (agent.isascii() and agent.isprintable() and agent.split("/")[0].strip()):
        raise ConfigError(f"user_agent = {agent!r}; give ASCII text that starts with a name")
    from data_prep.addresses import Guard, parse_networks  # aiohttp comes with an extra
    from data_prep.crawl import Crawl

    return _answers(Crawl(urls, options, Guard(parse_networks(options.allow_networks))))


def _answers(crawl: "Crawl") -> Generator[Fetched, None, None]:
    thread = threading.Thread(target=crawl.run, name="download", daemon=True)
    thread.start()
    try:
        while (answer := crawl.answers.get()) is not None:
            if isinstance(answer, BaseException):
                raise answer
            crawl.taken(answer)
            yield answer
    finally:
        crawl.stop()
        thread.join()
