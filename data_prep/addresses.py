"""Which URLs and addresses a download may reach: nothing in a dataset may lead it inside.

A URL comes from a file that anybody may have written, so it must not make this machine ask its own
services, its neighbours or its cloud's metadata. Only addresses of the public internet are
reached, and the address that was checked is the one that is connected to: a name is looked up
once, and its answer goes from here straight to the socket, so a name server that answers
differently the second time (DNS rebinding) gains nothing.
"""

import asyncio
import concurrent.futures
import functools
import ipaddress
import socket
from collections.abc import Sequence

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from clip_italian.config import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = frozenset({80, 443, 8000, 8080, 8443})  # web servers; no knocking at other services
_URL_CHARACTERS = 8000
_BLANKS = "".join(map(chr, range(33)))

_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Global by their number, or by what some versions of Python say, yet no place of a web server.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # the host of a virtual machine, in one cloud
        "192.0.0.0/24",  # protocol assignments; another cloud's metadata
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocol assignments; Teredo, which hides an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which hides an IPv4 address
        "3fff::/20",  # documentation
    )
)


class DownloadError(Exception):
    """A URL cannot be fetched.

    Attributes:
      reason: a fixed phrase, as in `download.Fetched`.
      detail: what was found, for a person.
      again: whether a later try may succeed.
    """

    def __init__(self, reason: str, detail: str = "", *, again: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.again = again


class NotAllowedError(PermissionError):
    """A connection was asked for that must not be made; an OSError, as aiohttp expects there."""


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """`10.0.0.0/8` and the like → networks.

    Raises:
      ConfigError: naming `allow_networks`.
    """
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(
            f"allow_networks = {tuple(texts)!r}: {error}; give networks as in 10.0.0.0/8"
        ) from error


def parse_url(text: str, base: URL | None = None) -> URL:
    """The one reading of a URL, by which it is both checked and fetched.

    Args:
      text: anything; blanks around it are dropped, as browsers do.
      base: the URL that `text` may be relative to (the target of a redirect).

    Raises:
      DownloadError: `not http(s)`, or `bad URL`: no host, a user name or password, ...
    """
    text = text.strip(_BLANKS)
    if not text:
        raise DownloadError("bad URL", "empty")
    if base is None and not text.lower().startswith(("http:", "https:")):
        raise DownloadError("not http(s)", text[:100])
    if len(text) > _URL_CHARACTERS:
        raise DownloadError("bad URL", f"{len(text):,} characters")
    try:
        url = URL(text) if base is None else base.join(URL(text))
        host, user, password = url.raw_host, url.raw_user, url.raw_password
        str(url).encode("ascii")
    except Exception as error:  # parsers of hostile text raise more than ValueError
        raise DownloadError("bad URL", f"{text[:100]!r}: {error}"[:200]) from error
    if url.scheme not in ("http", "https"):
        raise DownloadError("not http(s)", text[:100])
    if user is not None or password is not None:
        raise DownloadError("bad URL", "user name or password")
    if not host:
        raise DownloadError("bad URL", "no host")
    return url


class Guard:
    """Judges addresses: the public internet and, beside it, networks that were named.

    Attributes:
      networks: private networks that may be reached, at any port.
    """

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self.networks = tuple(networks)

    def check(self, address: str, port: int) -> None:
        """One numeric address in its usual spelling, just before it is connected to.

        Raises:
          NotAllowedError: no address of the public internet, or a port of other services.
        """
        found = _unwrap(ipaddress.ip_address(address))
        if any(found in network for network in self.networks):
            return
        if not is_public(found) or port not in PORTS:
            raise NotAllowedError(f"{address} port {port}")

    def check_url(self, url: URL) -> None:
        """A host given by number is never looked up, so it is judged here; names pass.

        Raises:
          DownloadError: `address not allowed`.
        """
        host, port = url.raw_host or "", url.port or 0
        try:
            if _is_numeric(host):
                self.check(host, port)
        except ValueError as error:  # 127.1, 0x7f000001: the system would take them for addresses
            raise DownloadError("address not allowed", f"odd number: {host[:100]}") from error
        except NotAllowedError as error:
            raise DownloadError("address not allowed", str(error)) from error

    def socket(self, info: tuple) -> socket.socket:
        """The only maker of sockets of a download: whatever led here, the address is checked.

        Args:
          info: family, type, protocol, name and address as of `socket.getaddrinfo`.
        """
        family, kind, protocol, _, address = info
        self.check(*address[:2])
        return socket.socket(family, kind, protocol)


def is_public(address: Address) -> bool:
    """Whether a host of the public internet may have this (unwrapped) address."""
    if address.version == 6 and address not in _GLOBAL_IPV6:
        return False
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not special and not any(address in one for one in _REFUSED)


def _unwrap(address: Address) -> Address:
    """The IPv4 address that a mapped (::ffff:a.b.c.d) or NAT64 one stands for, else itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise NotAllowedError(f"{address}: one link only")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_numeric(host: str) -> bool:
    """Whether aiohttp or the system would take a host for an address, in any spelling."""
    if ":" in host or host.replace(".", "").isdigit():
        return True
    try:
        socket.inet_aton(host)
    except (OSError, ValueError):
        return False
    return True


class SafeResolver(AbstractResolver):
    """Looks names up; one address that is not allowed spoils the whole answer.

    Attributes:
      guard: judge of the addresses.
      threads: where the system's blocking look-up runs.
    """

    def __init__(self, guard: Guard, threads: concurrent.futures.Executor) -> None:
        self.guard = guard
        self.threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a name.

        Raises:
          NotAllowedError: one of them must not be reached.
          socket.gaierror: no such name, or no answer.
        """
        look_up = functools.partial(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.threads, look_up)
        except ValueError as error:  # a label that is too long, a NUL
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        addresses = [(info[0], str(info[4][0])) for info in found]
        for _, address in addresses:
            self.guard.check(address, port)
        return [
            {"hostname": host, "host": address, "port": port, "family": family_found,
             "proto": 0, "flags": socket.AI_NUMERICHOST}
            for family_found, address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing of its own to close."""
