"""What must hold of a platform that has come to rest, however it got there."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.platform import Json, Platform

#: States in which an instance rests.
RESTING = ("running", "stopped", "paused", "error")
#: The id of a session that is mounted.
_MOUNT = re.compile(r" ours:\S*trees/\S*sessions/([^/ ]+)/")


class Machine(NamedTuple):
    """An engine object that carries our installation's labels."""

    engine_id: str
    generation: int
    #: running, paused or stopped.
    state: str
    vcpus: float
    memory_mb: int


def settle(stack: Platform, seconds: float = 120) -> None:
    """Wait until every invariant holds; fails with those that do not."""
    end = time.monotonic() + seconds
    while broken := violations(stack):
        if time.monotonic() > end:
            raise AssertionError("\n".join(broken))
        time.sleep(0.2)


def violations(stack: Platform) -> list[str]:
    """What is wrong now, as lines. Nothing, of a platform at rest."""
    broken = [
        f"{row['kind']} {row['id']} of {row['resource_id']} is still {row['state']}"
        for state in ("accepted", "running")
        for row in stack.list("/workflows", state=state)
    ]
    if broken:
        return broken
    instances = stack.list("/instances")
    found = [*_states(instances), *_machines(stack, instances), *_secrets(stack), *_sums(stack, instances)]
    return [*found, *_balancers(stack), *_trees(stack)]


def _states(instances: list[Json]) -> list[str]:
    return [f"{i['name']} is {i['status']}, and nothing works on it" for i in instances if i["status"] not in RESTING]


def _balancers(stack: Platform) -> list[str]:
    """They rest; what their proxies run with is known, and on the simulated engine seen; no target is half one."""
    rows = stack.sql(
        "SELECT name, status, applied_digest IS NOT NULL, applied_engine_id, applied_revision FROM load_balancers"
        " WHERE status <> 'deleted'"
    )
    simulated = {machine["id"]: machine.get("proxy", {}).get("revision") for machine in stack.simulated_machines()}
    broken = []
    for name, status, known, engine_id, revision in rows:
        if status not in ("active", "error"):
            broken.append(f"load balancer {name} is {status}, and nothing works on it")
        elif status == "active" and not known:
            broken.append(f"what the proxy of load balancer {name} runs with is not known")
        elif status == "active" and simulated.get(engine_id, revision) != revision:
            broken.append(f"load balancer {name}: revision {revision} was applied, found {simulated[engine_id]}")
    half = stack.sql("SELECT instance_id, state FROM lb_targets WHERE state <> 'in' OR workflow_id IS NOT NULL")
    return broken + [f"target {id} is {state}, and nothing works on it" for id, state in half]


def _trees(stack: Platform) -> list[str]:
    """Files and mounts that hosts keep of workspaces and sessions are of live rows, and what these need is there."""
    if stack.agents_dir is None:
        return []
    rows = stack.sql(
        "SELECT 'workspaces', id::text, status, status = 'ready', host_id IS NOT NULL FROM workspaces"
        " WHERE status <> 'deleted'"
        " UNION ALL SELECT 'sessions', id::text, status, status IN ('running', 'stopped'), true FROM work_sessions"
        " WHERE status <> 'removed'"
        " UNION ALL SELECT 'warm', id::text, status, status IN ('running', 'stopped'), host_id IS NOT NULL"
        " FROM instances WHERE warm AND status <> 'deleted'"
    )
    broken = [
        f"{kind}: {id} is {status}, and nothing works on it"
        for kind, id, status, whole, _ in rows
        if not whole and status != "error"
    ]
    mounted = Counter(
        _MOUNT.findall(Path("/proc/self/mountinfo").read_text().replace(f" {stack.agents_dir}/", " ours:"))
    )
    broken += [f"sessions: {id} is mounted {count} times" for id, count in mounted.items() if count > 1]
    for kind in ("workspaces", "sessions", "warm"):
        there = {path.name for path in stack.agents_dir.glob(f"**/trees/**/{kind}/*")}
        there |= set(mounted) if kind == "sessions" else set()
        known = {id: whole for what, id, _, whole, placed in rows if what == kind and placed}
        broken += [f"{kind}: no live row has what is there of {id}" for id in there - known.keys()]
        broken += [f"{kind}: the files of {id} are gone" for id, whole in known.items() if whole and id not in there]
    return broken + _caches(stack)


def _caches(stack: Platform) -> list[str]:
    """The same of cache volumes, which come to be on a host with a session."""
    if stack.agents_dir is None:
        return []
    rows = stack.sql("SELECT id::text, status FROM cache_volumes WHERE status <> 'deleted'")
    known = {id for (id,) in stack.sql("SELECT DISTINCT volume_id::text FROM cache_volume_hosts")}
    broken = [f"cache volume {id} is {status}, and nothing works on it" for id, status in rows if status[-3:] == "ing"]
    there = {path.name for path in stack.agents_dir.glob("**/trees/**/caches/*/*")}
    return broken + [f"no cache volume is on a host that has what is there of {id}" for id in there - known]


def machines(stack: Platform) -> dict[str, list[Machine]]:
    """Everything of this installation on the engines, by the instance's id."""
    found: dict[str, list[Machine]] = {}
    if stack.endpoint()["docker_host"]:
        for container in stack.containers():
            labels, limits = container.labels, container.attrs["HostConfig"]
            size = limits["CpuQuota"] / limits["CpuPeriod"], limits["Memory"] >> 20
            machine = Machine(container.id, int(labels["io.cairn.generation"]), _state(container.status), *size)
            found.setdefault(labels["io.cairn.id"], []).append(machine)
    for simulated in stack.simulated_machines():
        labels = simulated["labels"]
        size = simulated["vcpus"], simulated["memory_mb"]
        machine = Machine(simulated["id"], int(labels["io.cairn.generation"]), _state(simulated["state"]), *size)
        found.setdefault(labels["io.cairn.id"], []).append(machine)
    return found


def _state(said: str) -> str:
    return said if said in ("running", "paused") else "stopped"


def _machines(stack: Platform, instances: list[Json]) -> list[str]:
    """Engines minus rows, and rows minus engines; what both have is the same."""
    broken = []
    there = machines(stack)
    for instance in instances:
        found = there.pop(instance["id"], [])
        what = f"{instance['name']} ({instance['status']}, generation {instance['generation']})"
        if instance["host"] is None:
            broken += [f"{what} is on no host, and has {machine}" for machine in found]
        elif instance["status"] in ("running", "stopped", "paused"):
            size = instance["vcpus"], instance["memory_mb"]
            expected = Machine(instance["container_id"], instance["generation"], instance["status"], *size)
            if found != [expected]:
                broken.append(f"{what}: expected {expected}, found {found}")
        elif len(found) > 1:
            broken.append(f"{what} has more than one machine: {found}")
    broken += [f"no live row has {id}: {found}" for id, found in there.items()]
    return broken


def _secrets(stack: Platform) -> list[str]:
    """Files of secrets are of machines that there are, and what was sealed is of live rows' placements."""
    there = {f"{id}.{machine.generation}" for id, found in machines(stack).items() for machine in found}
    lost = [folder.name for folder in stack.secrets_dir.glob("*/*") if folder.name not in there]
    sealed = stack.sql(
        "SELECT s.instance_id::text, s.generation FROM instance_secrets s LEFT JOIN instances i ON i.id = s.instance_id"
        " WHERE i.host_id IS NULL OR s.generation <> i.generation"
    )
    sealed += stack.sql(
        "SELECT 'login', l.image_id::text FROM image_logins l JOIN images i ON i.id = l.image_id"
        " WHERE i.status <> 'importing' UNION ALL"
        " SELECT 'script', v.instance_id::text FROM sealed_values v JOIN instances i ON i.id = v.instance_id"
        " WHERE i.status = 'deleted'"
    )
    return [f"nothing has the secrets in {name}" for name in lost] + [f"{row} was sealed for nobody" for row in sealed]


def _sums(stack: Platform, instances: list[Json]) -> list[str]:
    """What is counted is what is there: quotas, capacity, ports."""
    placed = [instance for instance in instances if instance["host"]]
    broken = []
    project = stack.get("/projects")[0]["id"]
    quotas = stack.get(f"/projects/{project}/quotas")
    used = {"instances": len(placed), **{what: sum(i[what] for i in placed) for what in ("vcpus", "memory_mb")}}
    for what, expected in used.items():
        if (quotas[what]["used"], quotas[what]["reserved"]) != (expected, 0):
            broken.append(f"quota of {what}: {quotas[what]}, and {expected} are in use")
    corrected = stack.sql("SELECT data->'differences' FROM events WHERE type = 'project.quota_corrected'")
    broken += [f"quotas were wrong, and were corrected: {differences}" for (differences,) in corrected]
    for host in stack.list("/hosts"):
        here = [instance for instance in placed if instance["host"] == host["name"]]
        size = {what: sum(i[what] for i in here) for what in ("vcpus", "memory_mb")}
        held = [(port["protocol"], port["host_port"]) for instance in here for port in instance["ports"]]
        if host["allocated"] != size:
            broken.append(f"host {host['name']} says {host['allocated']} is allocated, and it is {size}")
        if host["ports_held"] != len(held):
            broken.append(f"host {host['name']} holds {host['ports_held']} ports, and its instances have {held}")
        broken += _duplicates(f"host {host['name']}: port", held)
    return broken


def _duplicates(what: str, values: list[Any]) -> list[str]:
    return [f"{what} {value} is given {count} times" for value, count in Counter(values).items() if count > 1]
