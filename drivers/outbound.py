"""Requests to URLs that users gave: only to addresses that the whole world can reach.

Who can make the platform send a request must not reach through it what only the platform's machines reach: their
loopback, the networks behind them, the metadata address of a cloud. So it is the address that is judged, and at the
socket that connects to it: whatever was resolved before, however it is spelled, and at each redirect again.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Hashable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from types import SimpleNamespace
from typing import Any

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from drivers.lookups import look_up
from model.errors import UrlRefused

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]
MOST_REDIRECTS = 3
MOST_URL = 2000
log = structlog.get_logger()

#: What IANA has given out of IPv6 (https://www.iana.org/assignments/ipv6-address-space): nothing else is global.
_GLOBAL = IPv6Network("2000::/3")
#: Of documentation (RFC 9637): not known as such to every Python that we run on.
_DOCUMENTATION = IPv6Network("3fff::/20")
#: Not known to every Python as what they are: protocol assignments, where a cloud has its metadata (RFC 6890), and
#: relays of 6to4 (RFC 7526); and public by its number, the address at which Azure's machines find their platform.
_NOT_FOR_ALL = tuple(IPv4Network(one) for one in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))
#: Of other protocols, some of which take a request for one of theirs ("bad port", https://fetch.spec.whatwg.org).
_OTHERS_PORTS = frozenset(
    (
        *(1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109),
        *(110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530),
        *(531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045),
        *(4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080),
    )
)
#: IPv6 addresses that a gateway turns into the IPv4 address in their last 32 bits (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


def session(allow: Networks, *, timeout: aiohttp.ClientTimeout, owner: Hashable = None) -> aiohttp.ClientSession:
    """A client for such URLs; to be closed by the caller.

    http and https only; at most 3 redirects; no proxy, no cookies, and bodies as they are sent (nothing is
    decompressed). ``allow``: networks that may be reached although they are not global. ``owner``: whose URLs they are;
    names of one owner that are slow to be looked up keep nobody else waiting. Every request raises UrlRefused, beside
    aiohttp's errors (a ClientError for another scheme).
    """
    tracing = aiohttp.TraceConfig(_Hops)
    tracing.on_request_start.append(_started)
    tracing.on_request_redirect.append(_redirected)

    def open_socket(address: Any) -> socket.socket:
        family, kind, protocol, _, target = address
        _check_address(target[0], target[0], allow)
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        resolver=_Resolver(allow, owner),
        use_dns_cache=False,
        # One address after the other: an error of ours comes out as it is.
        happy_eyeballs_delay=None,
        socket_factory=open_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        trace_configs=[tracing],
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
    )


async def check(url: str, allow: Networks, owner: Hashable = None) -> None:
    """Refuse what ``session`` would refuse now, where a user names it. Raises UrlRefused.

    A name that is not known at the moment passes: it may be known when it is needed.
    """
    if len(url) > MOST_URL:
        raise UrlRefused(f"the URL has more than {MOST_URL} characters")
    try:
        parsed = URL(url)
        _check_form(parsed)
    except ValueError as error:
        raise UrlRefused(f"not a URL: {error}") from None
    host = (parsed.raw_host or "").rstrip(".")
    with contextlib.suppress(ValueError):
        # By itself: the resolver has no answer for a form of address that this machine does not use.
        _check_address(str(ip_address(host)), host, allow)
        return
    with contextlib.suppress(OSError):
        await _Resolver(allow, owner).resolve(host, parsed.port or 0)


async def addresses(
    host: str, port: int, allow: Networks, owner: Hashable
) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Where a name is to be connected to, as ``connect`` takes it: what is not refused. Raises UrlRefused, OSError."""
    found = await _Resolver(allow, owner).resolve(host, port)
    return [(socket.AddressFamily(one["family"]), (one["host"], one["port"])) for one in found]


class _Hops(SimpleNamespace):
    """The redirects of one request."""

    number = 0


async def _started(_session: Any, _hops: Any, request: aiohttp.TraceRequestStartParams) -> None:
    _check_form(request.url)


async def _redirected(_session: Any, hops: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
    hops.number += 1
    response = redirect.response
    try:
        if hops.number > MOST_REDIRECTS:
            raise UrlRefused(f"{redirect.url.host} redirects more than {MOST_REDIRECTS} times")
        location = response.headers.get("Location") or response.headers.get("URI") or ""
        try:
            _check_form(response.url.join(URL(location)))
        except ValueError as error:
            raise UrlRefused(f"{redirect.url.host} redirects to what is no URL") from error
    except UrlRefused:
        response.close()
        raise


class _Resolver(AbstractResolver):
    """A name of which one address is refused is refused: it is not asked again until it gives a better answer."""

    def __init__(self, allow: Networks, owner: Hashable) -> None:
        self._allow = allow
        self._owner = owner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found: list[ResolveResult] = []
        for kind, _, protocol, _, target in await look_up(self._owner, host, port, family):
            _check_address(target[0], host, self._allow)
            answer: ResolveResult = {
                "hostname": host,
                "host": target[0],
                "port": target[1],
                "family": kind,
                "proto": protocol,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            found.append(answer)
        return found

    async def close(self) -> None:
        """It holds nothing."""


def _check_form(url: URL) -> None:
    if url.scheme not in ("http", "https"):
        raise UrlRefused(f"expected a URL of http or https, got '{url.scheme or url.path[:100]}'")
    host = (url.raw_host or "").rstrip(".")
    if not host:
        raise UrlRefused("the URL names no host")
    if url.user is not None or url.password is not None:
        raise UrlRefused("the URL holds a name or password, or hides its host behind one")
    if url.port in _OTHERS_PORTS:
        raise UrlRefused(f"port {url.port} is that of another protocol than http")
    with contextlib.suppress(OSError):
        # "2130706433", "0x7f.1" and the like: what the system takes for an address, and a reader does not.
        if socket.inet_ntoa(socket.inet_aton(host)) != host:
            raise UrlRefused(f"{host}: write the address as four decimal numbers")


def _check_address(address: str, name: str, allow: Networks) -> None:
    parsed = _carried(ip_address(address))
    if any(parsed.version == network.version and parsed in network for network in allow):
        return
    if not _is_global(parsed):
        # Who named it is not told what the platform's resolver knows of its own network: the operator is.
        log.info("outbound.refused", name=name, address=address)
        raise UrlRefused(f"{name} is no public address; an operator can allow its network (CAIRN_OUTBOUND_ALLOW)")


def _carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: the packet ends up there."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_global(address: Address) -> bool:
    if isinstance(address, IPv6Address):
        if address not in _GLOBAL or address in _DOCUMENTATION:
            return False
    elif any(address in network for network in _NOT_FOR_ALL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved
