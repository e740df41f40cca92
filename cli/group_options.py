"""Options of ``cairn group`` and ``cairn deployment`` that say what members are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import lifetimes, networks
from cli.client import Client
from cli.completion import balancers as balancer_names
from cli.completion import images as image_names
from cli.completion import secrets as secret_names
from cli.completion import types as type_names
from cli.errors import of_option
from cli.instances import OnHostLost, port_of
from cli.options import command as after_dashes
from cli.options import duration, pairs
from cli.secrets import references

Command = Annotated[
    list[str] | None, typer.Argument(metavar="-- CMD...", help="What members run, after --.", show_default=False)
]
Image = Annotated[str | None, typer.Option(help="Image to run.", show_default=False, autocompletion=image_names)]
Type = Annotated[str | None, typer.Option("--type", help="Instance type, such as basic-1.", autocompletion=type_names)]
Ports = Annotated[list[str] | None, typer.Option("--port", "-p", help="Port in a member; its host's is chosen.")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", help="K=V; may be repeated.")]
Secret = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="K=NAME[@VERSION][:env]", help="A secret, as for an instance; may be repeated."),
]
Label = Annotated[list[str] | None, typer.Option("--label", "-l", help="k=v of each member; may be repeated.")]
Backend = Annotated[str | None, typer.Option(help="Kind of engine, such as docker.")]
Lost = Annotated[OnHostLost | None, typer.Option(help="What happens to members where their host is lost.")]
Surge = Annotated[str | None, typer.Option(help="So many more, or 25%, while members are replaced.")]
Unavailable = Annotated[str | None, typer.Option(help="So many fewer, or 25%, while members are replaced.")]
MinReady = Annotated[
    float | None,
    typer.Option(parser=duration, metavar="TIME", help="What a new member runs before it counts as ready: 30s."),
]
Login = Annotated[
    str | None,
    typer.Option(help="Secret to pull the image with: USERNAME:PASSWORD, or JSON.", autocompletion=secret_names),
]
Balancer = Annotated[
    str | None,
    typer.Option("--lb", help="Load balancer that sends members requests; '': none.", autocompletion=balancer_names),
]
Least = Annotated[int | None, typer.Option("--min", help="Fewest members.")]
Most = Annotated[int | None, typer.Option("--max", help="Most members.")]


def said(
    command: Command = None,
    instance_type: Type = None,
    port: Ports = None,
    env: Env = None,
    secret: Secret = None,
    label: Label = None,
    on_host_lost: Lost = None,
    network: networks.Network = None,
    allow: networks.Allow = None,
    health: lifetimes.HealthOption = None,
    health_interval: lifetimes.Interval = None,
    health_timeout: lifetimes.Timeout = None,
    max_surge: Surge = None,
    max_unavailable: Unavailable = None,
    min_ready: MinReady = None,
    registry_secret: Login = None,
    lb: Balancer = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A short word of each member; repeatable.")] = None,
    host_label: Annotated[
        list[str] | None, typer.Option("--host-label", help="k=v that members' hosts must have; may be repeated.")
    ] = None,
    ttl: Annotated[str | None, typer.Option("--ttl", help="Each member is replaced after this: 8h, 7d.")] = None,
    restart: lifetimes.Restart = None,
    user_data: lifetimes.UserData = None,
    ssh_key: lifetimes.SshKey = None,
) -> dict[str, Any]:
    """The fields of a request that were named."""
    fields = {
        "registry_secret": registry_secret,
        "instance_type": instance_type,
        "ports": [port_of(value) for value in port or []] or None,
        "env": pairs("--env", env) | references(secret, env) or None,
        "labels": pairs("--label", label) or None,
        "cmd": after_dashes("group create NAME", command),
        "on_host_lost": on_host_lost.value if on_host_lost else None,
        "network": networks.wanted(network, allow),
        "health_check": lifetimes.health_check(
            health, interval=health_interval, timeout=health_timeout, retries=None, start_period=None
        ),
        "max_surge": _amount(max_surge),
        "max_unavailable": _amount(max_unavailable),
        "min_ready_seconds": min_ready,
        "tags": tag or None,
        "host_labels": pairs("--host-label", host_label) or None,
        **lifetimes.fields(ttl=ttl, idle_stop=None, user_data=user_data, restart=restart),
    }
    if ssh_key is not None:
        with Client() as client:
            fields["ssh_key_id"] = lifetimes.key_id(client, ssh_key)
    return named(fields) | ({} if lb is None else {"load_balancer_id": _balancer(lb)})


def named(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _balancer(name: str) -> str | None:
    """Its id, where there is a name."""
    with Client() as client, of_option("--lb"):
        return str(client.find("lb", name)["id"]) if name else None


def _amount(value: str | None) -> int | str | None:
    return int(value) if value is not None and value.isdecimal() else value
