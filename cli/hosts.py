"""``cairn host``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, is_loopback
from cli.completion import hosts as host_names
from cli.ending import Ending, finish, kind_of
from cli.join import join
from cli.listing import Listing, Table, print_list
from cli.options import pairs, seconds
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output
from cli.several import one_by_one, remove

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Hosts: let machines join, look at them, empty and remove them."
)
app.command(epilog="Example: cairn host join --url https://cairn.example.org --name rack-1")(join)

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=host_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=host_names)
]


@app.command("list", epilog="Example: cairn host list -o json")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List hosts, newest first, with what is held of what they may give: what they have, over-committed."""
    table = Table(
        ["NAME", "STATE", "BACKEND", "VCPUS HELD", "MEMORY HELD", "PORTS", "SEEN", "LABELS", "ID"],
        lambda row: [
            row["name"],
            _state(row),
            row["backend"],
            f"{row['allocated']['vcpus']:g} of {_allocatable(row)['vcpus']:g}",
            f"{row['allocated']['memory_mb']} of {_allocatable(row)['memory_mb']} MiB",
            str(row["ports_held"]),
            _seen(row),
            render.pairs(row.get("labels")),
            row["id"],
        ],
        wide=["LABELS", "ID"],
    )
    with Client() as client:
        print_list(client, "/hosts", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn host show rack-1")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one host."""
    with Client() as client:
        _print(client.find("host", name), output)


@app.command(epilog="Example: cairn host token --label disk=ssd --expires 15m")
def token(
    name: Annotated[
        str | None,
        typer.Option(help="Only a host of this name joins with it; one that has it may change its keys."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="k=v that the host gets; may be repeated.")
    ] = None,
    expires: Annotated[str, typer.Option(help="How long it is valid: 90s, 15m, 1h, at most 7d.")] = "1h",
    output: Output = Format.TABLE,
) -> None:
    """Make a token with which one machine can join, once. Prints it alone."""
    body = {"name": name, "labels": pairs("--label", label), "expires_in_seconds": seconds("--expires", expires)}
    with Client() as client:
        asked = {k: v for k, v in body.items() if v}
        made = client.request("POST", "/hosts/tokens", body=asked)["data"]
        url = client.endpoint.api_url
    if output is Format.JSON:
        render.print_json(made)
    else:
        typer.echo(made["token"])
    seen = " (as it sees the API)" if is_loopback(url) else ""
    render.say(f"on the machine that joins{seen}, until {made['expires_at']}, with the token in CAIRN_JOIN_TOKEN:")
    render.say(f"  cairn host join --url {url}" + (f" --name {name}" if name else ""))


@app.command(epilog="Example: cairn host cordon rack-1")
def cordon(name: Name, output: Output = Format.TABLE) -> None:
    """Place nothing more on a host; what is there stays."""
    _set_state(name, "cordon", output)


@app.command(epilog="Example: cairn host uncordon rack-1")
def uncordon(name: Name, output: Output = Format.TABLE) -> None:
    """Place instances on a host again."""
    _set_state(name, "uncordon", output)


@app.command(epilog="Example: cairn host drain rack-1 --timeout 1800")
def drain(name: Name, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE) -> None:
    """Move everything that is on a host elsewhere, a few instances at a time; place nothing more on it."""
    with Client() as client:
        envelope = client.request("POST", f"{client.path_of('host', name)}/drain")
        finish(client, [envelope], "drain", Ending(wait, timeout, output), kind_of("host", _print, _state))


@app.command(epilog="Example: cairn host rm rack-1")
def rm(names: Names) -> None:
    """Forget hosts on which nothing is placed. Their agents' credentials are void from then on."""
    with Client() as client:

        def forget(name: str) -> None:
            host = client.find("host", name)
            remove(client, f"/hosts/{host['id']}")
            render.say(f"host {host['name']} is deleted; its agent ends by itself")

        one_by_one(names, forget)


def _set_state(name: str, verb: str, output: Format) -> None:
    with Client() as client:
        _print(client.request("POST", f"{client.path_of('host', name)}/{verb}")["data"], output)


def _print(host: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(host)
        return
    capacity, allocated, may = host["capacity"], host["allocated"], _allocatable(host)
    render.print_facts(
        [
            ("name", host["name"]),
            ("id", host["id"]),
            ("state", _state(host)),
            ("backend", host["backend"]),
            ("vcpus", _held(allocated["vcpus"], may["vcpus"], capacity["vcpus"], "", "CAIRN_OVERCOMMIT_CPU")),
            (
                "memory",
                _held(
                    allocated["memory_mb"],
                    may["memory_mb"],
                    capacity["memory_mb"],
                    " MiB",
                    "CAIRN_OVERCOMMIT_MEMORY",
                ),
            ),
            ("ports", f"{host['ports_held']} held"),
            ("labels", render.pairs(host.get("labels"))),
            ("versions", _versions(host)),
            ("agent can", ", ".join(host.get("capabilities") or [])),
            ("agent", host.get("agent_url") or ""),
            ("seen", _seen(host)),
            ("created", f"{host['created_at']} ({render.age(host['created_at'])} ago)"),
        ]
    )


def _allocatable(host: dict[str, Any]) -> dict[str, Any]:
    """Of an older platform only the capacity is known."""
    return dict(host.get("allocatable") or host["capacity"])


def _held(held: float, may: float, has: float, unit: str, setting: str) -> str:
    """What is held of what may be placed there: so many times what it has, as an operator chose."""
    over = f" (it has {has:.10g}{unit}, over-committed {may / has:.3g} times: {setting})" if may != has and has else ""
    return f"{held:.10g}{unit} held of {may:.10g}{unit}{over}"


def _state(host: dict[str, Any]) -> str:
    return str(host["state"]) if host["reachable"] else f"{host['state']} (unreachable)"


def _versions(host: dict[str, Any]) -> str:
    said = ", ".join(f"{what} {number}" for what, number in (host.get("versions") or {}).items())
    skew = str(host.get("version_skew") or "ok").replace("_", " ")
    return said if skew in ("ok", "unknown") else f"{said} (the agent is {skew}: upgrade it, or the platform)"


def _seen(host: dict[str, Any]) -> str:
    seen = host.get("last_seen_at")
    return f"{render.age(seen)} ago" if seen else "never"
