"""Every command of the program: where it stands, and the line of help that the list of all has."""

from __future__ import annotations

from typing import Any, NamedTuple

#: Names of commands that show what there is: they can be watched.
VIEWS = frozenset({"list", "show"})


class Place(NamedTuple):
    """Where a command stands: a Typer application (a group of commands), or the function of a single one.

    ``local``: it asks no API, or not that of a context.
    """

    module: str
    name: str
    help: str
    example: str | None = None
    local: bool = False


COMMANDS = {
    "up": Place("cli.stack", "up", "Start the platform on this machine.", "cairn up --detach", local=True),
    "down": Place("cli.stack", "down", "Stop the platform; instances keep running.", "cairn down", local=True),
    "reset": Place("cli.stack", "reset", "Delete the platform's data and its containers.", "cairn reset --yes", True),
    "backup": Place("cli.backups", "backup", "Back the platform up.", "cairn backup cairn.backup", local=True),
    "restore": Place("cli.restores", "app", "Restore a backup, and decide about what differs since."),
    "doctor": Place("cli.doctor", "doctor", "Check what the platform needs.", "cairn doctor", local=True),
    "setup": Place("cli.setup", "setup", "Prepare PostgreSQL and Temporal servers.", "cairn setup --check", local=True),
    "demo": Place("cli.demo", "demo", "Tour: launch, kill -9 in the middle, cancel, delete.", "cairn demo", local=True),
    "login": Place("cli.login", "login", "Log in, or register and log in.", "cairn login --email jo@example.org"),
    "logout": Place("cli.login", "logout", "End the login of the context in use.", "cairn logout"),
    "passwd": Place("cli.login", "passwd", "Change your password.", "cairn passwd"),
    "whoami": Place("cli.login", "whoami", "Who you are, in which project, and what you may.", "cairn whoami"),
    "user": Place("cli.users", "app", "All users of the platform; for its administrators."),
    "key": Place("cli.keys", "app", "Your API keys."),
    "instance": Place("cli.instances", "app", "Launch instances, look at them and into them, change them."),
    "group": Place("cli.group_schedules", "groups", "Instances from one template, as many as desired."),
    "deployment": Place("cli.group_schedules", "deployments", "An image, so many times."),
    "lb": Place("cli.balancers", "app", "Load balancers: one address for many instances."),
    "session": Place("cli.sessions", "app", "Work sessions: sandboxes on workspaces' files."),
    "pool": Place("cli.pools", "app", "Sandboxes that run before a session asks for one."),
    "image": Place("cli.images", "app", "Images: from a registry, a file or a URL."),
    "workspace": Place("cli.workspaces", "app", "Repositories that are brought to hosts."),
    "credential": Place("cli.credentials", "app", "With what workspaces are fetched."),
    "cache": Place("cli.caches", "app", "What sessions share of package managers' caches."),
    "agent": Place("cli.agents", "app", "Agents that work in sessions."),
    "ssh-key": Place("cli.ssh_keys", "app", "Public keys that instances are launched with."),
    "preference": Place("cli.preferences", "app", "What the platform remembers for you."),
    "host": Place("cli.hosts", "app", "Hosts: let machines join, empty and remove them."),
    "secret": Place("cli.secrets", "app", "Values that instances are given, and nobody is shown."),
    "type": Place("cli.types", "app", "Instance types: the sizes that instances come in."),
    "project": Place("cli.projects", "app", "Projects: make them, choose one, see who is in it."),
    "role": Place("cli.roles", "app", "What may be done in a project, and who has which role."),
    "service-account": Place("cli.service_accounts", "app", "Members who are programs, and their keys."),
    "quota": Place("cli.quotas", "app", "What a project may use, and uses."),
    "workflow": Place("cli.workflows", "app", "Look at workflows, wait for them, cancel and retry them."),
    "event": Place("cli.events", "app", "Events: those there were, and those that come."),
    "events": Place("cli.events", "events", "As event list; -f: as they come.", "cairn events -f --resource web"),
    "webhook": Place("cli.webhooks", "app", "Send events to other programs, and see what became of them."),
    "cron": Place("cli.cron", "app", "Run things at certain times: requests, commands, workflows."),
    "audit": Place("cli.audit", "app", "Who did what, or was refused."),
    "dashboard": Place("cli.dashboard", "dashboard", "The project and the hosts at a glance.", "cairn dashboard"),
    "watch": Place("cli.watching", "command", "Show again what changes.", "cairn watch instance list"),
    "api": Place("cli.api", "api", "Ask the API for anything.", "cairn api GET '/instances?status=running'"),
    "context": Place("cli.contexts", "app", "The platforms that this program knows; which one it asks."),
    "completion": Place("cli.shells", "completion", "Completion for your shell.", "cairn completion bash", local=True),
    "faults": Place("cli.faults", "app", "Fault points of the platform; for testing only.", local=True),
}
#: Commands whose own options end where their arguments begin.
PASSING_ON: dict[str, dict[str, Any]] = {
    "watch": {"allow_interspersed_args": False, "ignore_unknown_options": True},
}
