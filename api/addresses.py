"""Where a request comes from. What proxies say of it counts only from those that the operator trusts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

Networks = Sequence[IPv4Network | IPv6Network]
#: What one customer of a provider has of IPv6: whoever has one address of it has all of them.
IPV6_PREFIX = 64


def client_address(request: HTTPConnection) -> str:
    """The address of who asks; "" where the connection has none (a Unix socket).

    ``X-Forwarded-For`` is read from its end, where the nearest proxy wrote, as far as trusted proxies wrote it.
    """
    return address_of(request.scope, request.app.state.settings.trusted_proxies)


def address_of(scope: Scope, trusted: Networks) -> str:
    """The same of an ASGI scope."""
    peer = _peer(scope)
    if not trusted or not _is_trusted(peer, tuple(trusted)):
        return peer
    last = peer
    for said in reversed(",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")):
        address = _parse(said.strip())
        if address is None:
            break  # nonsense, or nothing: whoever wrote it is the last that is known
        last = str(address)
        if not _is_trusted(last, tuple(trusted)):
            break
    return last


def came_by_https(scope: Scope, trusted: Networks) -> bool:
    """Whether the client's own connection was encrypted: as the server knows, or a trusted proxy says."""
    if scope.get("scheme") in ("https", "wss"):
        return True
    if not trusted or not _is_trusted(_peer(scope), tuple(trusted)):
        return False
    # Of several proxies the first one met the client.
    return Headers(scope=scope).get("x-forwarded-proto", "").partition(",")[0].strip().lower() in ("https", "wss")


@lru_cache(4096)
def bucket_of(address: str) -> str:
    """What is counted together: an IPv4 address, or the network that an IPv6 address belongs to."""
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, IPV6_PREFIX), strict=False))
    return address


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    found = _parse(client[0]) if client else None
    return "" if found is None else str(found)


def _parse(said: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: also with a port, and with brackets."""
    if said.startswith("["):
        said = said[1:].partition("]")[0]
    elif said.count(":") == 1:
        said = said.partition(":")[0]
    try:
        address = ip_address(said)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


@lru_cache(4096)
def _is_trusted(address: str, trusted: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    parsed = _parse(address)
    return parsed is not None and any(parsed.version == one.version and parsed in one for one in trusted)
