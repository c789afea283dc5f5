"""One response of a web server: its body, where it points to, or why there is none."""

import datetime
import email.utils
import socket

import aiohttp
from yarl import URL

from data_prep.addresses import DownloadError, NotAllowedError, parse_url
from data_prep.robots import RobotsError, header_forbids

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


async def read_response(
    response: aiohttp.ClientResponse, limit: int, *, cut: bool = False, agent: str = ""
) -> bytes | URL:
    """The body of a good response, or the target of a redirect.

    Args:
      response: whose headers are there.
      limit: longest body, bytes, after decompression; lengths that headers state are not trusted,
        except to give up early.
      cut: take the first `limit` bytes of a longer body instead of refusing it.
      agent: name by which X-Robots-Tag may know us; empty to not follow it.

    Raises:
      DownloadError: anything else.
    """
    status = response.status
    if status in _REDIRECTS and "Location" in response.headers:
        return parse_url(response.headers["Location"], base=response.url)
    if not 200 <= status < 300:
        raise _refusal(status)
    if agent and header_forbids(response.headers.getall("X-Robots-Tag", []), agent):
        raise DownloadError("X-Robots-Tag forbids")
    if not cut and (response.content_length or 0) > limit:
        raise DownloadError("too many bytes", f"{response.content_length:,} announced")
    body = bytearray()  # not a list: a hostile server sends byte by byte
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                break
    except (aiohttp.ClientError, ConnectionError) as error:
        detail = f"after {len(body):,} bytes: {error}"
        raise DownloadError("truncated", detail, again=True) from error
    if not body:
        raise DownloadError("empty", f"status {status}")
    if len(body) > limit and not cut:
        raise DownloadError("too many bytes", f"more than {limit:,}")
    return bytes(body[:limit])


def _refusal(status: int) -> DownloadError:
    detail = f"status {status}"
    if status in (404, 410):
        return DownloadError("not found", detail)
    if status == 429:
        return DownloadError("too many requests", detail, again=True)
    return DownloadError(f"status {status // 100}xx", detail, again=status >= 500)


def retry_after(response: aiohttp.ClientResponse, longest: float) -> float:
    """Seconds that a server asks to be left alone (429 and 503), from 0 to `longest`."""
    text = response.headers.get("Retry-After", "").strip()
    if response.status not in (429, 503) or not text:
        return 0.0
    try:
        if text.isascii() and text.isdigit():
            return min(float(text), longest)
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        wait = (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
    except Exception:  # dates of hostile servers: ValueError, OverflowError, ...
        return 0.0
    return min(max(wait, 0.0), longest)


def explain(error: Exception) -> DownloadError:
    """Any failure of a request → its reason."""
    if isinstance(error, DownloadError):
        return error
    detail = f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, TimeoutError):
        return DownloadError("timed out", detail, again=True)
    if isinstance(error, aiohttp.InvalidURL):
        return DownloadError("bad URL", detail)
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, NotAllowedError):
            return DownloadError("address not allowed", str(cause))
        if isinstance(cause, socket.gaierror):
            again = cause.errno == socket.EAI_AGAIN  # the name server had no time
            return DownloadError("host not found", str(cause), again=again)
    # What is no fault of the line comes back each time: a wrong certificate, no TLS, no HTTP.
    line = isinstance(error, OSError | aiohttp.ServerDisconnectedError)
    fixed = isinstance(error, aiohttp.ClientSSLError)
    return DownloadError("connection failed", detail, again=line and not fixed)


def worth_a_retry(error: BaseException) -> bool:
    """Soon, that is; a server that took all its time once is left for a later run."""
    if not isinstance(error, DownloadError) or isinstance(error, RobotsError):
        return False
    return error.again and error.reason != "timed out"
