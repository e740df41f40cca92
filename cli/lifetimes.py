"""Options of a launch that say how long the instance lives, how it starts and whether it is well."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import render, ssh_keys
from cli.client import Client
from cli.errors import of_option, usage
from cli.options import cannot_open, seconds

_HELP_HEALTH = "http:PORT/PATH, tcp:PORT or exec:COMMAND: what says that it is well."

Ttl = Annotated[str | None, typer.Option("--ttl", help="Delete it after this: 90s, 30m, 8h, 7d.")]
TtlFromNow = Annotated[str | None, typer.Option("--ttl", help="Delete it so long from now: 90s, 30m, 8h, 7d.")]
IdleStop = Annotated[str | None, typer.Option("--idle-stop", help="Stop it when it did nothing for so long: 30m.")]
UserData = Annotated[
    str | None, typer.Option("--user-data", help="Script that runs in it once, first, as root: a file, or - for stdin.")
]
Restart = Annotated[
    str | None,
    typer.Option("--restart", help="When its program ends: no (default), on-failure, on-failure:N or always."),
]
HealthOption = Annotated[str | None, typer.Option("--health", help=_HELP_HEALTH)]
Interval = Annotated[str | None, typer.Option("--health-interval", help="Time between two looks (default: 10s).")]
Timeout = Annotated[str | None, typer.Option("--health-timeout", help="After which a look fails (default: 5s).")]
Retries = Annotated[int | None, typer.Option("--health-retries", help="Failures that make it unhealthy (default: 3).")]
StartPeriod = Annotated[
    str | None, typer.Option("--health-start-period", help="After a start failures do not count for so long.")
]
SshKey = Annotated[
    str | None,
    typer.Option(
        "--ssh-key", help="Key for its root, by name or id: see cairn ssh-key.", autocompletion=ssh_keys.key_names
    ),
]


def fields(
    *,
    ttl: str | None,
    idle_stop: str | None,
    user_data: str | None,
    restart: str | None,
) -> dict[str, Any]:
    """The fields of the request; None: not asked for."""
    return {
        "ttl_seconds": seconds("--ttl", ttl) if ttl else None,
        "idle_stop_seconds": seconds("--idle-stop", idle_stop) if idle_stop else None,
        "user_data": _script(user_data) if user_data else None,
        "restart_policy": restart,
    }


def health_check(
    written: str | None, *, interval: str | None, timeout: str | None, retries: int | None, start_period: str | None
) -> dict[str, Any] | None:
    """``http:80/ready`` and so on, as the API takes it."""
    times = {
        "interval_seconds": seconds("--health-interval", interval) if interval else None,
        "timeout_seconds": seconds("--health-timeout", timeout) if timeout else None,
        "retries": retries,
        "start_period_seconds": seconds("--health-start-period", start_period) if start_period else None,
    }
    more = {name: value for name, value in times.items() if value is not None}
    if written is None:
        if more:
            raise usage("--health-… says more of a health check: give that with --health")
        return None
    type, _, rest = written.partition(":")
    if type == "exec" and rest:
        try:
            return {"type": type, "command": shlex.split(rest), **more}
        except ValueError as error:
            raise usage(f"--health {written}: {error}") from None
    port, slash, path = rest.partition("/")
    if type not in ("http", "tcp") or not port.isdecimal() or (slash and type == "tcp"):
        raise usage(f"--health {written}: expected http:PORT[/PATH], tcp:PORT or exec:COMMAND")
    return {"type": type, "port": int(port), **({"path": f"/{path}"} if slash else {}), **more}


def key_id(client: Client, wanted: str | None) -> str | None:
    """The id of a key that was named."""
    if wanted is None:
        return None
    with of_option("--ssh-key"):
        return str(ssh_keys.find(client, wanted)["id"])


def facts(instance: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for ``cairn instance show``."""
    check, idle, policy = (instance.get(name) for name in ("health_check", "idle_stop_seconds", "restart_policy"))
    active = instance.get("active_at")
    return [
        ("health", instance.get("health") or ("not known" if check and instance["status"] != "deleted" else "")),
        ("health check", shown_check(check) if check else ""),
        ("expires", instance.get("expires_at") or ""),
        (
            "idle stop",
            f"after {render.span(idle)}" + (f", last active {render.age(active)} ago" if active else "")
            if idle
            else "",
        ),
        ("restart", policy if policy not in (None, "no") else ""),
        ("user data", "yes" if instance.get("user_data_sha256") else ""),
        ("ssh key", instance.get("ssh_key") or instance.get("ssh_key_id") or ""),
    ]


def shown_check(check: dict[str, Any]) -> str:
    what = " ".join(check.get("command") or []) or f"port {check.get('port')}{check.get('path') or ''}"
    return f"{check['type']} {what}, every {check['interval_seconds']:g} s"


def _script(where: str) -> str:
    try:
        return sys.stdin.read() if where == "-" else Path(where).read_text()
    except OSError as error:
        raise usage(cannot_open(f"--user-data {where}", error)) from None
    except UnicodeDecodeError:
        raise usage(f"--user-data {where}: it is no text") from None
