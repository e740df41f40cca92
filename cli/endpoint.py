"""Which API a command speaks to, and as who."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cli import config
from cli.config import Context
from cli.errors import CommandFailed, Exit
from cli.given import given

START_HINT = (
    "start the platform with: cairn up (or make up); "
    "or name another: cairn context add, or CAIRN_API_URL and CAIRN_API_KEY"
)


@dataclass(frozen=True)
class Endpoint:
    """Where the API is. ``stopped``: its endpoint file says that the platform was stopped."""

    api_url: str
    api_key: str | None = field(repr=False)
    stopped: bool = False
    project: str | None = None
    #: The certificates to trust, and no others; None: those of the system.
    ca_file: str | None = None
    #: What said so, for people.
    source: str = field(default="", compare=False)
    #: The context that it is of.
    context: str | None = None
    #: The same, where it is somebody's who has logged in: their tokens are used, and no key.
    session: Context | None = field(default=None, repr=False)


def find_endpoint(environ: Mapping[str, str] = os.environ) -> Endpoint:
    """What the flags name, else the environment, else the chosen context, else the platform of this folder.

    A key that is stored with an address is never sent to another one.
    """
    key = environ.get("CAIRN_API_KEY") or None
    if given.api_url:
        # A context beside it gives what else it knows; its key only where that is its own address.
        known = config.read(environ).find(given.context) if given.context else None
        return _explicit(given.api_url, key, known, "--api-url")
    if given.context:
        # Flags are stronger than the environment: its key is of another platform, maybe.
        named = config.read(environ).find(given.context)
        return _of(named, named.key or (None if named.refresh_token else key), "--context")
    if url := environ.get("CAIRN_API_URL"):
        return _explicit(url, key, None, "CAIRN_API_URL")
    if name := environ.get("CAIRN_CONTEXT"):
        named = config.read(environ).find(name)
        return _of(named, key or named.key, "CAIRN_CONTEXT")
    known_here = config.read(environ)
    if known_here.current:
        chosen = known_here.find(known_here.current)
        return _of(chosen, key or chosen.key, "cairn context use")
    return _of_this_folder(environ, key)


def is_loopback(url: str) -> bool:
    """Not a name that only begins like an address of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _explicit(url: str, key: str | None, known: Context | None, source: str) -> Endpoint:
    url = url.rstrip("/")
    if known is None and key is None:
        # Who has logged in there, and named no other credential.
        logged_in = (one for one in config.read().contexts.values() if one.url == url and one.refresh_token)
        known = next(logged_in, None)
    if known is None or known.url != url:
        return Endpoint(url, key, source=source)
    return _of(known, known.key or (None if known.refresh_token else key), source)


def _of(known: Context, key: str | None, source: str) -> Endpoint:
    # A login is stronger than the key beside it, and weaker than one that was given for this command.
    logged_in = bool(known.refresh_token) and key in (None, known.key)
    return Endpoint(
        known.url,
        None if logged_in else key,
        project=known.project,
        ca_file=known.ca_file,
        source=f"context {known.name} ({source})",
        context=known.name,
        session=known if logged_in else None,
    )


def _of_this_folder(environ: Mapping[str, str], key: str | None) -> Endpoint:
    path = Path(environ.get("CAIRN_DATA_DIR") or ".cairn") / "endpoint.json"
    try:
        known = json.loads(path.read_text())
        pids = known.get("pids")
        url = str(known["api_url"]).rstrip("/")
        return Endpoint(
            url,
            # Whose folder this is nobody has said: a key of the environment stays on this machine.
            (key if is_loopback(url) else None) or known.get("api_key"),
            stopped=isinstance(pids, dict) and not any(pids.values()),
            source=str(path),
        )
    except FileNotFoundError:
        message = f"no platform is known here: {path} does not exist, CAIRN_API_URL is not set, no context is chosen"
        raise CommandFailed(message, "no_endpoint", Exit.UNREACHABLE, START_HINT) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        message = f"{path} cannot be used: {error!r}"
        raise CommandFailed(message, "no_endpoint", Exit.UNREACHABLE, START_HINT) from None
