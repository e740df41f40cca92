"""``cairn host join``: this machine becomes a host, and runs its agent."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from cli import render
from cli.client import Client, Endpoint, is_loopback
from cli.errors import CommandFailed, Exit, usage
from cli.options import cannot_open, duration, pairs

#: How long an API that does not answer is tried before anything is said about it.
QUIET_SECONDS = 3.0
DEFAULT_PATIENCE = 300.0
AWAY = ("unreachable", "unavailable")
#: What a host that has joined already can go on in spite of, as the host that it is.
VOID = ("unauthenticated", "name_taken")
REFUSALS = (*VOID, "version_refused", "validation_failed", "malformed", "not_found")


class Refused(CommandFailed):
    """The platform said no, and has changed nothing."""


def join(
    url: Annotated[
        str | None,
        typer.Option(envvar="CAIRN_API_URL", help="Where the API is, as seen from here.", show_default=False),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="CAIRN_JOIN_TOKEN", help="Of 'cairn host token'; needed once.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(envvar="CAIRN_HOST_NAME", help="Name of the host (default: the machine's).", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", "-l", envvar="CAIRN_HOST_LABELS", help="k=v; may be repeated (variable: apart by blanks)."
        ),
    ] = None,
    docker_host: Annotated[
        str | None, typer.Option(envvar="CAIRN_DOCKER_HOST", help="Its Docker engine.", show_default=False)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="CAIRN_AGENT_ADDRESS", help="Address at which the API reaches its agent.", show_default=False
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="CAIRN_AGENT_PORT",
            min=0,
            max=65535,
            help="Port at which the API reaches its agent.",
            show_default=False,
        ),
    ] = None,
    temporal: Annotated[
        str | None,
        typer.Option(
            envvar="CAIRN_TEMPORAL_ADDRESS", help="HOST:PORT of Temporal, as seen from here.", show_default=False
        ),
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Join anew with new keys; needs a token made for the host's name.")
    ] = False,
    restored: Annotated[
        bool, typer.Option("--restored", help="Join again, under the same id, a platform that a restore took back.")
    ] = False,
    register_only: Annotated[bool, typer.Option("--register-only", help="Join, and do not run the agent.")] = False,
    patience: Annotated[
        float, typer.Option(parser=duration, metavar="TIME", help="How long to wait for an API that does not answer.")
    ] = DEFAULT_PATIENCE,
) -> None:
    """Make this machine a host and run its agent, until it is stopped.

    Run it again after a restart: a host that has joined needs no token any
    more. Its identity is kept in CAIRN_DATA_DIR (default .cairn).
    """
    from cli.settings import read_settings
    from worker import identity, joining
    from worker.joining import JoinError, Wanted

    token = token or _token_in_file()
    if rotate and not token:
        raise usage("--rotate needs a token made for this host: cairn host token --name NAME")
    given = {
        "CAIRN_DOCKER_HOST": docker_host,
        "CAIRN_AGENT_ADDRESS": address,
        "CAIRN_AGENT_PORT": None if port is None else str(port),
        "CAIRN_TEMPORAL_ADDRESS": temporal,
    }
    options = {variable: value for variable, value in given.items() if value}
    labels = pairs("--label", label)
    try:
        wanted = Wanted(
            name=joining.checked_name(name or socket.gethostname()),
            api_url=joining.api_root(url) if url else None,
            token=token or None,
            rotate=rotate,
            restored=restored,
            options=options,
        )
    except JoinError as error:
        raise usage(str(error)) from None
    path = identity.path_of(read_settings().data_dir.absolute(), wanted.name)
    try:
        before = identity.read(path)
    except ValueError as error:
        message = f"{path} cannot be used: {error}"
        raise CommandFailed(message, "bad_identity", Exit.FAILED, "move it away, and join with a new token") from None
    known_options = (before.options if before else {}) | options
    facts = _facts(known_options, labels)

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        return _ask(wanted, body, patience)

    try:
        try:
            now = joining.join(path, wanted, facts, ask, Refused)
        except Refused as failure:
            joined = before is not None and before.membership is not None
            if failure.code not in VOID or rotate or register_only or not joined:
                raise
            # A unit or a container may carry a token for ever: one that is void is no reason to stay away.
            render.say(f"{failure.message}; going on as the host that this is already")
            now = joining.join(path, replace(wanted, token=None, api_url=None), facts, ask, Refused)
        if now.membership is not None:
            host = now.membership.hosts[0]
            render.say(f"host {host.name} ({host.id}) of the platform at {now.membership.api_url}; identity: {path}")
        if not register_only:
            environ = dict(os.environ)
            if sys.stderr.isatty():
                environ.setdefault("CAIRN_LOG_FORMAT", "console")
            sys.stdout.flush()
            joining.run_agent(path, now, environ)
    except JoinError as error:
        raise CommandFailed(str(error), "cannot_join", Exit.REFUSED) from None


def _token_in_file() -> str | None:
    """Of CAIRN_JOIN_TOKEN_FILE. One that is not there any more is not needed by a host that has joined."""
    path = os.environ.get("CAIRN_JOIN_TOKEN_FILE")
    try:
        return Path(path).read_text().strip() or None if path else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise usage(cannot_open(f"CAIRN_JOIN_TOKEN_FILE {path}", error)) from None


def _facts(options: dict[str, str], labels: dict[str, str]) -> dict[str, Any]:
    """What this machine has; with a warning where its engine is away, as that may come later."""
    from cli.settings import read_settings
    from worker import engine, identity
    from worker.data_folder import StackError

    given = {"docker_host": options["CAIRN_DOCKER_HOST"]} if "CAIRN_DOCKER_HOST" in options else {}
    settings = read_settings(**given)
    versions = {"agent": version("cairn-platform")}
    reason = engine.problem(settings.docker_host)
    if reason is None:
        try:
            engine.ensure_base_image(settings.docker_host, render.say)
        except StackError as error:
            render.say(f"warning: {error}")
        versions["engine"] = engine.version(settings.docker_host)
    else:
        render.say(
            f"warning: no Docker engine answers at {settings.docker_host} ({reason}); the host joins all the same, "
            "and works once it is there"
        )
    cpus, memory_mb = identity.capacity(settings)
    return {"capacity": {"cpus": cpus, "memory_mb": memory_mb}, "labels": labels, "versions": versions}


def _ask(wanted: Any, body: dict[str, Any], patience: float) -> dict[str, Any]:
    """Register; an API that is away is waited for, as machines start in any order."""
    url = wanted.api_url
    if urlsplit(url).scheme == "http" and not is_loopback(url):
        render.say(f"warning: {url} is not encrypted: who listens on the way can take the token and the credential")
    with Client(Endpoint(url, None)) as client:

        def send(seconds: float) -> dict[str, Any]:
            return client.request("POST", "/hosts/register", body=body, patience=seconds)

        try:
            try:
                answer = send(min(patience, QUIET_SECONDS))
            except CommandFailed as failure:
                if failure.code not in AWAY or patience <= QUIET_SECONDS:
                    raise
                render.say(f"{failure.message}; trying again for {patience:g} s")
                answer = send(patience - QUIET_SECONDS)
        except CommandFailed as failure:
            raise _explained(failure, wanted.name) from None
    data: dict[str, Any] = answer["data"]
    return data


def _explained(failure: CommandFailed, name: str) -> CommandFailed:
    """The same failure, with a hint for the person at the machine that joins."""
    hint, exit = failure.hint, failure.exit
    if failure.code == "unauthenticated":
        hint, exit = "make another where the platform is managed: cairn host token", Exit.REFUSED
    elif failure.code == "name_taken":
        hint = f"join under another name (--name), or with a token for it: cairn host token --name {name}"
    elif failure.code == "version_refused":
        hint = "see which agents a platform works with: docs/upgrading.md"
    elif failure.code in AWAY:
        hint = "see that --url (CAIRN_API_URL) is right, that the API runs, and that no firewall is in the way"
    kind = Refused if failure.code in REFUSALS else CommandFailed
    return kind(failure.message, failure.code, exit, hint, failure.fields)
