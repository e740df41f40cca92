"""What commands are about, of whatever kind: an id, the name of an instance, or KIND/NAME."""

from __future__ import annotations

from contextlib import suppress

from cli.client import Client, is_id
from cli.errors import CommandFailed, usage

#: What can be named as KIND/NAME.
KINDS = ("instance", "group", "deployment", "lb", "image", "workspace", "session", "pool", "cron", "webhook", "host")
HELP = "(an instance's name, KIND/NAME such as group/web, or an id)"


def resource_id(client: Client, wanted: str) -> str:
    """Raises CommandFailed where there is none."""
    if is_id(wanted):
        return wanted
    kind, slash, name = wanted.partition("/")
    if not slash:
        kind, name = "instance", wanted
    if kind not in KINDS:
        raise usage(f"'{wanted}': there is no kind '{kind}'", f"kinds: {', '.join(KINDS)}")
    return str(client.find(kind, name)["id"])


def name_at(client: Client, id: str, *paths: str) -> str:
    """``NAME (ID)`` of what is at the first of these lists that has it; the id alone of what may not be seen."""
    for path in paths:
        with suppress(CommandFailed):
            return f"{client.get(f'{path}/{id}')['name']} ({id})"
    return id
