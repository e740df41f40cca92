"""What commands are about, of whatever kind: an id, the name of an instance, or KIND/NAME."""

from __future__ import annotations

from contextlib import suppress

from cli.client import Client, is_id
from cli.errors import CommandFailed, usage

#: Kinds as commands call them, and where the API lists them.
PATHS = {
    "instance": "/instances",
    "group": "/autoscaling/groups",
    "deployment": "/containers/deployments",
    "lb": "/lb",
    "image": "/images",
    "workspace": "/workspaces",
    "session": "/sessions",
    "pool": "/pools",
    "cron": "/cron/jobs",
    "webhook": "/webhooks",
}
HELP = "(an instance's name, KIND/NAME such as group/web, or an id)"


def resource_id(client: Client, wanted: str) -> str:
    """Raises CommandFailed where there is none."""
    if is_id(wanted):
        return wanted
    kind, slash, name = wanted.partition("/")
    if not slash:
        return str(client.instance(wanted)["id"])
    if kind == "host":
        return str(client.host(name)["id"])
    if kind not in PATHS:
        raise usage(f"'{wanted}': there is no kind '{kind}'", f"kinds: {', '.join([*PATHS, 'host'])}")
    return str(client.named(PATHS[kind], kind, name)["id"])


def name_at(client: Client, id: str, *paths: str) -> str:
    """``NAME (ID)`` of what is at the first of these lists that has it; the id alone of what may not be seen."""
    for path in paths:
        with suppress(CommandFailed):
            return f"{client.get(f'{path}/{id}')['name']} ({id})"
    return id
