"""``cairn instance``."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli import group_views, instance_views, lifetimes, networks, render, streams
from cli.client import Client
from cli.completion import fleets as fleet_names
from cli.completion import hosts as host_names
from cli.completion import images as image_names
from cli.completion import instances as instance_names
from cli.completion import types as type_names
from cli.ending import Ending, each, finish, kind_of
from cli.errors import of_option, usage
from cli.listing import Listing, Table, print_list
from cli.options import command as after_dashes
from cli.options import pairs
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output
from cli.secrets import RegistrySecret, references

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Launch instances, look at them and into them, change them."
)

Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=instance_names),
]


class OnHostLost(StrEnum):
    KEEP = "keep"
    REPLACE = "replace"
    FENCE = "fence"


@app.command(epilog="Example: cairn instance launch web --image cairn/base:latest --port 8080:80 --env MODE=test")
def launch(
    name: Annotated[str, typer.Argument(help="Its name, unique in the project.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD...", help="What it runs, after --.", show_default=False)
    ] = None,
    image: Annotated[
        str, typer.Option(help="Image to run: one of yours, or a reference of a registry.", autocompletion=image_names)
    ] = "cairn/base:latest",
    registry_secret: RegistrySecret = None,
    instance_type: Annotated[
        str | None, typer.Option("--type", help="Instance type, such as basic-1.", autocompletion=type_names)
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option("--port", "-p", help="HOST:CONTAINER or CONTAINER (then a host port is chosen), /udp for UDP."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="K=V; may be repeated.")] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="K=NAME[@VERSION][:env]",
            help="A secret, as the file that $K_FILE names; with :env as $K itself. May be repeated.",
        ),
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="k=v; may be repeated.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A short word; may be repeated.")] = None,
    backend: Annotated[str | None, typer.Option(help="Kind of engine, such as docker.")] = None,
    host: Annotated[str | None, typer.Option(help="Host to place it on.", autocompletion=host_names)] = None,
    host_label: Annotated[
        list[str] | None, typer.Option("--host-label", help="k=v that its host must have; may be repeated.")
    ] = None,
    on_host_lost: Annotated[
        OnHostLost | None, typer.Option(help="What happens where its host is lost (default: keep).", show_default=False)
    ] = None,
    network: networks.Network = None,
    allow: networks.Allow = None,
    cmd: Annotated[str | None, typer.Option(help="What it runs, as one string; or write it after --.")] = None,
    ttl: lifetimes.Ttl = None,
    idle_stop: lifetimes.IdleStop = None,
    restart: lifetimes.Restart = None,
    user_data: lifetimes.UserData = None,
    ssh_key: lifetimes.SshKey = None,
    health: lifetimes.HealthOption = None,
    health_interval: lifetimes.Interval = None,
    health_timeout: lifetimes.Timeout = None,
    health_retries: lifetimes.Retries = None,
    health_start_period: lifetimes.StartPeriod = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Launching again with the same key finds the same instance.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Launch an instance."""
    if cmd is not None and command:
        raise usage("give the command once: with --cmd, or after --")
    wanted = {
        "name": name,
        "image": image,
        "registry_secret": registry_secret,
        "instance_type": instance_type,
        "ports": [port_of(value) for value in port or []] or None,
        "env": pairs("--env", env) | references(secret, env) or None,
        "labels": pairs("--label", label) or None,
        "tags": tag or None,
        "backend": backend,
        "host": host,
        "host_labels": pairs("--host-label", host_label) or None,
        "on_host_lost": on_host_lost.value if on_host_lost else None,
        "network": networks.wanted(network, allow),
        "cmd": after_dashes(f"instance launch {name}", command) or (_words(cmd) if cmd else None),
        **lifetimes.fields(ttl=ttl, idle_stop=idle_stop, user_data=user_data, restart=restart),
        "health_check": lifetimes.health_check(
            health,
            interval=health_interval,
            timeout=health_timeout,
            retries=health_retries,
            start_period=health_start_period,
        ),
    }
    with Client() as client:
        wanted["ssh_key_id"] = lifetimes.key_id(client, ssh_key)
        client.about("instance", name)
        body = {field: value for field, value in wanted.items() if value is not None}
        envelope = client.request("POST", "/instances", body=body, key=idempotency_key)
        finish(client, [envelope], "launch", Ending(wait, timeout, output), _KIND)


@app.command("list", epilog="Example: cairn instance list --status running --label tier=web -o json")
def list_(
    status: Annotated[str | None, typer.Option(help="Only in this state; deleted ones are shown only so.")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    label: Annotated[str | None, typer.Option("--label", "-l", help="Only with this label, k=v.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only with this tag; of several, with all.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Only members of this group or deployment.", autocompletion=fleet_names)
    ] = None,
    limit: Limit = 50,
    everything: All = False,
    output: Output = Format.TABLE,
) -> None:
    """List instances, newest first."""
    if label is not None:
        pairs("--label", [label])
    params: dict[str, Any] = {"status": status, "name": name, "label": label, "tag": tag}
    table = Table(
        ["NAME", "STATUS", "TYPE", "HOST", "ADDRESS", "PORTS", "AGE", "ID"],
        lambda row: [
            row["name"],
            instance_views.status(row),
            row["instance_type"],
            row.get("host") or "",
            row.get("private_ip") or "",
            instance_views.ports(row),
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["HOST", "ID"],
    )
    with Client() as client:
        if group is not None:
            with of_option("--group"):
                params["group_id"] = group_views.find(client, group)["id"]
        print_list(client, "/instances", params, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn instance show web")
def show(
    name: Annotated[str, typer.Argument(help="Name or id.", autocompletion=instance_names)],
    output: Output = Format.TABLE,
) -> None:
    """Show one instance."""
    with Client() as client:
        _KIND.display(client, client.find("instance", name), output)


def _verb(verb: str, help: str, example: str) -> None:
    """A command that asks each instance for one thing, and has no options of its own."""

    def command(
        names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE
    ) -> None:
        ending = Ending(wait, timeout, output)
        each(_KIND, names, verb, lambda client, path: client.request("POST", f"{path}/{verb}"), ending)

    app.command(verb, help=help, epilog=f"Example: cairn instance {example}")(command)


_verb("start", "Start stopped instances.", "start web worker --no-wait")
_verb("stop", "Stop running or paused instances. They keep their host and ports.", "stop web")
_verb("restart", "Stop running instances and start them again. They keep their files, host and ports.", "restart web")
_verb("pause", "Hold running instances: their processes keep their memory, and do not run.", "pause web")
_verb("resume", "Let paused instances go on.", "resume web")


@app.command(epilog="Example: cairn instance resize web --type standard-1")
def resize(
    names: Names,
    instance_type: Annotated[
        str,
        typer.Option("--type", help="The type that they get.", show_default=False, autocompletion=type_names),
    ],
    recreate: Annotated[
        bool,
        typer.Option("--recreate", help="Where the engine cannot do it otherwise: make another, lose what it wrote."),
    ] = False,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Give instances another type, on the host where they are. They are stopped for it only where they must be."""
    body = {"instance_type": instance_type} | ({"recreate": True} if recreate else {})
    ending = Ending(wait, timeout, output)
    each(_KIND, names, "resize", lambda client, path: client.request("POST", f"{path}/resize", body=body), ending)


@app.command(epilog="Example: cairn instance update web --name web-2 --label tier=web --remove-label old --tag blue")
def update(
    instance: Annotated[str, typer.Argument(metavar="NAME", help="Name or id.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="k=v to set; may be repeated.")] = None,
    remove_label: Annotated[list[str] | None, typer.Option(help="Label to remove; may be repeated.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="k=v to set; may be repeated.")] = None,
    remove_metadata: Annotated[list[str] | None, typer.Option(help="Entry to remove; may be repeated.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Its tags, in place of all it has.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Remove all tags.")] = False,
    ttl: lifetimes.TtlFromNow = None,
    no_ttl: Annotated[bool, typer.Option("--no-ttl", help="It lives until it is removed.")] = False,
    idle_stop: lifetimes.IdleStop = None,
    no_idle_stop: Annotated[bool, typer.Option("--no-idle-stop", help="Do not stop it for being idle.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Change an instance's name, labels, metadata, tags, and how long it lives. What is not named stays."""
    if tag and no_tags:
        raise usage("give either --tag or --no-tags")
    for option, value, none in (("--ttl", ttl, no_ttl), ("--idle-stop", idle_stop, no_idle_stop)):
        if value and none:
            raise usage(f"give either {option} or --no-{option.removeprefix('--')}")
    labels = dict.fromkeys(remove_label or []) | pairs("--label", label)
    entries = dict.fromkeys(remove_metadata or []) | pairs("--metadata", metadata)
    wanted: dict[str, Any] = {"name": name, "labels": labels or None, "metadata": entries or None, "tags": tag or None}
    wanted |= lifetimes.fields(ttl=ttl, idle_stop=idle_stop, user_data=None, restart=None)
    body = {field: value for field, value in wanted.items() if value is not None} | ({"tags": []} if no_tags else {})
    body |= dict.fromkeys(["ttl_seconds"] * no_ttl + ["idle_stop_seconds"] * no_idle_stop)
    if not body:
        raise usage("nothing to change: give --name, --label, --metadata, --tag, --ttl or --idle-stop")
    with Client() as client:
        path = client.path_of("instance", instance)
        _KIND.display(client, client.request("PATCH", path, body=body)["data"], output)


@app.command(epilog="Example: cairn instance rm web")
def rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Also when its host or engine does not answer.")] = False,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Remove instances, in whatever state; what is under way for them is cancelled and undone first."""
    params = {"force": "true"} if force else None
    ending = Ending(wait, timeout, output)
    each(_KIND, names, "rm", lambda client, path: client.request("DELETE", path, params=params), ending)


app.command(epilog="Example: cairn instance logs web --tail 100 -f")(streams.logs)
app.command(epilog="Example: cairn instance stats web --live")(streams.stats)
app.command("exec", epilog="Example: cairn instance exec web -- ls -l /www")(streams.exec_)
app.command(epilog="Example: cairn instance terminal web -- /bin/sh")(streams.terminal)


def _words(cmd: str) -> list[str]:
    try:
        return shlex.split(cmd)
    except ValueError as error:
        raise usage(f"--cmd: {error}") from None


_KIND = kind_of("instance", instance_views.show, instance_views.status, instance_views.names)


def port_of(value: str) -> dict[str, Any]:
    ports, _, protocol = value.partition("/")
    host, _, container = ports.rpartition(":")
    try:
        port: dict[str, Any] = {"container_port": int(container), "protocol": protocol or "tcp"}
        if host and int(host):
            port["host_port"] = int(host)
    except ValueError:
        raise usage(f"--port {value}: expected [HOST:]CONTAINER[/tcp|udp], such as 8080:80") from None
    if protocol not in ("", "tcp", "udp"):
        raise usage(f"--port {value}: the protocol is tcp or udp")
    return port
