"""``cairn login``, ``logout`` and ``whoami``."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from cli import config, render, session
from cli.client import Client
from cli.endpoint import Endpoint, find_endpoint, is_loopback
from cli.errors import CommandFailed, usage
from cli.render import Format, Output


def login(
    email: Annotated[str | None, typer.Option(help="Your address; asked for otherwise.", show_default=False)] = None,
    register: Annotated[bool, typer.Option("--register", help="Become a user first.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Set another password first, with a token by mail.")] = False,
    name: Annotated[str | None, typer.Option(help="Your name, with --register.", show_default=False)] = None,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="CONTEXT",
            help="Context that keeps the login: by default the one in use, else one of the API's address.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Log in: a context keeps the tokens, and commands use and renew them by themselves.

    The password is asked for, or CAIRN_PASSWORD, or a line of stdin. There is no option for it:
    the shell's history and the list of processes would keep it.
    """
    if register and reset:
        raise usage("--register or --reset, not both")
    found = find_endpoint()
    if into:
        config.check_name(into)
    if urlsplit(found.api_url).scheme == "http" and not is_loopback(found.api_url):
        render.say(f"warning: {found.api_url} is not encrypted: who listens on the way can read the password")
    email = email or _line("Email")
    with Client(Endpoint(found.api_url, None, found.stopped, ca_file=found.ca_file, source=found.source)) as client:
        password = _reset(client, email) if reset else _password(confirm=register)
        if register:
            made = {"email": email, "password": password, "name": name or email.partition("@")[0]}
            client.request("POST", "/auth/register", body=made)
        granted = client.request("POST", "/auth/login", body={"email": email, "password": password})["data"]
    kept_in = _keep(found, into, granted)
    render.say(f"logged in as {granted['user']['email']}; context {kept_in} keeps it, and is chosen")


def logout() -> None:
    """End the session of the context in use, here and at the API. API keys stay."""
    found = find_endpoint()
    if found.session is None:
        raise usage("nobody is logged in here", "a key is forgotten with: cairn context rm")
    try:
        with Client(found) as client:
            client.request("POST", "/auth/logout")
    except CommandFailed as failure:
        if failure.code != "unauthenticated":
            raise  # the session goes on: what would end it is kept
    with config.changing() as document:
        session.forget(document.get("contexts", {}).get(found.session.name, {}))
    render.say("logged out")


def whoami(output: Output = Format.TABLE) -> None:
    """Show who you are to the API, in which project, and what you may do there."""
    with Client() as client:
        me = client.get("/auth/me")
    if output is not Format.TABLE:
        render.print_json(me)
        return
    user, project = me["user"], me["project"]
    render.print_facts(
        [
            ("user", f"{user['name']} <{user['email']}>" if user else ""),
            ("service account", me["service_account"]["name"] if me["service_account"] else ""),
            ("administrator", "yes" if user and user["is_admin"] else "no"),
            ("with", f"the API key {me['key_id']}" if me["key_id"] else "a login"),
            ("project", f"{project['unix_name']} ({project['id']})" if project else "none"),
            ("roles", ", ".join(project["roles"]) if project else ""),
            ("scopes", "no limit" if me["scopes"] is None else ", ".join(me["scopes"])),
            ("permissions", ", ".join(me["permissions"])),
            ("projects", ", ".join(one["unix_name"] for one in me["projects"])),
        ]
    )


def _reset(client: Client, email: str) -> str:
    """The password that was set."""
    client.request("POST", "/auth/forgot-password", body={"email": email})
    render.say(f"if there is such a user, a mail is on its way to {email}; it is good for 30 minutes")
    token = _line("Token of the mail").rpartition("#")[2]
    password = _password(confirm=True)
    client.request("POST", "/auth/reset-password", body={"token": token, "password": password})
    return password


def _password(*, confirm: bool) -> str:
    if given := os.environ.get("CAIRN_PASSWORD"):
        return given
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True))
    return _line("Password", "give it as a line of stdin, or in CAIRN_PASSWORD")


def _line(what: str, hint: str | None = None) -> str:
    """Asked for; without a terminal the next line of stdin."""
    if sys.stdin.isatty():
        return str(typer.prompt(what, err=True)).strip()
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise usage(f"there is no {what.lower()}", hint)
    return line


def _keep(found: Endpoint, into: str | None, granted: dict[str, Any]) -> str:
    """The name of the context."""
    with config.changing() as document:
        contexts = document.setdefault("contexts", {})
        name = into or found.context or _free_name(found.api_url, contexts)
        kept = contexts.get(name)
        if kept is not None and str(kept.get("url", "")).rstrip("/") != found.api_url:
            raise usage(f"context {name} is of {kept.get('url')}, and this login of {found.api_url}")
        if kept is None:
            contexts[name] = {"url": found.api_url} | ({"ca_file": found.ca_file} if found.ca_file else {})
        contexts[name].update(session.fields(granted))
        document["current"] = name
    return name


def _free_name(api_url: str, contexts: Any) -> str:
    """Of the address; another where that is a context of something else."""
    parts = urlsplit(api_url)
    base = re.sub(r"[^A-Za-z0-9._-]", "-", parts.netloc).strip("-._")[:50] or "cairn"
    names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(name for name in names if name not in contexts or contexts[name].get("url") == api_url)
