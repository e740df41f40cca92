"""``cairn login``, ``logout``, ``passwd`` and ``whoami``."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from cli import config, render, session
from cli.client import NO_PROJECT, Client
from cli.endpoint import Endpoint, find_endpoint, is_loopback
from cli.errors import CommandFailed, usage
from cli.render import Format, Output

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


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
        password = _reset(client, email) if reset else ask_password(confirm=register)
        if register:
            made = {"email": email, "password": password, "name": name or email.partition("@")[0]}
            client.request("POST", "/auth/register", body=made)
        try:
            granted = client.request("POST", "/auth/login", body={"email": email, "password": password})["data"]
        except CommandFailed as failure:
            if failure.code == "unauthenticated":
                failure.hint = "check address and password; where it is forgotten: cairn login --reset"
            raise
    kept_in = _keep(found, into, granted)
    render.say(f"logged in as {granted['user']['email']}; context {kept_in} keeps it, and is chosen")


def logout() -> None:
    """End the session of the context in use, here and at the API. API keys stay.

    What was chosen before the login is chosen again.
    """
    found = find_endpoint()
    if found.session is None:
        raise usage(
            "nobody is logged in here",
            "to use the platform of this folder: cairn context use --none; a key is forgotten with: cairn context rm",
        )
    try:
        with Client(found) as client:
            client.request("POST", "/auth/logout")
    except CommandFailed as failure:
        if failure.code != "unauthenticated":
            raise  # the session goes on: what would end it is kept
    with config.changing() as document:
        kept: Any = document.get("contexts", {}).get(found.session.name, {})
        session.forget(kept)
        chosen = _choose_again(document, found.session.name, kept.pop(session.CHOSEN_OVER, None))
    render.say(f"logged out{chosen}")


def passwd() -> None:
    """Change your password, which ends all your other sessions; API keys stay.

    The old and the new one are asked for, or CAIRN_PASSWORD and CAIRN_NEW_PASSWORD, or two lines of stdin.
    """
    with Client() as client:
        old = ask_password(confirm=False, what="Old password")
        new = ask_password(confirm=True, what="New password", variable="CAIRN_NEW_PASSWORD")
        try:
            client.request("PATCH", "/auth/me", body={"password": new, "old_password": old})
        except CommandFailed as failure:
            if failure.code == "forbidden":
                failure.hint = "where it is forgotten: cairn login --reset, or ask an administrator of the platform"
            raise
    render.say("your password is another; all other sessions have ended")


def whoami(output: Output = Format.TABLE) -> None:
    """Show who you are to the API, in which project, and what you may do there."""
    found = find_endpoint()
    try:
        with Client(found) as client:
            me = client.get("/auth/me")
    except CommandFailed as failure:
        if failure.code != NO_PROJECT:
            raise
        render.say(f"warning: {failure.message}: {failure.hint}")
        with Client(replace(found, project=None)) as client:
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
            (
                "permissions",
                f"{len(me['permissions'])}; all of them: cairn whoami -o json" if me["permissions"] else "none",
            ),
            ("projects", ", ".join(one["unix_name"] for one in me["projects"])),
        ]
    )


def _reset(client: Client, email: str) -> str:
    """The password that was set."""
    client.request("POST", "/auth/forgot-password", body={"email": email})
    render.say(f"if there is such a user, a mail is on its way to {email}; it is good for 30 minutes")
    render.say("under CAIRN_MAILER=log no mail is sent: the link is in the API's log")
    token = _line("Token of the mail").rpartition("#")[2]
    password = ask_password(confirm=True)
    client.request("POST", "/auth/reset-password", body={"token": token, "password": password})
    return password


def ask_password(*, confirm: bool, what: str = "Password", variable: str = "CAIRN_PASSWORD") -> str:
    """That variable of the environment, or asked for; without a terminal a line of stdin."""
    if given := os.environ.get(variable):
        return given
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True))
    return _line(what, f"give it as a line of stdin, or in {variable}")


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
        if document.get("current") != name:
            contexts[name][session.CHOSEN_OVER] = document.get("current") or ""
        document["current"] = name
    return name


def _choose_again(document: TOMLDocument, name: str, before: str | None) -> str:
    """Choose what was chosen before the login chose context ``name``; None: the login chose nothing. What to say."""
    if before is None or document.get("current") != name:
        return ""
    if before in document.get("contexts", {}):
        document["current"] = before
        return f"; context {before} is chosen again"
    del document["current"]
    return f"; context {name} is not chosen any more"


def _free_name(api_url: str, contexts: Any) -> str:
    """Of the address; another where that is a context of something else."""
    parts = urlsplit(api_url)
    base = re.sub(r"[^A-Za-z0-9._-]", "-", parts.netloc).strip("-._")[:50] or "cairn"
    names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(name for name in names if name not in contexts or contexts[name].get("url") == api_url)
