"""Groups and deployments as commands show them, with their members."""

from __future__ import annotations

from typing import Any

from cli import instance_views, lifetimes, networks, render
from cli.client import Client
from cli.errors import CommandFailed, Exit
from cli.resources import name_at
from cli.routes import PATHS, as_commands

#: Members that are shown with their group; the rest: cairn instance list --group.
MEMBERS = 20


def find(client: Client, wanted: str) -> dict[str, Any]:
    """A group, or the deployment of that name: both have members."""
    for noun in ("group", "deployment"):
        try:
            return client.find(noun, wanted)
        except CommandFailed as failure:
            if failure.code != "not_found":
                raise
    hint = "see what there is: cairn group list; cairn deployment list"
    raise CommandFailed(f"there is no group or deployment named '{wanted}'", "not_found", Exit.NOT_FOUND, hint)


def names(client: Client, row: dict[str, Any]) -> dict[str, str]:
    """Of its load balancer; the id of one that may not be seen."""
    balancer = row.get("load_balancer_id")
    return {"load_balancer": name_at(client, balancer, PATHS["lb"])} if balancer else {}


def show(row: dict[str, Any], numbers: str, updated: int) -> None:
    """``numbers``: how many are ready of how many; ``updated``: how many have the newest configuration."""
    error = row.get("error") or {}
    bounds = f", {row['min_instances']} to {row['max_instances']}" if "min_instances" in row else ""
    render.print_facts(
        [
            ("name", row["name"]),
            ("id", row["id"]),
            ("status", status(row)),
            ("error", f"{as_commands(str(error.get('message')))} ({error.get('code')})" if error else ""),
            ("not before", row.get("backoff_until") or ""),
            ("ready", f"{numbers}{bounds}"),
            ("configuration", f"{row['revision']}, which {updated} have"),
            ("replacing", f"{row['max_surge']} more, {row['max_unavailable']} fewer"),
            ("image", row["image"]),
            ("command", " ".join(row.get("cmd") or [])),
            ("type", row["instance_type"]),
            ("ports", instance_views.ports(row)),
            ("env", render.pairs(instance_views.env(row, secret=False))),
            ("secrets", render.pairs(instance_views.env(row, secret=True))),
            ("health check", lifetimes.shown_check(row["health_check"]) if row.get("health_check") else ""),
            ("network", networks.shown(row.get("network"))),
            ("load balancer", row.get("load_balancer") or row.get("load_balancer_id") or ""),
            ("labels", render.pairs(row.get("labels"))),
            ("created", f"{row['created_at']} ({render.age(row['created_at'])} ago)"),
            ("workflow", row["workflow_id"]),
        ]
    )


def show_members(client: Client, row: dict[str, Any]) -> None:
    """Its newest members, beneath its facts: who is not ready is seen there."""
    members, more = client.pages("/instances", {"group_id": row["id"]}, MEMBERS)
    if not members:
        return
    render.print_lines([""])
    render.print_table(
        ["MEMBER", "STATUS", "HEALTH", "IMAGE", "HOST", "PORTS", "AGE"],
        [
            [
                *(member["name"], instance_views.status(member), member.get("health") or ""),
                *(member.get("image") or "", member.get("host") or "", instance_views.ports(member)),
                render.age(member["created_at"]),
            ]
            for member in members
        ],
    )
    if more:
        render.say(f"the newest {MEMBERS}; all of them: cairn instance list --all --group {row['name']}")


def status(row: dict[str, Any]) -> str:
    return f"{row['status']} (paused)" if row.get("paused") and row["status"] != "deleted" else str(row["status"])
