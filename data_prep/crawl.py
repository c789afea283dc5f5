"""One call of `download.download`: an event loop that fetches URLs host by host."""

import asyncio
import collections
import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import tenacity
from yarl import URL

from data_prep.addresses import DownloadError, Guard, SafeResolver, parse_url
from data_prep.download import DownloadOptions, Fetched
from data_prep.images import MAX_BYTES
from data_prep.responses import explain, read_response, retry_after, worth_a_retry
from data_prep.robots import ROBOTS_BYTES, Host, Robots, product

_REDIRECTS = 3  # of an image; RFC 9309 asks for five of a robots.txt
_ROBOTS_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
_BACKOFF_SECONDS = 1.0  # before the second try, and as much again by chance; then doubled
_BACKOFF_MAX_SECONDS = 30.0
_RETRY_AFTER_MAX_SECONDS = 60.0
_KEEP_ALIVE_SECONDS = 2.0  # idle connections to thousands of hosts would use up all file handles
_HEADER_BYTES = 32 * 1024
_ACTIVE_HOSTS = 4  # hosts that are worked on at once, per connection


class Crawl:
    """Fetches URLs; `run` is for a thread of its own, `taken` and `stop` are for the caller's.

    URLs are worked on host by host, so that one that answers slowly, or asks to be left alone for
    a while, holds up nobody else: a place among the connections (`_room`) is taken only for the
    time of a request, and kept by the body until the caller has it.

    Attributes:
      answers: one `Fetched` a URL, then None; an exception if this code is at fault.
    """

    def __init__(self, urls: Sequence[str], options: DownloadOptions, guard: Guard) -> None:
        self.answers: queue.SimpleQueue[Fetched | BaseException | None] = queue.SimpleQueue()
        self._urls = urls
        self._options = options
        self._guard = guard
        self._agent = product(options.user_agent)
        self._hosts: dict[str, Host] = {}
        self._started = threading.Event()
        self._task: asyncio.Task | None = None

    def run(self) -> None:
        """All of it, to the end or until `stop`; never raises."""
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # raised where the answers are read
            self.answers.put(error)
        finally:
            self._started.set()
            self.answers.put(None)

    def stop(self) -> None:
        """Ends all connections; `run` returns soon."""
        self._started.wait()
        if self._task is not None:
            self._call(self._task.cancel)

    def taken(self, answer: Fetched) -> None:
        """The caller has got an answer: its place is free."""
        if answer.data:
            self._call(self._room.release)

    def _call(self, function: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, with nothing left to do
            self._loop.call_soon_threadsafe(function)

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._room = asyncio.Semaphore(self._options.connections)
        self._started.set()
        threads = concurrent.futures.ThreadPoolExecutor(self._options.connections, "resolver")
        try:
            async with self._open_session(threads) as self._session, asyncio.TaskGroup() as group:
                self._robots = Robots(self._agent, self._fetch_robots, group.create_task)
                active = asyncio.Semaphore(_ACTIVE_HOSTS * self._options.connections)
                places = self._places_by_host()
                for name in sorted(places, key=lambda name: -len(places[name])):
                    await active.acquire()
                    group.create_task(self._work(name, places.pop(name), active))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # a look-up cannot be interrupted

    def _open_session(self, threads: concurrent.futures.Executor) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,  # `_room` and `Host.limit` see to that
            resolver=SafeResolver(self._guard, threads),
            ttl_dns_cache=60,
            socket_factory=self._guard.socket,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
        )
        connect = min(_CONNECT_SECONDS, self._options.timeout)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._options.user_agent, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect),
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            trust_env=False,  # no proxy: it would look names up anew
        )

    def _places_by_host(self) -> dict[str, collections.deque[int]]:
        """Host → indices of its URLs; what is no URL is answered at once."""
        places: dict[str, collections.deque[int]] = {}
        for index, text in enumerate(self._urls):
            try:
                name = _host_name(parse_url(text))
            except DownloadError as error:
                self._refuse(index, error)
            else:
                places.setdefault(name, collections.deque()).append(index)
        return places

    def _host(self, name: str) -> Host:
        return self._hosts.setdefault(name, Host(self._options.connections_per_host))

    async def _work(
        self, name: str, places: collections.deque[int], active: asyncio.Semaphore
    ) -> None:
        """All URLs of one host."""
        lanes = min(self._options.connections_per_host, len(places))
        await asyncio.gather(*(self._lane(self._host(name), places) for _ in range(lanes)))
        active.release()

    async def _lane(self, host: Host, places: collections.deque[int]) -> None:
        while places:
            index = places.popleft()
            try:
                host.check()
                url = parse_url(self._urls[index])
                data = await self._with_retries(url, image=True)
            except DownloadError as error:
                host.count(error)
                self._refuse(index, error)
            else:
                host.count(None)
                self.answers.put(Fetched(index, data, ""))

    def _refuse(self, index: int, error: DownloadError) -> None:
        self.answers.put(Fetched(index, b"", error.reason, error.detail[:300], error.again))

    async def _fetch_robots(self, url: URL) -> bytes:
        data = await self._with_retries(url, image=False)
        self._room.release()
        return data

    async def _with_retries(self, url: URL, *, image: bool) -> bytes:
        """Contents of a URL; they keep their place in `_room`."""
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._options.retries + 1),
            wait=tenacity.wait_exponential(_BACKOFF_SECONDS, _BACKOFF_MAX_SECONDS)
            + tenacity.wait_random(0, _BACKOFF_SECONDS),
            retry=tenacity.retry_if_exception(worth_a_retry),
            reraise=True,
        )
        return await retrying(self._try, url, image)

    async def _try(self, url: URL, image: bool) -> bytes:
        """Follows redirects by hand: each target is judged like the first URL."""
        left = self._options.timeout
        for _ in range(1 + (_REDIRECTS if image else _ROBOTS_REDIRECTS)):
            self._guard.check_url(url)
            if image and self._options.robots:
                await self._robots.check(url)
            host = self._host(_host_name(url))
            async with host.limit:
                await host.ready()
                await self._room.acquire()
                start, answer = self._loop.time(), url
                try:
                    async with asyncio.timeout(left):
                        answer = await self._request(url, host, image)
                except DownloadError:
                    raise
                except Exception as error:
                    raise explain(error) from error
                finally:
                    if isinstance(answer, URL):
                        self._room.release()
            if not isinstance(answer, URL):
                return answer
            left -= self._loop.time() - start
            url = answer
        raise DownloadError("too many redirects", str(url)[:200])

    async def _request(self, url: URL, host: Host, image: bool) -> bytes | URL:
        async with self._session.get(url, allow_redirects=False) as response:
            if pause := retry_after(response, _RETRY_AFTER_MAX_SECONDS):
                host.resume_at = max(host.resume_at, self._loop.time() + pause)
            if not image:
                return await read_response(response, ROBOTS_BYTES, cut=True)
            agent = self._agent if self._options.robots else ""
            return await read_response(response, MAX_BYTES, agent=agent)


def _host_name(url: URL) -> str:
    return (url.raw_host or "").rstrip(".")
