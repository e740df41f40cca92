"""``cairn session``: sandboxes on the files of workspaces, and these files."""

from __future__ import annotations

import re
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli import chats, copies, forwarding, render, streams
from cli.client import Client
from cli.completion import caches as cache_names
from cli.completion import sessions as session_names
from cli.completion import workspaces as workspace_names
from cli.ending import Ending, each, finish, kind_of
from cli.errors import CommandFailed, Exit, of_option, usage
from cli.listing import Listing, Table, print_list
from cli.options import pairs, seconds
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output
from cli.resources import name_at

#: A host may have to look at each file.
DIFF_SECONDS = 150.0
app = typer.Typer(no_args_is_help=True, add_completion=False, help="Work sessions: sandboxes on workspaces' files.")

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=session_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=session_names),
]


class Since(StrEnum):
    """What a difference is to."""

    COMMIT = "commit"
    START = "start"


Workspace = Annotated[
    str, typer.Argument(help="Name or id of a workspace.", show_default=False, autocompletion=workspace_names)
]
Command = Annotated[list[str], typer.Argument(metavar="-- CMD...", help="What to run, after --.", show_default=False)]


@app.command(epilog="Example: cairn session create shop --name fix-login --network none")
def create(
    workspace: Workspace,
    name: Annotated[str | None, typer.Option(help="What it is to be called (default: after the workspace).")] = None,
    agent: Annotated[
        str | None, typer.Option(help="Name or id of its agent; default: the project's default.", show_default=False)
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image of its sandbox (default: the platform's).")] = None,
    size: Annotated[str, typer.Option("--type", help="Instance type of its sandbox.")] = "basic-1",
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="K=V; may be repeated.")] = None,
    network: Annotated[str | None, typer.Option(help="What it reaches: open or none (default: open).")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="The only servers that it reaches, as pypi.org; may be repeated.")
    ] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="A cache that it shares; may be repeated.", autocompletion=cache_names)
    ] = None,
    idle: Annotated[str | None, typer.Option(help="Stop it when it has done nothing for so long: 30m, 2h.")] = None,
    ttl: Annotated[str | None, typer.Option(help="Delete it, with its files, after so long: 8h, 3d.")] = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Make a session on a workspace, with the files of its commit at /workspace."""
    if allow and network:
        raise usage("--allow and --network exclude each other", "--allow alone lets it reach just these")
    wanted: dict[str, Any] = {
        "name": name,
        "image": image,
        "instance_type": size,
        "env": pairs("--env", env) or None,
        "caches": cache or None,
        "network": {"mode": "allow-list", "allow": allow} if allow else {"mode": network} if network else None,
        "idle_stop_seconds": seconds("--idle", idle) if idle else None,
        "ttl_seconds": seconds("--ttl", ttl) if ttl else None,
    }
    body = {what: value for what, value in wanted.items() if value is not None}
    with Client() as client:
        if agent is not None:
            with of_option("--agent"):
                body["agent_id"] = agent if agent == "default" else client.find("agent", agent)["id"]
        path = f"{client.path_of('workspace', workspace)}/sessions"
        envelope = client.request("POST", path, body=body)
        finish(client, [envelope], "start of", Ending(wait, timeout, output), _KIND)


@app.command("list", epilog="Example: cairn session list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List sessions, newest first."""
    table = Table(
        ["NAME", "STATUS", "COMMIT", "NETWORK", "HOST", "AGE", "ID"],
        lambda row: [
            row["name"],
            row["status"],
            row["commit"][:12],
            row["network"]["mode"],
            row["host"] or "",
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/sessions", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn session show fix-login")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one session."""
    with Client() as client:
        _KIND.display(client, client.find("session", name), output)


@app.command(epilog="Example: cairn session stop fix-login")
def stop(names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE) -> None:
    """Stop sessions; their files stay."""
    ending = Ending(wait, timeout, output)
    each(_KIND, names, "stop of", lambda client, path: client.request("POST", f"{path}/stop"), ending)


@app.command(epilog="Example: cairn session start fix-login")
def start(names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE) -> None:
    """Start stopped sessions, with the files that they had."""
    ending = Ending(wait, timeout, output)
    each(_KIND, names, "start of", lambda client, path: client.request("POST", f"{path}/start"), ending)


@app.command(epilog="Example: cairn session rm fix-login")
def rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for a host that does not answer.")] = False,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Delete sessions, with their files."""
    ending, params = Ending(wait, timeout, output), {"force": "true"} if force else None
    each(_KIND, names, "delete of", lambda client, path: client.request("DELETE", path, params=params), ending)


@app.command(epilog="Example: cairn session diff fix-login src")
def diff(
    name: Name,
    path: Annotated[str, typer.Argument(help="A file or folder of it (default: all of it).", show_default=False)] = "",
    stat: Annotated[bool, typer.Option("--stat", help="Only which files, and how many lines.")] = False,
    patch: Annotated[
        bool, typer.Option("--patch", help="All of it since the session was made but what is ignored, for 'git apply'.")
    ] = False,
    since: Annotated[
        Since | None,
        typer.Option(
            help="Since it was last committed, or made (default: commit, with --patch start).", show_default=False
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show what a session has changed since it was last committed, or made.

    To take all of it along: cairn session diff NAME --patch > mend.patch && git apply --allow-empty mend.patch
    """
    if patch and stat:
        raise usage("--patch and --stat exclude each other", "leave one of both out")
    asked = {"path": path, "stat": stat, "since": since or ("start" if patch else "commit"), "binary": patch}
    params = {what: str(value).lower() if isinstance(value, bool) else value for what, value in asked.items()}
    with Client() as client:
        its = client.path_of("session", name)
        found = client.request("GET", f"{its}/diff", params=params, timeout=DIFF_SECONDS)["data"]
    if patch and found["truncated"]:
        hint = (
            f"take it by paths: cairn session diff {name} PATH --patch; or the files: cairn session cp -r {name}: DIR"
        )
        raise CommandFailed("it is more than fits into a patch", "truncated", Exit.REFUSED, hint)
    if output is not Format.TABLE:
        render.print_json(found)
    elif stat:
        render.print_table(["STATUS", "ADDED", "DELETED", "NAME"], [_row(change) for change in found["files"]])
    else:
        # As bytes: of text, what stands for colours on a terminal would be left out in a file.
        typer.echo(found["diff"].encode(), nl=False)
    if found["truncated"]:
        render.say("there is more than is shown: name a path")


@app.command(epilog="Example: cairn session commit fix-login -m 'Mend the login'")
def commit(
    name: Name,
    message: Annotated[str, typer.Option("--message", "-m", help="What it says; its first line is the title.")],
    author: Annotated[str | None, typer.Option(help="'NAME <MAIL>' (default: the platform).")] = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Commit what a session has changed to its workspace: new sessions begin with it."""
    body: dict[str, Any] = {"message": message}
    if author is not None:
        found = re.fullmatch(r"([^<>]+) <([^<> ]+)>", author)
        if found is None:
            raise usage("--author is none", "write it as 'Ada Lovelace <ada@example.org>'")
        body["author"] = {"name": found[1], "email": found[2]}
    heads: list[str | None] = []

    def found_first(client: Client, wanted: str) -> dict[str, Any]:
        session = _KIND.find(client, wanted)
        heads.append(session["head"])
        return session

    def shown(session: dict[str, Any], output: Format) -> None:
        heads.append(session["head"])
        _print(session, output)

    kind = _KIND._replace(find=found_first, show=shown)
    ending = Ending(wait, timeout, output)
    each(kind, [name], "commit of", lambda client, path: client.request("POST", f"{path}/commit", body=body), ending)
    if wait and len(set(heads)) == 1:
        render.say("nothing was changed: there is no new commit")


app.command("chat", epilog='Example: cairn session chat fix-login "Make the tests pass"')(chats.chat)
app.command("messages", epilog="Example: cairn session messages fix-login")(chats.messages)


@app.command("exec", epilog="Example: cairn session exec fix-login -- make test")
def exec_(
    name: Name,
    command: Command,
    timeout: streams.Longest = streams.EXEC_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Run a command in a session's sandbox, at /workspace; ends with the command's own exit code.

    125: it ended with 0, but its output was cut at 1 MiB.
    """
    streams.exec_(_sandbox(name), command, timeout, output)


@app.command(epilog="Example: cairn session terminal fix-login --keep main")
def terminal(
    name: Name,
    keep: streams.Keep = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- CMD...", help="What to run there (default: a shell), after --.", show_default=False),
    ] = None,
) -> None:
    """Open a terminal in a session's sandbox, at /workspace."""
    streams.terminal(_sandbox(name), keep, command)


@app.command("port-forward", epilog="Example: cairn session port-forward fix-login 3000:8080")
def port_forward(
    name: Name,
    ports: Annotated[list[str], typer.Argument(metavar="[LOCAL:]PORT...", help="Of the sandbox.", show_default=False)],
    address: Annotated[str, typer.Option(help="Where they are reached here.")] = "127.0.0.1",
) -> None:
    """Reach what listens in a session's sandbox at a port of this machine, until Ctrl-C.

    The sandbox publishes no port for that, and its network may be 'none'. LOCAL 0 is any port that is free.
    """
    asked = [forwarding.ports_of(text) for text in ports]
    with ExitStack() as open_:
        client = open_.enter_context(Client())
        path = client.path_of("session", name)
        listeners = {open_.enter_context(forwarding.listen(address, port.here)): port.there for port in asked}
        for listener, there in listeners.items():
            here = f"[{address}]" if ":" in address else address
            render.say(f"{here}:{listener.getsockname()[1]} is port {there} of session {name}")
        with streams.until_interrupted():
            forwarding.forward(client, path, listeners)


@app.command(epilog="Example: cairn session files fix-login src")
def files(
    name: Name,
    path: Annotated[str, typer.Argument(help="A folder of it (default: all of it).", show_default=False)] = "",
    output: Output = Format.TABLE,
) -> None:
    """List a folder of a session, whether that runs or not."""
    with Client() as client:
        found = client.request("GET", f"{client.path_of('session', name)}/files", params={"path": path})["data"]
    if output is not Format.TABLE:
        render.print_json(found)
        return
    rows = [
        [entry["mode"], entry["type"], str(entry["size"]), render.age(entry["modified_at"]), _shown(entry)]
        for entry in found["entries"]
    ]
    render.print_table(["MODE", "TYPE", "BYTES", "AGE", "NAME"], rows)
    if found["truncated"]:
        render.say("there are more than are shown")


app.command(epilog="Example: cairn session cp fix-login:src/app.py .")(copies.cp)


def _sandbox(name: str) -> str:
    """Of a session that runs: what the API would say of the sandbox alone leads to commands that are refused."""
    with Client() as client:
        session = client.find("session", name)
    if session["status"] == "stopped":
        hint = f"start it first: cairn session start {session['name']}"
        raise CommandFailed(f"session {session['name']} is stopped", "invalid_state", Exit.REFUSED, hint)
    return str(session["instance_id"])


def _shown(entry: dict[str, Any]) -> str:
    arrow = "" if entry["target"] is None else f" -> {entry['target']}"
    return f"{entry['name']}{arrow}"


def _row(change: dict[str, Any]) -> list[str]:
    arrow = "" if change["old_path"] is None else f"{change['old_path']} -> "
    lines = ("-" if change[name] is None else str(change[name]) for name in ("additions", "deletions"))
    return [change["status"], *lines, f"{arrow}{change['path']}"]


def _print(session: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(session)
        return
    error = session["error"]
    render.print_facts(
        [
            ("name", session["name"]),
            ("id", session["id"]),
            ("status", session["status"]),
            ("error", f"{error['code']}: {error['message']}" if error else ""),
            ("workspace", session.get("workspace", session["workspace_id"])),
            ("agent", session.get("agent", session["agent_id"]) or ""),
            ("commit", session["commit"]),
            ("committed", session["head"] or ""),
            ("image", session["image"]),
            ("type", session["instance_type"]),
            ("network", session["network"]["mode"]),
            ("caches", ", ".join(session.get("caches", []))),
            ("sandbox", session["instance_id"]),
            ("start", session["start"] + (f": {session['start_reason']}" if session["start_reason"] else "")),
            ("host", session["host"] or ""),
            ("idle stop", f"after {render.span(idle)}" if (idle := session.get("idle_stop_seconds")) else ""),
            ("expires", session["expires_at"] or ""),
        ]
    )


def _names(client: Client, session: dict[str, Any]) -> dict[str, str]:
    """Of what it names by ids."""
    ids = {what: session[f"{what}_id"] for what in ("workspace", "agent")}
    return {what: name_at(client, id, f"/{what}s") for what, id in ids.items() if id}


_KIND = kind_of("session", _print, names=_names)
