"""After a restore nothing is lost that was not named, and in the end database, Temporal and engines agree."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import invariants
from tests.stack import IMAGE, Json, Stack, wait_for

LEASE_SECONDS = 15


@pytest.fixture
def platform() -> Iterator[Stack]:
    made = Stack()
    try:
        yield made.start().ready()
    finally:
        made.remove()


def cairn(stack: Stack, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The program, on the platform's folder."""
    command = [str(Path(sys.executable).with_name("cairn")), *arguments]
    done = subprocess.run(command, env=stack.environ, check=False, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done


def restored(stack: Stack) -> list[Json]:
    """The differences, once every host was looked at and Temporal was asked."""
    before: list[Any] = []

    def settled() -> bool:
        view = stack.get("/operations/restore")
        assert view["state"] == "restored"
        kinds = {difference["kind"] for difference in view["differences"]}
        before.append((view["looked_at"], view["differences"]))
        looks = {looked for looked, _ in before if looked}
        return len(looks) > 2 and "host_not_seen" not in kinds

    wait_for("the hosts are surveyed", settled, 60)
    found: list[Json] = before[-1][1]
    return found


def named(found: list[Json], kind: str) -> set[str]:
    return {str(one["id"]) for one in found if one["kind"] == kind}


def held_ports(stack: Stack) -> list[tuple[Any, ...]]:
    return stack.sql("SELECT host_id, protocol, port FROM host_ports")


def test_database_an_hour_older_loses_nothing_and_names_what_differs(platform: Stack, tmp_path: Path) -> None:
    file = tmp_path / "cairn.backup"
    kept = platform.running(backend="docker", name="kept")
    resized = platform.running(backend="docker", name="resized")
    stopped = platform.running(backend="simulated", name="stopped")
    gone = platform.running(backend="docker", name="gone")
    moved = platform.running(backend="simulated", name="moved")
    cairn(platform, "backup", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    cairn(platform, "backup", "--verify", str(file))

    # The hour that is lost.
    new = platform.running(backend="docker", name="new", env={"A": "b"}, labels={"tier": "web"})
    far = platform.running(backend="simulated", name="far")
    platform.completed(platform.act("resize", resized, body={"instance_type": "basic-2"}))
    platform.completed(platform.act("stop", stopped))
    platform.completed(platform.act("delete", gone))
    host = next(h for h in platform.list("/hosts") if h["name"] == moved["host"])
    platform.completed(platform.accept("POST", f"/hosts/{host['id']}/drain"))
    platform.request("POST", f"/hosts/{host['id']}/uncordon").raise_for_status()
    platform.fault("instance.start.before", "pause")
    under_way = platform.launch(backend="docker", name="under-way")
    platform.wait_for_hit("instance.start.before")
    token = platform.accept("POST", "/hosts/tokens", {})["data"]["token"]
    position = platform.sql("SELECT epoch || '-' || xid || '-' || id FROM events ORDER BY epoch, xid, id DESC LIMIT 1")
    there = set(invariants.machines(platform))
    assert cairn(platform, "restore", str(file), "--replace", "--yes", check=False).returncode == 1, "it runs"
    platform.stop()

    assert cairn(platform, "restore", str(file), check=False).returncode == 1, "there is a platform"
    cairn(platform, "restore", str(file), "--replace", "--yes")
    platform.start().ready()
    platform.plant()

    refused = platform.request("POST", "/instances", json={"name": "no", "image": IMAGE})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "restored")
    assert refused.headers["Retry-After"]
    joined = platform.request("POST", "/hosts/register", json={"token": token})
    assert joined.status_code in (401, 422)
    wait_for("the run without a row ends", lambda: not named(restored(platform), "run_without_row"), 60)
    found = restored(platform)
    later = {str(i["id"]) for i in (new, far, _data(under_way))}
    assert named(found, "machine_without_row") == later
    assert named(found, "machine_differs") >= {resized["id"], stopped["id"], moved["id"]}
    assert named(found, "row_without_machine") == {gone["id"]}
    assert kept["id"] not in str(found)
    assert set(invariants.machines(platform)) == there, "something was removed"

    # Undecided: it is not finished, and nothing happens by itself.
    failed = cairn(platform, "restore", "finish", check=False)
    assert failed.returncode and "unresolved" in failed.stderr + failed.stdout
    cairn(platform, "restore", "forget", "--all")
    cairn(platform, "restore", "adopt", "--all")
    assert "machine_without_row" not in cairn(platform, "restore", "status").stdout or restored(platform)
    wait_for("nothing is undecided", lambda: not any(d["blocks"] for d in restored(platform)), 60)
    cairn(platform, "restore", "finish")

    invariants.settle(platform)
    assert set(invariants.machines(platform)) == there
    adopted = platform.instance(new)
    assert (adopted["name"], adopted["status"], adopted["ports"]) == ("new", "running", new["ports"])
    assert adopted["labels"] == {"tier": "web"} and adopted["env"]["A"] == "b"
    assert platform.instance(resized)["instance_type"] == "basic-2"
    assert platform.instance(stopped)["status"] == "stopped"
    assert platform.instance(moved)["generation"] == 2
    _reads_on(platform, position[0][0])

    # It works as before: names, ports and generations are not given twice.
    more = [platform.running(backend=backend) for backend in ("docker", "simulated") for _ in range(3)]
    ports = held_ports(platform)
    assert len(ports) == len(set(ports))
    platform.completed(platform.act("start", stopped))
    for instance in more:
        platform.completed(platform.act("delete", instance))
    invariants.settle(platform)
    assert platform.get("/operations/restore")["state"] == "finished"


def _data(accepted: Json) -> Json:
    found: Json = accepted["data"]
    return found


def _reads_on(stack: Stack, position: str) -> None:
    """A client with an id of the lost hour is told of the restore, at once."""
    known = stack.endpoint()
    headers = {"X-API-Key": known["api_key"], "Last-Event-ID": position}
    with httpx.stream("GET", f"{known['api_url']}/events", headers=headers, timeout=20, trust_env=False) as answer:
        for line in answer.iter_lines():
            if line.startswith("event:"):
                assert line == "event: platform.restored", line
                return
