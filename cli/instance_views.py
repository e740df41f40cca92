"""Instances as commands show them: their facts, and the words for their state."""

from __future__ import annotations

import shlex
from typing import Any

from cli import lifetimes, networks, render
from cli.client import Client
from cli.render import Format
from cli.resources import name_at
from cli.routes import PATHS, as_commands

#: The drift of an instance whose program has ended.
STOPPED = "stopped"


def names(client: Client, instance: dict[str, Any]) -> dict[str, str]:
    """What it names by ids, with its names: its group, and its ssh key. The ids alone of what may not be seen."""
    found = {}
    if group := instance.get("group_id"):
        found["group"] = name_at(client, group, PATHS["group"], PATHS["deployment"])
    if key := instance.get("ssh_key_id"):
        found["ssh_key"] = name_at(client, key, "/ssh-keys")
    return found


def show(instance: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(instance)
        return
    error = instance.get("error") or {}
    render.print_facts(
        [
            ("name", instance["name"]),
            ("id", instance["id"]),
            ("status", status(instance)),
            ("error", f"{as_commands(str(error.get('message')))} ({error.get('code')})" if error else ""),
            ("image", instance.get("image") or ""),
            ("command", shlex.join(instance.get("cmd") or [])),
            ("type", instance["instance_type"] + _size(instance)),
            ("group", instance.get("group") or instance.get("group_id") or ""),
            ("managed by", _manager(instance.get("managed_by") or {})),
            ("host", f"{instance['host']} ({instance.get('backend')})" if instance.get("host") else ""),
            ("reachable", _REACHABLE[instance.get("reachable")]),
            ("if its host is lost", instance.get("on_host_lost") or ""),
            ("host labels", render.pairs(instance.get("host_labels"))),
            ("drift", _drift(instance)),
            *lifetimes.facts(instance),
            ("address", instance.get("private_ip") or ""),
            ("ports", ports(instance)),
            ("network", networks.shown(instance.get("network"))),
            ("env", render.pairs(env(instance, secret=False))),
            ("secrets", render.pairs(env(instance, secret=True))),
            ("labels", render.pairs(instance.get("labels"))),
            ("tags", ", ".join(instance.get("tags") or [])),
            ("metadata", render.pairs(instance.get("metadata"))),
            ("container", (instance.get("container_id") or "")[:12]),
            ("created", f"{instance['created_at']} ({render.age(instance['created_at'])} ago)"),
            ("workflow", instance.get("workflow_id") or ""),
        ]
    )


def _size(instance: dict[str, Any]) -> str:
    if "vcpus" not in instance:
        return ""
    return f" ({instance['vcpus']:g} vCPU, {instance['memory_mb']} MiB)"


def _manager(by: dict[str, Any]) -> str:
    return f"{by['type'].replace('_', ' ')} {by.get('name') or by['id']}" if by else ""


def env(instance: dict[str, Any], *, secret: bool) -> dict[str, str]:
    """Its variables that are plain, or those that stand for secrets, as --secret takes them: never their values."""
    found = {name: value for name, value in (instance.get("env") or {}).items() if isinstance(value, dict) is secret}
    return {name: _reference(value) if secret else str(value) for name, value in found.items()}


def _reference(use: dict[str, Any]) -> str:
    version = f"@{use['version']}" if use.get("version") else ""
    return f"{use['secret']}{version}" + (":env" if use.get("as") == "env" else "")


_REACHABLE = {True: "yes", False: "no: the lease of its host has lapsed", None: ""}


def _drift(instance: dict[str, Any]) -> str:
    """How the machine differs from what it should be, since when, what was done about it, and what to do."""
    drift = instance.get("drift")
    if not drift:
        return ""
    changes = ", ".join(
        f"{field} {values.get('expected')} → {values.get('actual')}"
        for field, values in (drift.get("changes") or {}).items()
    )
    heals = f"; tried to mend it {drift['heals']} times" if drift.get("heals") else ""
    back = f": bring it back with cairn instance restart {instance['name']}" if drift["kind"] == STOPPED else ""
    return f"{changes or drift['kind']} (for {render.age(drift['detected_at'])}{heals}){back}"


def status(instance: dict[str, Any]) -> str:
    away = instance.get("reachable") is False and instance["status"] != "deleted"
    drift = (instance.get("drift") or {}).get("kind")
    note = "host unreachable" if away else f"drift: {drift}" if drift else ""
    return f"{instance['status']} ({note})" if note else str(instance["status"])


def ports(instance: dict[str, Any]) -> str:
    """As one writes them: 8080:80, with the protocol where it is not TCP."""
    shown = []
    for port in instance.get("ports") or []:
        protocol = port.get("protocol", "tcp")
        suffix = "" if protocol == "tcp" else f"/{protocol}"
        host = f"{port['host_port']}:" if port.get("host_port") else ""
        shown.append(f"{host}{port['container_port']}{suffix}")
    return ", ".join(shown)
