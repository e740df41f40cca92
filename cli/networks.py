"""What an instance reaches: the options of commands that launch, and how it is shown."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.errors import usage


class NetworkMode(StrEnum):
    OPEN = "open"
    NONE = "none"
    ALLOW_LIST = "allow-list"


Network = Annotated[
    NetworkMode | None,
    typer.Option(help="What it reaches: everything (open, the default), nothing (none).", show_default=False),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME[:PORT]",
        help="It reaches this server, such as pypi.org or '*.debian.org', by http and https, and nothing else but "
        "others that are allowed. May be repeated.",
    ),
]


def wanted(network: NetworkMode | None, allow: list[str] | None) -> dict[str, Any] | None:
    """As the API takes it; None: nothing was said."""
    if allow:
        if network not in (None, NetworkMode.ALLOW_LIST):
            raise usage(f"give either --network {network.value} or --allow")
        return {"mode": NetworkMode.ALLOW_LIST.value, "allow": allow}
    if network is NetworkMode.ALLOW_LIST:
        raise usage("--network allow-list: name what it may reach with --allow")
    return None if network is None else {"mode": network.value}


def shown(network: dict[str, Any] | None) -> str:
    """Nothing of what everybody has."""
    if not network or network["mode"] == NetworkMode.OPEN:
        return ""
    allow = network.get("allow")
    return f"{network['mode']}: {', '.join(allow)}" if allow else str(network["mode"])
