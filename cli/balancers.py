"""``cairn lb``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, find_endpoint, is_loopback
from cli.completion import balancers as balancer_names
from cli.completion import hosts as host_names
from cli.completion import instances as instance_names
from cli.ending import Ending, Kind, each, finish, kind_of
from cli.errors import usage
from cli.listing import Listing, Table, print_list
from cli.options import duration
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output
from cli.resources import resource_id
from cli.routes import as_commands

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Load balancers: one address for many instances.")

#: The host of the platform that runs on this machine.
LOCAL = "local"


def _share(written: str | int) -> int:
    """Raises BadParameter."""
    if not str(written).isdecimal() or int(written) > MOST:
        raise typer.BadParameter(f"'{written}': expected a share of the requests, a whole number from 0 to {MOST}")
    return int(written)


MOST = 256
Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=balancer_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=balancer_names),
]
Instance = Annotated[
    str, typer.Argument(help="Name or id of an instance.", show_default=False, autocompletion=instance_names)
]
Algorithm = Annotated[
    str | None, typer.Option(help="round-robin, least-conn, source or random (of a new one: round-robin).")
]
Check = Annotated[str | None, typer.Option(help="How targets are asked: tcp, or http:/PATH.")]
Interval = Annotated[
    float | None, typer.Option(parser=duration, metavar="TIME", help="Between two checks of a target: 2s.")
]
Drain = Annotated[
    float | None,
    typer.Option(parser=duration, metavar="TIME", help="What a target that leaves may take to end what it began: 30s."),
]
Certificate = Annotated[str | None, typer.Option(help="Secret with certificate and key, as PEM: NAME[@VERSION].")]
Weight = Annotated[int, typer.Option(parser=_share, metavar="N", help="Share of the requests, 0 to 256.")]


@app.command(epilog="Example: cairn lb create front --port 80 --check http:/ready")
def create(
    name: Annotated[str, typer.Argument(help="What it is to be called.", show_default=False)],
    port: Annotated[
        int, typer.Option(help="Port on which it listens, on its own address and on its host's (see --host-port).")
    ],
    host_port: Annotated[
        int | None, typer.Option(help="Port of its host (default: that of --port, and no other); 0: any that is free.")
    ] = None,
    mode: Annotated[str, typer.Option(help="http or tcp.")] = "http",
    algorithm: Algorithm = None,
    check: Check = None,
    interval: Interval = None,
    cookie: Annotated[str | None, typer.Option(help="Name of a cookie that binds users to targets.")] = None,
    tls: Certificate = None,
    drain: Drain = None,
    size: Annotated[str, typer.Option("--type", help="Instance type of its own instance.")] = "basic-1",
    host: Annotated[str | None, typer.Option(help="Host that it is to run on.", autocompletion=host_names)] = None,
    backend: Annotated[str, typer.Option(help="docker, or simulated.")] = "docker",
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Create a load balancer; its targets are added next."""
    body: dict[str, Any] = {"name": name, "port": port, "mode": mode, "instance_type": size, "backend": backend}
    body |= _settings(algorithm, check, interval, cookie, tls, drain)
    body |= {what: value for what, value in {"host_port": host_port, "host": host}.items() if value is not None}
    with Client() as client:
        client.about("lb", name)
        envelope = client.request("POST", "/lb", body=body)
        finish(client, [envelope], "creation of", Ending(wait, timeout, output), _KIND)


@app.command("list", epilog="Example: cairn lb list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List load balancers, newest first."""
    table = Table(
        ["NAME", "STATUS", "MODE", "PORT", "ALGORITHM", "UP", "HOST", "AGE", "ID"],
        lambda row: [
            row["name"],
            row["status"],
            row["mode"] + (" tls" if row["tls"] else ""),
            str(row["port"]),
            row["algorithm"],
            f"{row['targets_up']}/{row['targets']}",
            row["host"] or "",
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/lb", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn lb show front")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one load balancer."""
    with Client() as client:
        _print(client.find("lb", name), output)


@app.command(epilog="Example: cairn lb update front --algorithm least-conn")
def update(
    name: Name,
    rename: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    algorithm: Algorithm = None,
    check: Check = None,
    interval: Interval = None,
    cookie: Annotated[str | None, typer.Option(help="Name of a cookie that binds users to targets; '': none.")] = None,
    tls: Certificate = None,
    drain: Drain = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Change a load balancer as it works; what is not named stays."""
    body = _settings(algorithm, check, interval, cookie, tls, drain) | ({"name": rename} if rename else {})
    if not body:
        raise usage("nothing to change", "name what: --algorithm, --check, --cookie, --tls, --drain, --name")
    with Client() as client:
        found = client.find("lb", name)
        if "health_check" in body and check is None:
            body["health_check"] = found["health_check"] | body["health_check"]
        envelope = client.request("PATCH", f"/lb/{found['id']}", body=body)
        finish(client, [envelope], "change of", Ending(wait, timeout, output), _KIND)


@app.command(epilog="Example: cairn lb rm front")
def rm(
    names: Names,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Delete load balancers; their targets stay as they are."""
    ending = Ending(wait, timeout, output)
    each(_KIND, names, "delete of", lambda client, path: client.request("DELETE", path), ending)


@app.command(epilog="Example: cairn lb targets front")
def targets(name: Name, output: Output = Format.TABLE) -> None:
    """The targets of a load balancer, and how its own checks find them."""
    with Client() as client:
        rows = client.get(f"{client.path_of('lb', name)}/targets")
    if output is not Format.TABLE:
        render.print_json(rows)
        return
    render.print_table(
        ["INSTANCE", "PORT", "WEIGHT", "STATE", "HEALTH", "SINCE", "CHECK"],
        [
            [
                row["name"],
                str(row["port"]),
                str(row["weight"]),
                row["state"],
                row["health"],
                render.age(row["health_at"]),
                row["check"] or "",
            ]
            for row in rows
        ],
    )


@app.command(epilog="Example: cairn lb add front web-1 --port 80")
def add(
    name: Name,
    instance: Instance,
    port: Annotated[int, typer.Option(help="Port inside the instance.")],
    weight: Weight = 100,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Send requests to an instance too."""
    with Client() as client:
        path = f"{client.path_of('lb', name)}/targets"
        found = client.find("instance", instance)
        envelope = client.request("POST", path, body={"instance_id": found["id"], "port": port, "weight": weight})
        if found["status"] != "running":
            render.say(
                f"warning: instance {found['name']} is in state {found['status']}: it gets requests once it runs"
            )
        finish(client, [envelope], "new target", Ending(wait, timeout, output), _target(path))


@app.command(epilog="Example: cairn lb weigh front web-1 10")
def weigh(
    name: Name,
    instance: Instance,
    weight: Annotated[int, typer.Argument(parser=_share, help="Share of the requests, 0 to 256.", show_default=False)],
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Give a target another share of the requests; 0: it takes no new users."""
    with Client() as client:
        path = f"{client.path_of('lb', name)}/targets"
        envelope = client.request("PATCH", f"{path}/{resource_id(client, instance)}", body={"weight": weight})
        finish(client, [envelope], "weight of", Ending(wait, timeout, output), _target(path))


@app.command(epilog="Example: cairn lb remove front web-1")
def remove(
    name: Name,
    instance: Instance,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Send no more requests to an instance; what it has begun, it may end."""
    with Client() as client:
        path = f"{client.path_of('lb', name)}/targets"
        envelope = client.request("DELETE", f"{path}/{resource_id(client, instance)}")
        finish(client, [envelope], "drain of", Ending(wait, timeout, output), _target(path))


@app.command(epilog="Example: cairn lb stats front")
def stats(name: Name, output: Output = Format.TABLE) -> None:
    """What a load balancer did in the last ten minutes, ten seconds a line."""
    with Client() as client:
        rows = client.get(f"{client.path_of('lb', name)}/stats")
    if output is not Format.TABLE:
        render.print_json(rows)
        return
    render.print_table(
        ["AT", "REQUESTS/S", "SESSIONS", "IN", "OUT", "ERRORS"],
        [
            [
                row["at"],
                f"{row['requests_per_second']:g}",
                str(row["sessions"]),
                render.size(row["bytes_in"]),
                render.size(row["bytes_out"]),
                str(row["errors"]),
            ]
            for row in rows
        ],
    )


def _settings(
    algorithm: str | None,
    check: str | None,
    interval: float | None,
    cookie: str | None,
    tls: str | None,
    drain: float | None,
) -> dict[str, Any]:
    """Those that were given, as the API takes them."""
    found: dict[str, Any] = {"algorithm": algorithm, "drain_seconds": drain}
    found = {what: value for what, value in found.items() if value is not None}
    if cookie is not None:
        found["cookie"] = cookie or None
    asked: dict[str, Any] = {} if interval is None else {"interval_seconds": interval}
    if check is not None:
        kind, _, path = check.partition(":")
        asked |= {"type": kind} | ({"path": path} if path else {})
    if asked:
        found["health_check"] = asked
    if tls == "":
        raise usage("--tls '': a load balancer keeps its TLS; make another without: cairn lb create")
    if tls is not None:
        secret, _, version = tls.partition("@")
        if version and not version.isdigit():
            raise usage(f"'{tls}' is not NAME or NAME@VERSION", "cairn secret list")
        found["tls"] = {"secret": secret} | ({"version": int(version)} if version else {})
    return found


def _print(balancer: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(balancer)
        return
    error, check = balancer.get("error") or {}, balancer["health_check"]
    asked = " ".join(filter(None, (check["type"], check["path"])))
    render.print_facts(
        [
            ("name", balancer["name"]),
            ("id", balancer["id"]),
            ("status", balancer["status"]),
            ("error", as_commands(error.get("message", ""))),
            ("listens", f"{balancer['mode']} {balancer['port']}" + (" (TLS)" if balancer["tls"] else "")),
            ("host", balancer["host"] or ""),
            ("reached at", ", ".join(_reached(balancer))),
            ("algorithm", balancer["algorithm"]),
            ("check", f"{asked} every {check['interval_seconds']:g} s"),
            ("cookie", balancer["cookie"] or ""),
            ("targets", f"{balancer['targets']}, of which {balancer['targets_up']} are up"),
            ("instance", balancer["instance_id"]),
            ("created", f"{balancer['created_at']} ({render.age(balancer['created_at'])} ago)"),
        ]
    )


def _reached(balancer: dict[str, Any]) -> list[str]:
    """Addresses to copy where its host is this machine; else what is known of them: the host alone has the rest."""
    ports = [port["host_port"] for port in balancer["ports"] if port["host_port"] is not None]
    if balancer["host"] != LOCAL or not is_loopback(find_endpoint().api_url):
        where = f"of {balancer['host'] or 'its host'}, at its CAIRN_PUBLISH_ADDRESS (default 127.0.0.1)"
        return [f"port {port} {where}" for port in ports]
    address = os.environ.get("CAIRN_PUBLISH_ADDRESS") or "127.0.0.1"
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - where one listens to all
    scheme = "" if balancer["mode"] == "tcp" else "https://" if balancer["tls"] else "http://"
    return [f"{scheme}{f'[{address}]' if ':' in address else address}:{port}" for port in ports]


def _print_target(target: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(target)
        return
    shown = ("name", "instance_id", "port", "weight", "state", "health")
    render.print_facts([(name.partition("_")[0], str(target.get(name, ""))) for name in shown])


def _target(path: str) -> Kind:
    """Targets of one balancer: they have no id but their instance's. One that is not there any more is removed."""

    def find(client: Client, instance: str) -> dict[str, Any]:
        return next(row for row in client.get(path) if row["instance_id"] == instance)

    return Kind(path, find, _print_target)


_KIND = kind_of("lb", _print)
