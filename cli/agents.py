"""``cairn agent``: the agents that sessions of a project may have."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import agents as agent_names
from cli.errors import usage
from cli.listing import Listing, Table, print_list
from cli.options import pairs
from cli.render import All, Format, Limit, Output
from cli.several import remove_each

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Agents that work in sessions.")

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=agent_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=agent_names),
]
Mode = Annotated[str | None, typer.Option(help="A word for the agent, as CAIRN_AGENT_MODE.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="The same, as CAIRN_AGENT_MODEL.", show_default=False)]
Image = Annotated[str | None, typer.Option(help="Image of its sandboxes.", show_default=False)]
Port = Annotated[int | None, typer.Option(help="Where it listens in its sandbox.", show_default=False)]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", help="K=V; may be repeated.", show_default=False)]
Default = Annotated[bool, typer.Option("--default", help="Make it the project's default.")]
Mcp = Annotated[
    list[str] | None,
    typer.Option("--mcp", metavar="NAME=URL", help="A server of tools; may be repeated.", show_default=False),
]


@app.command(epilog="Example: cairn agent create coder --image IMAGE --default -- python3 /opt/agent.py")
def create(
    name: Annotated[str, typer.Argument(help="What it is to be called.", show_default=False)],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- CMD...", help="Its program, after -- (default: the reference agent).", show_default=False
        ),
    ] = None,
    mode: Mode = None,
    model: Model = None,
    image: Image = None,
    port: Port = None,
    env: Env = None,
    mcp: Mcp = None,
    default: Default = False,
    output: Output = Format.TABLE,
) -> None:
    """Add an agent, for sessions that are made from now on."""
    body = {"name": name} | _given(mode, model, image, port, env, mcp)
    if command:
        body |= {"type": "custom", "cmd": command}
    if default:
        body["is_default"] = True
    with Client() as client:
        _print(client.request("POST", "/agents", body=body)["data"], output)


@app.command("list", epilog="Example: cairn agent list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List agents, newest first."""
    table = Table(
        ["NAME", "TYPE", "MODEL", "DEFAULT", "AGE", "ID"],
        lambda row: [
            row["name"],
            row["type"],
            row["model"] or "",
            "yes" if row["is_default"] else "",
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/agents", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn agent show coder")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one agent."""
    with Client() as client:
        _print(client.find("agent", name), output)


@app.command("set", epilog="Example: cairn agent set coder --model large-2 --default")
def set_(
    name: Name,
    mode: Mode = None,
    model: Model = None,
    image: Image = None,
    port: Port = None,
    env: Env = None,
    mcp: Mcp = None,
    default: Default = False,
    output: Output = Format.TABLE,
) -> None:
    """Change an agent, for sessions that are made from now on; what is not named stays."""
    body = _given(mode, model, image, port, env, mcp) | ({"is_default": True} if default else {})
    if not body:
        raise usage("nothing is to be changed", "name what is: cairn agent set --help")
    with Client() as client:
        _print(client.request("PATCH", client.path_of("agent", name), body=body)["data"], output)


@app.command(epilog="Example: cairn agent rm coder")
def rm(names: Names) -> None:
    """Delete agents; sessions keep theirs."""
    remove_each(names, lambda client, name: client.path_of("agent", name))


def _given(
    mode: str | None,
    model: str | None,
    image: str | None,
    port: int | None,
    env: list[str] | None,
    mcp: list[str] | None,
) -> dict[str, Any]:
    servers = [{"name": name, "url": url} for name, url in pairs("--mcp", mcp).items()] if mcp else None
    wanted: dict[str, Any] = {"mode": mode, "model": model, "image": image, "port": port, "mcp_servers": servers}
    wanted["env"] = pairs("--env", env) if env else None
    return {what: value for what, value in wanted.items() if value is not None}


def _print(agent: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(agent)
        return
    render.print_facts(
        [
            ("name", agent["name"]),
            ("id", agent["id"]),
            ("type", agent["type"]),
            ("default", "yes" if agent["is_default"] else "no"),
            ("mode", agent["mode"] or ""),
            ("model", agent["model"] or ""),
            ("image", agent["image"] or ""),
            ("command", " ".join(agent["cmd"] or [])),
            ("port", str(agent["port"])),
            ("mcp servers", ", ".join(server["name"] for server in agent["mcp_servers"])),
        ]
    )
