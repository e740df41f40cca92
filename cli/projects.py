"""``cairn project``."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli import config, render
from cli.client import NO_PROJECT, Client, is_id, workflow_of
from cli.completion import projects as project_names
from cli.errors import CommandFailed, Exit, usage
from cli.listing import Listing, Table, print_list
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait, require_completed, watch
from cli.render import All, Format, Limit, Output
from cli.several import end, remove

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Projects: make them, choose one, see who is in it.")

Which = Annotated[
    str | None,
    typer.Argument(help="Name, unix name or id; without: the current one.", autocompletion=project_names),
]


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
    """List your projects, newest first; the one in use is marked."""
    with Client() as client:
        used = in_use(client) if output is Format.TABLE else None
        table = Table(
            ["NAME", "USED", "UNIX NAME", "STATE", "AGE", "ID"],
            lambda row: [
                row["name"],
                "*" if used and row["id"] == used["id"] else "",
                row["unix_name"],
                _state(row),
                render.age(row["created_at"]),
                row["id"],
            ],
            wide=["ID"],
        )
        params = {"all": "true"} if all_projects else {}
        print_list(client, "/projects", params, Listing(limit, everything, output), table)


_UNIX_NAME = "One word that no other project here has, for commands and other systems (default: made of the name)."


@app.command(epilog="Example: cairn project create Payments --unix-name payments")
def create(
    name: Annotated[str, typer.Argument(help="Its name; others may have the same.")],
    unix_name: Annotated[str | None, typer.Option(help=_UNIX_NAME)] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Make a project, which you own."""
    body = {"name": name, "description": description} | ({"unix_name": unix_name} if unix_name else {})
    with Client() as client:
        made = client.request("POST", "/projects", body=body)["data"]
        _print(made, output)
        if client.endpoint.session is None:
            opened = in_use(client)
            where = f"project {opened['name']}" if opened else "its own project"
            render.say(
                f"warning: the key in use works in {where} alone; to work in the new one: cairn login, then"
                f" cairn project use {made['unix_name']}"
            )


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
def use(
    name: Annotated[
        str, typer.Argument(help="Name, unix name or id.", show_default=False, autocompletion=project_names)
    ],
) -> None:
    """Work in a project from here on: the context that is in effect remembers it."""
    with Client() as client:
        project = find(client, name)
        context = client.endpoint.context
    if context is None:
        raise usage(
            f"no context is in effect that could remember it: what is asked is {client.endpoint.source}",
            "log in, and a context is: cairn login; or add one: cairn context add NAME --url URL",
        )
    with config.changing() as document:
        document["contexts"][context]["project"] = project["id"]
    render.say(f"context {context} works in project {project['name']} ({project['unix_name']})")


@app.command(epilog="Example: cairn project rm payments --cascade")
def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Names, unix names or ids.", show_default=False, autocompletion=project_names
        ),
    ],
    cascade: Annotated[bool, typer.Option("--cascade", help="With all that is in it; a workflow.")] = False,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Delete projects. What is in them goes only with --cascade, whose end is waited for.

    The workflow goes with the project: that it cannot be found any more is its success.
    """
    began = time.monotonic()
    begun: list[tuple[dict[str, Any], str]] = []
    failures: list[CommandFailed] = []
    with Client() as client:
        for name in names:
            try:
                project = find(client, name)
                suffix = "?cascade=true" if cascade else ""
                answer = client.request("DELETE", f"/projects/{project['id']}{suffix}")
            except CommandFailed as failure:
                failures.append(failure)
                continue
            workflow = workflow_of(answer)
            if workflow is None:
                _gone(client, project)
            else:
                begun.append((project, workflow))
                hint = "" if wait else f"; look at it: cairn workflow show {workflow}"
                render.say(
                    f"project {project['name']} is being deleted with all that is in it: workflow {workflow}{hint}"
                )
        for project, workflow in begun if wait else ():
            try:
                _await_end(client, project, workflow, timeout, began)
            except CommandFailed as failure:
                if failure.exit is Exit.INTERRUPTED:
                    raise
                failures.append(failure)
    end(failures)


def _await_end(client: Client, project: dict[str, Any], workflow: str, timeout: float, began: float) -> None:
    """Its workflow is looked at in the project that it deletes."""
    within = replace(client.endpoint, project=project["id"])
    try:
        with Client(within) as inside:
            require_completed(watch(inside, workflow, timeout, began))
    except CommandFailed as failure:
        if failure.code not in (NO_PROJECT, "not_found", "unauthenticated") or not _is_gone(client, project):
            raise
    _gone(client, project)


def _is_gone(client: Client, project: dict[str, Any]) -> bool:
    try:
        client.get(f"/projects/{project['id']}")
    except CommandFailed as failure:
        # A key of the project has gone with it.
        return failure.code == "not_found" or (failure.code == "unauthenticated" and client.endpoint.session is None)
    return False


def _gone(client: Client, project: dict[str, Any]) -> None:
    """Contexts that work in it forget it."""
    render.say(f"project {project['name']} is deleted")
    known = config.read().contexts.values()
    if not any(context.project == project["id"] for context in known):
        return
    with config.changing() as document:
        for name, context in document["contexts"].items():
            if context.get("project") == project["id"] and str(context["url"]).rstrip("/") == client.endpoint.api_url:
                del context["project"]
                render.say(f"context {name} works in your default project from here on: cairn project use NAME")


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
    """Invite somebody to the current project, by mail; without a server for mails you hand over the token."""
    with Client() as client:
        path = f"/projects/{find(client, None)['id']}/invitations"
        made = client.request("POST", path, body={"email": email, "role_name": role})["data"]
    if output is Format.JSON:
        render.print_json(made)
        return
    names = ("email", "role_name", "expires_at", *(("token",) if made["token"] else ()))
    render.print_facts([(name.replace("_", " "), str(made[name] or "")) for name in names])
    sent = "" if made["token"] else "a mail is on its way; "
    render.say(f"{sent}they accept it with: cairn project join TOKEN")


@app.command(epilog="Example: cairn project join cairn_invite_…")
def join(token: Annotated[str, typer.Argument(help="As it was sent to you.", show_default=False)]) -> None:
    """Accept an invitation."""
    with Client() as client:
        joined = client.request("POST", "/invitations/accept", body={"token": token})["data"]
        render.say(f"you are in project {joined['project_name']}: cairn project use {joined['project_id']}")


@app.command(epilog="Example: cairn project invitations")
def invitations(name: Which = None, limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List invitations to a project, newest first; those that were accepted or have expired too."""
    table = Table(
        ["EMAIL", "ROLE", "STATE", "INVITED BY", "AGE", "ID"],
        lambda row: [
            row["email"],
            row["role_name"],
            _state_of_invitation(row),
            row["invited_by"],
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["INVITED BY", "AGE", "ID"],
    )
    with Client() as client:
        path = f"/projects/{find(client, name)['id']}/invitations"
        print_list(client, path, {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn project uninvite jo@example.org")
def uninvite(
    who: Annotated[str, typer.Argument(metavar="WHO", help="Address, or id of the invitation.", show_default=False)],
) -> None:
    """Take back every invitation of an address to the current project, or the one of an id: its token is void."""
    with Client() as client:
        path = f"/projects/{find(client, None)['id']}/invitations"
        found = [
            row
            for row in client.pages(path, {}, None)[0]
            if who.lower() in (row["id"], row["email"]) and row["accepted_at"] is None
        ]
        for row in found:
            remove(client, f"{path}/{row['id']}")
            render.say(f"{row['email']} is not invited as {row['role_name']} any more")
    if not found:
        hint = "see who is invited: cairn project invitations"
        raise CommandFailed(f"nobody is invited as '{who}'", "not_found", Exit.NOT_FOUND, hint)


def _state_of_invitation(row: dict[str, Any]) -> str:
    if row["accepted_at"]:
        return "accepted"
    left = (dt.datetime.fromisoformat(row["expires_at"]) - dt.datetime.now(dt.UTC)).total_seconds()
    return f"{render.span(left)} left" if left > 0 else "void"


def in_use(client: Client) -> dict[str, Any] | None:
    """The project in which requests go that name none; None: there is none, or this may not be asked."""
    try:
        found: dict[str, Any] | None = client.get("/auth/me")["project"]
    except CommandFailed as failure:
        if failure.code not in (NO_PROJECT, "not_found", "forbidden"):
            raise
        return None
    return found


def find(client: Client, wanted: str | None) -> dict[str, Any]:
    """The project of this id, unix name or name; None: that in which the program works, or which the API takes."""
    wanted = wanted or client.endpoint.project
    if wanted is None and (taken := in_use(client)):
        wanted = str(taken["id"])
    if wanted and is_id(wanted):
        return dict(client.get(f"/projects/{wanted}"))
    rows = client.pages("/projects", {}, None)[0] if wanted else list(client.get("/projects"))
    hint = "see yours: cairn project list"
    if wanted is None:
        if len(rows) != 1:
            raise usage("there are several projects", f"{hint}; choose one: cairn project use NAME")
        return dict(rows[0])
    if client.endpoint.session is None and len(rows) == 1:
        hint = f"the key in use works in project {rows[0]['name']} alone; to work in others of yours: cairn login"
    return chosen(rows, wanted, hint)


def chosen(rows: Sequence[dict[str, Any]], wanted: str, hint: str) -> dict[str, Any]:
    """The project of this unix name, else of this name: what other systems know it by is nobody else's."""
    found = [row for row in rows if row["unix_name"] == wanted] or [row for row in rows if row["name"] == wanted]
    if len(found) == 1:
        return dict(found[0])
    if found:
        message = f"{len(found)} projects are named '{wanted}': give the unix name or the id of one"
        raise CommandFailed(message, "ambiguous", Exit.REFUSED, hint)
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
