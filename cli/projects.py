"""``cairn project``."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli import config, render
from cli.client import Client, is_id
from cli.errors import CommandFailed, Exit, usage
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output

app = typer.Typer(no_args_is_help=True, help="Projects: make them, choose one, see who is in it.")

Which = Annotated[str | None, typer.Argument(help="Name, unix name or id; without: the current one.")]


class DriftPolicy(StrEnum):
    REPORT = "report"
    HEAL = "heal"


@app.command("list", epilog="Example: cairn project list")
def list_(
    all_projects: Annotated[bool, typer.Option("--platform", help="Everybody's; for administrators.")] = False,
    limit: Limit = 50,
    everything: All = False,
    output: Output = Format.TABLE,
) -> None:
    """List your projects, newest first."""
    table = Table(
        ["NAME", "UNIX NAME", "STATE", "AGE", "ID"],
        lambda row: [row["name"], row["unix_name"], _state(row), render.age(row["created_at"]), row["id"]],
        wide=["ID"],
    )
    with Client() as client:
        params = {"all": "true"} if all_projects else {}
        print_list(client, "/projects", params, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn project create Payments --unix-name payments")
def create(
    name: Annotated[str, typer.Argument(help="Its name; others may have the same.")],
    unix_name: Annotated[str | None, typer.Option(help="What other systems know it by; nobody else has it.")] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Make a project, which you own."""
    body = {"name": name, "description": description} | ({"unix_name": unix_name} if unix_name else {})
    with Client() as client:
        _print(client.request("POST", "/projects", body=body)["data"], output)


@app.command(epilog="Example: cairn project show -o json")
def show(name: Which = None, output: Output = Format.TABLE) -> None:
    """Show a project."""
    with Client() as client:
        _print(find(client, name), output)


@app.command("set", epilog="Example: cairn project set --drift-policy heal")
def set_(
    which: Which = None,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    drift_policy: Annotated[
        DriftPolicy | None,
        typer.Option(help="What happens where an instance is not as it should be: show it, or mend it too."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a project."""
    asked = {"name": name, "description": description, "drift_policy": drift_policy and drift_policy.value}
    body = {field: value for field, value in asked.items() if value is not None}
    if not body:
        raise usage("say what is to be changed: --name, --description, --drift-policy")
    with Client() as client:
        path = f"/projects/{find(client, which)['id']}"
        _print(client.request("PATCH", path, body=body)["data"], output)


@app.command(epilog="Example: cairn project use payments")
def use(name: Annotated[str, typer.Argument(help="Name, unix name or id.", show_default=False)]) -> None:
    """Work in a project from here on: the context that is in effect remembers it."""
    with Client() as client:
        project = find(client, name)
        context = re.match(r"context (\S+) ", client.endpoint.source)
    if context is None:
        raise usage("no context is in effect that could remember it", "add one: cairn context add NAME --url URL")
    with config.changing() as document:
        document["contexts"][context[1]]["project"] = project["id"]
    render.say(f"context {context[1]} works in project {project['name']} ({project['unix_name']})")


@app.command(epilog="Example: cairn project rm payments --cascade")
def rm(
    name: Annotated[str, typer.Argument(help="Name, unix name or id.", show_default=False)],
    cascade: Annotated[bool, typer.Option("--cascade", help="With all that is in it; a workflow.")] = False,
) -> None:
    """Delete a project. What is in it goes only with --cascade."""
    with Client() as client:
        project = find(client, name)
        suffix = "?cascade=true" if cascade else ""
        client.request("DELETE", f"/projects/{project['id']}{suffix}")
        render.say(f"project {project['name']} is {'being deleted with all that is in it' if cascade else 'deleted'}")


@app.command(epilog="Example: cairn project members")
def members(name: Which = None, limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List who is in a project."""
    table = Table(
        ["EMAIL", "NAME", "ROLES", "ID"],
        lambda row: [row["email"], row["name"], ", ".join(sorted(row["roles"])), row["id"]],
        wide=["ID"],
    )
    with Client() as client:
        path = f"/projects/{find(client, name)['id']}/members"
        print_list(client, path, {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn project invite jo@example.org --role developer")
def invite(
    email: Annotated[str, typer.Argument(help="Address of whom is invited.", show_default=False)],
    role: Annotated[str, typer.Option(help="What they will be.")] = "viewer",
    output: Output = Format.TABLE,
) -> None:
    """Invite somebody to the current project. The token is shown once: it is theirs alone."""
    with Client() as client:
        path = f"/projects/{find(client, None)['id']}/invitations"
        made = client.request("POST", path, body={"email": email, "role_name": role})["data"]
    if output is Format.JSON:
        render.print_json(made)
        return
    names = ("email", "role_name", "expires_at", "token")
    render.print_facts([(name.replace("_", " "), str(made[name] or "")) for name in names])
    render.say("they accept it with: cairn project join TOKEN")


@app.command(epilog="Example: cairn project join cairn_invite_…")
def join(token: Annotated[str, typer.Argument(help="As it was sent to you.", show_default=False)]) -> None:
    """Accept an invitation."""
    with Client() as client:
        joined = client.request("POST", "/invitations/accept", body={"token": token})["data"]
        render.say(f"you are in project {joined['project_name']}: cairn project use {joined['project_id']}")


def find(client: Client, wanted: str | None) -> dict[str, Any]:
    """The project of this id, unix name or name; None: that in which the program works."""
    wanted = wanted or client.endpoint.project
    if wanted and is_id(wanted):
        return dict(client.get(f"/projects/{wanted}"))
    rows = client.pages("/projects", {}, None)[0] if wanted else list(client.get("/projects"))
    found = [row for row in rows if wanted in (None, row["unix_name"])] or [
        row for row in rows if row["name"] == wanted
    ]
    if len(found) == 1:
        return dict(found[0])
    hint = "see yours: cairn project list"
    if wanted is None:
        raise usage("there are several projects", f"{hint}; choose one: cairn project use NAME")
    if found:
        raise usage(f"{len(found)} projects are named '{wanted}'", "use the unix name or the id: cairn project list")
    raise CommandFailed(f"there is no project named '{wanted}'", "not_found", Exit.NOT_FOUND, hint)


def _state(project: dict[str, Any]) -> str:
    return "being deleted" if project["deleting"] else "active" if project["active"] else "deactivated"


def _print(project: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(project)
        return
    render.print_facts(
        [
            ("name", project["name"]),
            ("unix name", project["unix_name"]),
            ("id", project["id"]),
            ("description", project["description"]),
            ("state", _state(project)),
            ("drift policy", project["drift_policy"]),
            ("created", f"{project['created_at']} ({render.age(project['created_at'])} ago)"),
        ]
    )
