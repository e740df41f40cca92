"""Registries that users name: which one a reference means, and whether engines are sent there.

An engine resolves a registry's name by itself, and follows where its answers lead: what is refused here is what can
be told before. The rest is for the rules of the host's own network.
"""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

import aiohttp

from drivers import outbound
from drivers.images import repository
from model.errors import CairnError

HUB = "registry-1.docker.io"
_HUB_NAMES = ("docker.io", "index.docker.io")
LOOPBACK = ("localhost", "127.0.0.1")
PROBE_SECONDS = 3
TOO_MANY = 429


class Place(NamedTuple):
    """Where an image is: the registry as the reference names it (None: the Docker Hub), its path and tag or digest."""

    registry: str | None
    path: str
    tag: str

    @property
    def url(self) -> str:
        """Of its manifest. Engines ask loopback without encryption."""
        host = self.registry or HUB
        scheme = "http" if host.partition(":")[0] in LOOPBACK else "https"
        return f"{scheme}://{host}/v2/{self.path}/manifests/{self.tag}"


def split(reference: str) -> tuple[str, str]:
    """Repository, and tag or digest."""
    name, _, digest = reference.partition("@")
    found = repository(name)
    return found, digest or name[len(found) + 1 :] or "latest"


def place(reference: str) -> Place:
    """By the rules of engines: what has a dot, a colon or a capital letter before its first slash is a registry."""
    name, tag = split(reference)
    host, slash, path = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost" or host != host.lower()):
        host, path = _HUB_NAMES[0], name
    if host in _HUB_NAMES:
        return Place(None, path if "/" in path else f"library/{path}", tag)
    return Place(host, path, tag)


async def check_address(reference: str, allow: outbound.Networks) -> None:
    """Refuse a registry that is written as an address, where engines are not sent there. Looks up no name: the host
    that pulls does. Raises UrlRefused."""
    registry = place(reference).registry
    if registry is None:
        return
    try:
        socket.inet_aton(registry.partition(":")[0])
    except OSError:
        return
    await outbound.check(f"https://{registry}/", allow)


def check(reference: str, allow: outbound.Networks) -> None:
    """The same of any registry, as this machine resolves its name now. Blocks. Raises UrlRefused.

    What this machine cannot resolve passes: its engine may go through a proxy.
    """
    registry = place(reference).registry
    if registry is not None:
        asyncio.run(outbound.check(f"https://{registry}/", allow))


def retry_after(reference: str, allow: outbound.Networks) -> float | None:
    """Seconds that the registry asks to be left alone: the engine keeps its answer's ``Retry-After`` for itself.
    Blocks. None: it does not say."""
    try:
        return asyncio.run(_ask(place(reference).url, allow))
    except (aiohttp.ClientError, CairnError, OSError, ValueError):
        return None


async def _ask(url: str, allow: outbound.Networks) -> float | None:
    timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
    async with (
        outbound.session(allow, timeout=timeout) as http,
        http.head(url, allow_redirects=False) as answer,
    ):
        return seconds(answer.headers.get("Retry-After", "")) if answer.status == TOO_MANY else None


def seconds(retry_after: str) -> float | None:
    """What a ``Retry-After`` says; None where that is not a number of seconds."""
    return float(retry_after[:9]) if retry_after.isascii() and retry_after.isdecimal() else None
