"""``cairn context``: the platforms that this program knows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

import typer

from cli import config, render, session
from cli.completion import contexts as context_names
from cli.endpoint import Endpoint, find_endpoint, is_loopback
from cli.errors import CommandFailed, Exit, usage
from cli.render import Format, Output
from cli.several import one_by_one

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The platforms that this program knows, and which one it asks."
)

Name = Annotated[str, typer.Argument(help="Name of the context.", show_default=False, autocompletion=context_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names of contexts.", show_default=False, autocompletion=context_names),
]
CHECK_SECONDS = 3.0


@app.command("list", epilog="Example: cairn context list")
def list_(output: Output = Format.TABLE) -> None:
    """List the contexts. Keys are not shown."""
    known = config.read()
    rows = [_row(context, known.current) for context in known.contexts.values()]
    if output is Format.TABLE:
        render.print_table(
            ["NAME", "CHOSEN", "URL", "KEY", "USER", "PROJECT", "CA FILE"],
            [
                [
                    row["name"],
                    "*" if row["current"] else "",
                    row["url"],
                    "yes" if row["has_key"] else "no",
                    row["user"] or "",
                    row["project"] or "",
                    row["ca_file"] or "",
                ]
                for row in rows
            ],
            wide=["PROJECT", "CA FILE"],
        )
    else:
        render.print_json(rows)


@app.command(epilog="Example: cairn context add prod --url https://cairn.example.org --use")
def add(
    name: Annotated[str, typer.Argument(help="Name of the context.", show_default=False)],
    url: Annotated[str, typer.Option(help="Address of the API.", show_default=False)],
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the key from stdin.")] = False,
    project: Annotated[str | None, typer.Option(help="Id of the project to work in, where the key has many.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust, and no others.", show_default=False)
    ] = None,
    use: Annotated[
        bool, typer.Option("--use", help="Choose it. The first one is chosen anyway, where its API knows the key.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of one of the same name.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Ask the API whether it knows the key.")] = True,
) -> None:
    """Add a context. Its key is read from stdin (--key-stdin), CAIRN_API_KEY, or asked for.

    There is no option for the key: the shell's history and the list of processes would keep it.
    """
    config.check_name(name)
    if name in config.read().contexts and not replace:
        raise _taken(name)
    made: dict[str, str] = {"url": _address(url), "key": _key(key_stdin)}
    if project:
        made["project"] = _id(project)
    if ca_file:
        if not ca_file.is_file():
            raise usage(f"--ca-file {ca_file}: there is no such file")
        made["ca_file"] = str(ca_file.absolute())
    good = True
    if check:
        good = _check(Endpoint(made["url"], made["key"], project=made.get("project"), ca_file=made.get("ca_file")))
    with config.changing() as document:
        contexts = document.setdefault("contexts", {})
        if name in contexts and not replace:  # somebody else was quicker
            raise _taken(name)
        contexts[name] = made
        if use or (good and not document.get("current")):
            document["current"] = name
        chosen = document.get("current") == name
    render.say(f"context {name} is {'chosen' if chosen else f'added; choose it: cairn context use {name}'}")


@app.command(epilog="Example: cairn context use prod")
def use(
    name: Annotated[
        str | None, typer.Argument(help="Name of the context.", show_default=False, autocompletion=context_names)
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Choose none: the platform of each folder is asked.")] = False,
) -> None:
    """Choose the context that is used where no other is named."""
    if (name is None) != none:
        raise usage("give the name of a context, or --none")
    with config.changing() as document:
        if name is None:
            document.pop("current", None)
        elif name not in document.get("contexts", {}):
            raise _missing(name)
        else:
            document["current"] = name
            document["contexts"][name].pop(session.CHOSEN_OVER, None)  # it stays chosen after a logout
    render.say(f"context {name} is chosen" if name else "no context is chosen")


@app.command(epilog="Example: cairn context show -o json")
def show(
    name: Annotated[
        str | None,
        typer.Argument(help="Name; without: what is in effect here.", show_default=False, autocompletion=context_names),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show which API is asked here, and why; or a context. The key itself is not shown."""
    if name:
        known = config.read()
        row = _row(known.find(name), known.current)
    else:
        found = find_endpoint()
        row = {
            "source": found.source,
            "url": found.api_url,
            "has_key": found.api_key is not None,
            "user": found.session.email if found.session else None,
            "project": found.project,
            "ca_file": found.ca_file,
        }
    if output is Format.TABLE:
        render.print_facts([(label.removeprefix("has_").replace("_", " "), _word(row[label])) for label in row])
    else:
        render.print_json(row)


@app.command(epilog="Example: cairn context rm prod")
def rm(names: Names) -> None:
    """Forget contexts with their keys, and end their logins."""

    def forget(name: str) -> None:
        left = _end_login(config.read().contexts.get(name))
        with config.changing() as document:
            if name not in document.get("contexts", {}):
                raise _missing(name)
            del document["contexts"][name]
            if document.get("current") == name:
                del document["current"]
        render.say("; ".join((f"context {name} is forgotten", *left)))

    one_by_one(names, forget)


def _end_login(context: config.Context | None) -> list[str]:
    """What became of what it held. A login is ended at the API too, where that answers: nobody else has its tokens."""
    from cli.client import Client

    left = []
    if context is not None and context.refresh_token:
        endpoint = Endpoint(context.url, None, ca_file=context.ca_file, context=context.name, session=context)
        try:
            with Client(endpoint) as client:
                client.request("POST", "/auth/logout", patience=0, timeout=CHECK_SECONDS)
            left.append("its login has ended")
        except CommandFailed as failure:
            over = failure.code == "unauthenticated"
            left.append(
                "its login had ended" if over else f"its login goes on, as it could not be ended: {failure.message}"
            )
    if context is not None and context.key:
        left.append("its key is still valid until it is revoked")
    return left


def _word(value: bool | str | None) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else value or ""


def _row(context: config.Context, current: str | None) -> dict[str, Any]:
    return {
        "name": context.name,
        "current": context.name == current,
        "url": context.url,
        "has_key": bool(context.key),
        "user": context.email,
        "project": context.project,
        "ca_file": context.ca_file,
    }


def _taken(name: str) -> CommandFailed:
    hint = "choose another name, or overwrite it with --replace"
    return CommandFailed(f"there is a context named '{name}'", "name_taken", Exit.REFUSED, hint)


def _missing(name: str) -> CommandFailed:
    hint = "see what there is: cairn context list"
    return CommandFailed(f"there is no context named '{name}'", "no_context", Exit.NOT_FOUND, hint)


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise usage(f"--url {url}: expected an address such as https://cairn.example.org")
    if "@" in parts.netloc:
        raise usage("--url: no name and password in it; the key is what Cairn knows you by")
    if parts.scheme == "http" and not is_loopback(url):
        render.say(f"warning: {url} is not encrypted: who listens on the way can read the key")
    path = parts.path.rstrip("/")
    return parts._replace(path=path or "/v1").geturl()


def _id(project: str) -> str:
    try:
        return str(UUID(project))
    except ValueError:
        raise usage(f"--project {project}: expected the id of a project", "see it with: cairn project show") from None


def _key(from_stdin: bool) -> str:
    if from_stdin:
        key = sys.stdin.read()
    elif os.environ.get("CAIRN_API_KEY"):
        render.say("its key is that of CAIRN_API_KEY")
        key = os.environ["CAIRN_API_KEY"]
    elif sys.stdin.isatty():
        key = typer.prompt("API key", hide_input=True, err=True)
    else:
        raise usage("there is no key", "give it with --key-stdin, or CAIRN_API_KEY")
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise usage("an API key is one word of visible ASCII characters")
    return key


def _check(endpoint: Endpoint) -> bool:
    """A warning, as it may be added before its platform runs. False: it is of no use as it is.

    Raises CommandFailed where the platform answers that it does not know the key."""
    from cli.client import Client

    try:
        with Client(endpoint) as client:
            project = f"/{endpoint.project}" if endpoint.project else ""
            client.request("GET", f"/projects{project}", patience=0, timeout=CHECK_SECONDS)
    except CommandFailed as failure:
        if failure.code == "unauthenticated":
            failure.hint = "nothing is kept; give it another key, or keep it as it is with --no-check"
            raise
        render.say(f"warning: {failure.message} ({failure.code})")
        return failure.code == "forbidden"  # the key is known; it may just not ask this
    return True
