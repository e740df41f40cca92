"""What a shell is offered for names: asked of the API, quickly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from cli.routes import PATHS

#: Who presses Tab waits no longer.
ANSWER_SECONDS = 1.0
MOST = 200


def _listed(path: str, field: str = "name") -> Callable[[str], list[str]]:
    """What completes the ``field`` of what is listed at ``path``."""

    def names(incomplete: str) -> list[str]:
        return _names(path, field, incomplete)

    return names


instances = _listed(PATHS["instance"])
images = _listed(PATHS["image"])
hosts = _listed(PATHS["host"])
types = _listed(PATHS["type"])
secrets = _listed(PATHS["secret"])
ssh_keys = _listed(PATHS["ssh-key"])
preferences = _listed(PATHS["preference"], "key")
webhooks = _listed(PATHS["webhook"])
cron_jobs = _listed(PATHS["cron"])
balancers = _listed(PATHS["lb"])
sessions = _listed(PATHS["session"])
agents = _listed(PATHS["agent"])
pools = _listed(PATHS["pool"])
workspaces = _listed(PATHS["workspace"])
credentials = _listed(PATHS["credential"])
caches = _listed(PATHS["cache"])
_GROUPS = {"group": _listed(PATHS["group"]), "deployment": _listed(PATHS["deployment"])}
keys = _listed("/auth/keys")
users = _listed(PATHS["user"], "email")
projects = _listed(PATHS["project"], "unix_name")
roles = _listed("/rbac/roles")
service_accounts = _listed(PATHS["service-account"])
workflows = _listed(PATHS["workflow"], "id")


def groups(context: typer.Context, incomplete: str) -> list[str]:
    """Groups or deployments, as the command is of."""
    noun = context.parent.info_name if context.parent else None
    return _GROUPS[noun](incomplete) if noun in _GROUPS else []


def fleets(incomplete: str) -> list[str]:
    """Groups and deployments."""
    return [name for of in _GROUPS.values() for name in of(incomplete)]


def contexts(incomplete: str) -> list[str]:
    from cli import config
    from cli.errors import CommandFailed

    try:
        return [name for name in config.read().contexts if name.startswith(incomplete)]
    except CommandFailed:
        return []


def _names(path: str, field: str, incomplete: str) -> list[str]:
    """Nothing where the API does not answer: the line that is being typed is no place for errors."""
    import httpx

    from cli.client import Client
    from cli.errors import CommandFailed

    try:
        with Client() as client:
            answer = client.request("GET", path, params={"limit": MOST}, patience=0, timeout=ANSWER_SECONDS)
    # No context, no address, no proxy that httpx could use, no answer: that is told once the command is run.
    except (CommandFailed, httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError):
        return []
    rows: Any = answer["data"]
    if not isinstance(rows, list):  # something else answers there
        return []
    names = {str(row.get(field) or "") for row in rows if isinstance(row, dict)}
    return sorted(name for name in names if name and name.startswith(incomplete))
