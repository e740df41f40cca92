"""A pool on a real stack: each of its sandboxes is one session's, whatever dies meanwhile, and nothing is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import invariants
from tests.promises.test_sessions import run
from tests.stack import Json, Stack, wait_for

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "README").write_text("base\n")
    return folder


@pytest.fixture(scope="module")
def stack(source: Path) -> Iterator[Stack]:
    made = Stack(simulated_hosts=0, CAIRN_WORKSPACE_PATHS=str(source)).start().ready()
    yield made
    made.remove()


def _answers(stack: Stack, session: Json) -> bool:
    body = {"cmd": ["true"]}
    answer = stack.request("POST", f"/instances/{session['instance_id']}/exec", json=body)
    return answer.status_code == httpx.codes.OK


def _heal(stack: Stack, session: Json) -> None:
    """Its sandbox is removed behind our back: the project heals it, and the files are the session's."""
    (container,) = stack.containers(session["instance_id"])
    container.remove(force=True)
    healed = stack.request("PATCH", f"/projects/{session['project_id']}", json={"drift_policy": "heal"})
    assert healed.status_code == httpx.codes.OK, healed.text
    wait_for("it is made anew", lambda: _answers(stack, session), 60)
    assert run(stack, session, 'test "$(cat mine)" = "$NUMBER"; cat README') == "base\n"


def _call_off(stack: Stack, pool: str, path: str) -> None:
    """Before Temporal has seen anything of it: its run removes what the request had claimed; so does its delete's, also
    where that is called off in turn."""
    for deleted in (False, True):
        wait_for("there is one to claim", lambda: stack.get(pool)["ready"] > 0, 60)
        with stack.frozen("temporal"):
            accepted = stack.accept("POST", path, {"network": {"mode": "none"}})
            session = f"/sessions/{accepted['data']['id']}"
            assert accepted["data"]["start"] == "warm" and stack.containers(accepted["data"]["instance_id"])
            called_off = stack.accept("DELETE", session) if deleted else accepted
            assert stack.cancel(called_off).json()["data"]["state"] == "accepted"
        assert stack.ended(called_off)["state"] == ("completed" if deleted else "cancelled")
        assert stack.get(session)["status"] == ("removed" if deleted else "error")
        assert stack.containers(accepted["data"]["instance_id"]) == []
        if not deleted:
            stack.completed(stack.accept("DELETE", session))


def _kill(stack: Stack, path: str) -> Json:
    """A session whose agent is killed between the claim and the files; it ends well."""
    point = "session.join.before"
    before = len(stack.hits(point))
    stack.fault(point, "pause")
    accepted = stack.accept("POST", path, {"network": {"mode": "none"}, "env": {"A": "late"}})
    stack.wait_for_hit(point, before)
    stack.kill("host_agent")
    stack.plant()
    stack.completed(accepted)
    session: Json = accepted["data"]
    assert session["start"] == "warm" and run(stack, session, "cat README; echo $A") == "base\nlate\n"
    return session


def test_sandboxes_are_claimed_once_filled_up_and_gone_with_their_sessions(stack: Stack, source: Path) -> None:
    made = stack.accept("POST", "/workspaces", {"name": "shop", "source": {"path": str(source)}})
    stack.completed(made)
    path = f"/workspaces/{made['data']['id']}/sessions"
    pool = stack.accept("POST", "/pools", {"name": "warm", "size": 3, "network": {"mode": "none"}})
    stack.completed(pool)
    of = f"/pools/{pool['data']['id']}"
    assert stack.get(of)["ready"] == 3, stack.get(of)

    def ask(number: int) -> Json:
        body = {"network": {"mode": "none"}, "env": {"NUMBER": str(number)}}
        began = time.monotonic()
        accepted = stack.accept("POST", path, body)
        if accepted["data"]["start"] == "warm":  # before any workflow has said that it is ready
            said = run(stack, accepted["data"], 'cat README; pwd; echo "$NUMBER"; echo "$NUMBER" > mine')
            assert said == f"base\n/workspace\n{number}\n"
            print(f"first command after {time.monotonic() - began:.3f} s")
        return accepted

    with ThreadPoolExecutor(4) as threads:
        asked = list(threads.map(ask, range(4)))
    starts = sorted(one["data"]["start"] for one in asked)
    assert starts == ["cold", "warm", "warm", "warm"]
    assert len({one["data"]["instance_id"] for one in asked}) == 4
    for one in asked:
        stack.completed(one)
    (cold,) = [one["data"] for one in asked if one["data"]["start"] == "cold"]
    assert "no sandbox ready" in cold["start_reason"]
    assert run(stack, cold, "cat README; echo $NUMBER").splitlines()[0] == "base"

    # Filled again by the tick.
    wait_for("it is filled again", lambda: stack.get(of)["ready"] >= 3, 60)
    assert stack.get(of)["claimed"] == 3
    session = _kill(stack, path)

    # Stopped and started again, it has what it had.
    first = next(one["data"] for one in asked if one["data"]["start"] == "warm")
    for verb in ("stop", "start"):
        stack.completed(stack.accept("POST", f"/sessions/{first['id']}/{verb}"))
    assert run(stack, first, 'test "$(cat mine)" = "$NUMBER"; cat README') == "base\n"
    files = [entry["name"] for entry in stack.get(f"/sessions/{first['id']}/files")["entries"]]
    assert files == ["README", "mine"]

    _call_off(stack, of, path)
    _heal(stack, first)
    direct = stack.request("DELETE", f"/instances/{first['instance_id']}")
    assert direct.status_code == httpx.codes.CONFLICT

    for one in (session, *(one["data"] for one in asked)):
        stack.completed(stack.accept("DELETE", f"/sessions/{one['id']}"))
    stack.completed(stack.accept("DELETE", of))
    assert invariants.violations(stack) == [] and stack.containers() == []
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert not [line for line in mounts if f" {stack.data}/" in line]
    stack.completed(stack.accept("DELETE", f"/workspaces/{made['data']['id']}"))
